"""Small kernels made for the tests: just enough of each format to be recognised, loaded and looked at."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from struct import pack

import zstandard
from lz4.block import compress as lz4_block  # type: ignore[attr-defined]

from bivisor.abi import boot_params, elf, multiboot

CODE = b"\xf4kernel code" + bytes(range(200)) * 64
BSS = 0x3000
BASE = 0x100_0000
PVH_ENTRY = BASE + 0x40
VERSION = b"6.1.0-test (builder@example) #1 SMP"


def note(kind: int = elf.XEN_ELFNOTE_PHYS32_ENTRY, value: int = PVH_ENTRY, name: bytes = b"Xen\0") -> bytes:
    return elf.NHDR.pack(len(name), 4, kind) + name + pack("<I", value)


def elf64(
    code: bytes = CODE,
    base: int = BASE,
    entry: int = BASE,
    notes: bytes = b"",
    machine: int = elf.EM_X86_64,
    memsz: int | None = None,
) -> bytes:
    """A kernel linked high in virtual memory, as Linux is, with one segment and perhaps notes."""
    count = 2 if notes else 1
    offset = 0x1000
    ident = elf.ELFMAG + bytes([elf.ELFCLASS64, elf.ELFDATA2LSB, 1]) + bytes(9)
    header = elf.EHDR64.pack(ident, elf.ET_EXEC, machine, 1, entry, elf.EHDR64.size, 0, 0, 64, 56, count, 64, 0, 0)
    size = len(code) + BSS if memsz is None else memsz
    load = elf.PHDR64.pack(elf.PT_LOAD, 7, offset, 0xFFFF_FFFF_8000_0000 + base, base, len(code), size, 4096)
    if notes:
        load += elf.PHDR64.pack(elf.PT_NOTE, 4, offset + len(code), 0, 0, len(notes), len(notes), 4)
    return (header + load).ljust(offset, b"\0") + code + notes


def elf32(code: bytes = CODE, base: int = 0x10_0000, entry: int = 0x10_0040, flags: int | None = 3) -> bytes:
    """A 32-bit kernel, with a multiboot header before its code unless `flags` is None."""
    body = (multiboot_header(flags) if flags is not None else b"") + code
    offset = elf.EHDR32.size + elf.PHDR32.size
    ident = elf.ELFMAG + bytes([elf.ELFCLASS32, elf.ELFDATA2LSB, 1]) + bytes(9)
    header = elf.EHDR32.pack(ident, elf.ET_EXEC, elf.EM_386, 1, entry, elf.EHDR32.size, 0, 0, 52, 32, 1, 40, 0, 0)
    load = elf.PHDR32.pack(elf.PT_LOAD, offset, base, base, len(body), len(body) + BSS, 7, 4096)
    return header + load + body


def multiboot_header(flags: int) -> bytes:
    return multiboot.HEADER.pack(multiboot.HEADER_MAGIC, flags, -(multiboot.HEADER_MAGIC + flags) & 0xFFFF_FFFF)


def kludge(code: bytes = CODE, load: int = 0x20_0000, load_end: int = 0, bss_end: int = 0, before: int = 64) -> bytes:
    """A multiboot kernel in no format at all: `before` bytes, the header with the addresses, then the code."""
    addresses = multiboot.HEADER_ADDRESSES.pack(load + before, load, load_end, bss_end, load + before + 32)
    return bytes(before) + multiboot_header(multiboot.AOUT_KLUDGE) + addresses + code


def lz4_legacy(data: bytes, block: int = 8 << 20) -> bytes:
    """The LZ4 legacy frame. Only the last block may be smaller than 8 MiB in earnest; decompressors take any."""
    parts = [b"\x02\x21\x4c\x18"]
    for start in range(0, len(data), block):
        packed = lz4_block(data[start : start + block], store_size=False)
        parts.append(pack("<I", len(packed)) + packed)
    return b"".join(parts)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "XZ": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32) + pack("<I", len(data)),
    "LZMA": lambda data: lzma.compress(data, lzma.FORMAT_ALONE) + pack("<I", len(data)),
    "bzip2": lambda data: bz2.compress(data) + pack("<I", len(data)),
    "LZ4": lambda data: lz4_legacy(data) + pack("<I", len(data)),
    "Zstandard": lambda data: zstandard.compress(data) + pack("<I", len(data)),
}
"""Format → how a kernel's build packs its payload: the size follows unless the format ends with it."""


def bzimage(
    payload: bytes,
    *,
    version: int = 0x020F,
    xloadflags: int = boot_params.XLF_KERNEL_64 | boot_params.XLF_CAN_BE_LOADED_ABOVE_4G,
    loadflags: int = boot_params.LOADED_HIGH,
    initrd_addr_max: int = 0x7FFF_FFFF,
    cmdline_size: int = 2047,
    setup_sects: int = 3,
) -> bytes:
    """A bzImage around `payload`, whose protected-mode code is 0x240 bytes and the payload."""
    lead = 0x240
    code = (b"\x90" * lead + payload).ljust(-(-(lead + len(payload)) // 16) * 16, b"\0")
    zero = boot_params.SetupHeader._make(boot_params.SETUP_HEADER.unpack(bytes(boot_params.SETUP_HEADER.size)))
    header = zero._replace(
        setup_sects=setup_sects,
        syssize=len(code) // 16,
        boot_flag=boot_params.BOOT_FLAG,
        jump=0xEB | 0x6A << 8,
        header=boot_params.HEADER,
        version=version,
        kernel_version=0x200,
        loadflags=loadflags,
        initrd_addr_max=initrd_addr_max,
        xloadflags=xloadflags,
        cmdline_size=cmdline_size,
        payload_offset=lead,
        payload_length=len(payload),
        pref_address=BASE,
        init_size=len(code) + 0x10_0000,
        kernel_alignment=0x20_0000,
    )
    setup = bytearray((setup_sects + 1) * 512)
    setup[:2] = b"MZ"
    end = boot_params.SETUP_HEADER_START + boot_params.SETUP_HEADER.size
    setup[boot_params.SETUP_HEADER_START : end] = boot_params.SETUP_HEADER.pack(*header)
    setup[0x400 : 0x400 + len(VERSION) + 1] = VERSION + b"\0"
    return bytes(setup) + code


def file(directory: Path, data: bytes, name: str = "file") -> Path:
    """Write `data` to a file whose name says nothing."""
    path = directory / name
    path.write_bytes(data)
    return path
