"""ELF: header, program headers, notes, and the numbers of machines.

Specification: System V gABI chapters 4 "Object Files" and 5 "Program Loading"; for the Xen notes the Xen public header
elfnote.h.
"""

from __future__ import annotations

from struct import Struct

ELFMAG = b"\x7fELF"
EI_CLASS = 4
EI_DATA = 5
E_MACHINE = 18
ELFCLASS32 = 1
ELFCLASS64 = 2
ELFDATA2LSB = 1

ET_EXEC = 2
ET_DYN = 3

EM_386 = 3
EM_X86_64 = 62
EM_AARCH64 = 183

MACHINES = {
    2: "SPARC",
    EM_386: "i386",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "s390",
    40: "ARM",
    43: "SPARC V9",
    50: "IA-64",
    EM_X86_64: "x86-64",
    EM_AARCH64: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
"""e_machine → the name of the architecture."""

PT_LOAD = 1
PT_INTERP = 3
PT_NOTE = 4

EHDR32 = Struct("<16s2H5I6H")
EHDR64 = Struct("<16s2HI3QI6H")
"""e_ident, e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize, e_phentsize, e_phnum,
e_shentsize, e_shnum, e_shstrndx."""

PHDR32 = Struct("<8I")
"""p_type, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_flags, p_align."""
PHDR64 = Struct("<2I6Q")
"""p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align."""

NHDR = Struct("<3I")
"""n_namesz, n_descsz, n_type; name and descriptor follow, each padded to 4 bytes."""

SHDR64 = Struct("<2I4Q2I2Q")
"""sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign, sh_entsize."""
SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS = 2, 3, 8
SHF_ALLOC, SHF_EXECINSTR = 2, 4

SYM64 = Struct("<I2BH2Q")
"""st_name, st_info, st_other, st_shndx, st_value, st_size."""
STB_GLOBAL = 1
STT_OBJECT, STT_FUNC = 1, 2

XEN_NOTE_NAME = b"Xen\0"
XEN_ELFNOTE_PHYS32_ENTRY = 18
