"""ELF kernels: the headers, the Xen notes, and the segments put at their physical addresses.

The loader needs a dozen fields, each of which it checks, on the path from command to guest; they are taken with
`struct`, because importing pyelftools alone would cost about 25 ms there. Specification: see `abi/elf.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from bivisor.abi import elf as abi
from bivisor.boot.placement import Placement
from bivisor.boot.source import Source, clear, copy
from bivisor.errors import ImageError

_MAX_SEGMENTS = 256
_MAX_NOTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """The fields of a program header that loading needs; `offset` is in the file, `paddr` guest-physical."""

    type: int
    offset: int
    paddr: int
    filesz: int
    memsz: int


@dataclass(frozen=True, slots=True)
class Elf:
    """An ELF file. `bits` is 32 or 64, `phys32_entry` the entry point of the PVH note or None."""

    bits: int
    machine: int
    architecture: str
    type: int
    entry: int
    headers: tuple[ProgramHeader, ...]
    phys32_entry: int | None

    @property
    def segments(self) -> tuple[ProgramHeader, ...]:
        """The PT_LOAD segments that occupy memory."""
        return tuple(header for header in self.headers if header.type == abi.PT_LOAD and header.memsz)

    @property
    def starts_at_physical_entry(self) -> bool:
        """Whether `entry` is a physical address inside a segment and no dynamic linker is asked for: a kernel, then."""
        inside = any(header.paddr <= self.entry < header.paddr + header.memsz for header in self.segments)
        return inside and not any(header.type == abi.PT_INTERP for header in self.headers)


def architecture(head: bytes) -> str:
    """The name of the machine of an ELF file that begins with `head` (at least 20 bytes), of either byte order."""
    order = "little" if head[abi.EI_DATA] == abi.ELFDATA2LSB else "big"
    machine = int.from_bytes(head[abi.E_MACHINE : abi.E_MACHINE + 2], order)  # type: ignore[arg-type]
    return abi.MACHINES.get(machine, f"machine {machine}")


def parse(source: Source) -> Elf:
    """Read and check the headers of the ELF file `source`. ImageError if it is damaged or big-endian."""
    name = source.name
    head = source.read(0, abi.EHDR64.size)
    if len(head) < abi.EHDR32.size or head[abi.EI_CLASS] not in (abi.ELFCLASS32, abi.ELFCLASS64):
        raise ImageError(f"{name}: damaged: an ELF header of {len(head)} bytes, class {head[abi.EI_CLASS : 5].hex()}")
    if head[abi.EI_DATA] != abi.ELFDATA2LSB:
        raise ImageError(f"{name}: a big-endian ELF file for {architecture(head)}; this machine is x86-64")
    wide = head[abi.EI_CLASS] == abi.ELFCLASS64
    header, program_header = (abi.EHDR64, abi.PHDR64) if wide else (abi.EHDR32, abi.PHDR32)
    if len(head) < header.size:
        raise ImageError(f"{name}: truncated: {header.size - len(head)} bytes of the ELF header are missing")
    _, type_, machine, _, entry, phoff, _, _, _, phentsize, phnum, *_ = header.unpack_from(head)
    if phnum > _MAX_SEGMENTS or (phnum and phentsize != program_header.size):
        raise ImageError(f"{name}: damaged: {phnum} program headers of {phentsize} bytes each")
    table = source.read(phoff, phnum * program_header.size)
    if len(table) < phnum * program_header.size:
        missing = phnum * program_header.size - len(table)
        raise ImageError(f"{name}: truncated: {missing} bytes of the ELF program headers are missing")
    headers = []
    for fields in program_header.iter_unpack(table):
        if wide:
            kind, _, offset, _, paddr, filesz, memsz, _ = fields
        else:
            kind, offset, _, paddr, filesz, memsz, _, _ = fields
        headers.append(ProgramHeader(kind, offset, paddr, filesz, memsz))
    for number, segment in enumerate(headers):
        if segment.type != abi.PT_LOAD:
            continue
        if segment.filesz > segment.memsz or segment.paddr + segment.memsz > 1 << 64:
            raise ImageError(f"{name}: damaged: ELF segment {number} has {segment.filesz} bytes for {segment.memsz}")
        if segment.offset + segment.filesz > source.size:
            missing = segment.offset + segment.filesz - source.size
            raise ImageError(f"{name}: truncated: {missing} bytes of ELF segment {number} are missing")
    return Elf(
        bits=64 if wide else 32,
        machine=machine,
        architecture=abi.MACHINES.get(machine, f"machine {machine}"),
        type=type_,
        entry=entry,
        headers=tuple(headers),
        phys32_entry=_phys32_entry(source, headers),
    )


def put(source: Source, elf: Elf, place: Placement) -> None:
    """Copy the segments to their physical addresses. ImageError if one of them is not free memory."""
    segments = elf.segments
    if not segments:
        raise ImageError(f"{source.name}: an ELF file with nothing to load")
    place.at("kernel", ((segment.paddr, segment.memsz) for segment in segments))
    for segment in segments:
        copy(source, segment.offset, segment.filesz, place.memory, segment.paddr)
        clear(place.memory, segment.paddr + segment.filesz, segment.memsz - segment.filesz)


def _phys32_entry(source: Source, headers: list[ProgramHeader]) -> int | None:
    for header in headers:
        if header.type != abi.PT_NOTE or header.filesz > _MAX_NOTES:
            continue
        notes = source.read(header.offset, header.filesz)
        offset = 0
        while offset + abi.NHDR.size <= len(notes):
            namesz, descsz, kind = abi.NHDR.unpack_from(notes, offset)
            name = offset + abi.NHDR.size
            desc = name + (namesz + 3 & ~3)
            offset = desc + (descsz + 3 & ~3)
            if kind == abi.XEN_ELFNOTE_PHYS32_ENTRY and notes[name : name + namesz] == abi.XEN_NOTE_NAME:
                value = int.from_bytes(notes[desc : desc + min(descsz, 8)], "little")
                return value if value < 1 << 32 else None
    return None
