"""What a file is, told by its content alone.

`recognise` asks a table of formats in order; each looks at the first bytes and gives what it found, or None. A kernel
of another architecture is recognised too, and offers no protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

from bivisor.abi import elf as elf_abi
from bivisor.abi import multiboot as multiboot_abi
from bivisor.boot import bzimage, compress, elf
from bivisor.boot.bzimage import BzImage
from bivisor.boot.elf import Elf
from bivisor.boot.source import Source
from bivisor.errors import ImageError

LINUX64 = "linux64"
PVH = "pvh"
MULTIBOOT = "multiboot"
RAW = "raw"

X86_64 = "x86-64"
I386 = "i386"
RUNNABLE = (X86_64, I386)

RAW_BASE = 0x7C00
RAW_END = 0x9_0000
"""A raw image lies at RAW_BASE and ends at RAW_END at the latest."""

_HEAD = multiboot_abi.SEARCH
_U32 = Struct("<I")
_FOREIGN = {
    b"07070": "a cpio archive, perhaps an initramfs",
    b"!<arch>\n": "an ar archive, perhaps a Debian package",
    b"QFI\xfb": "a qcow2 disk image",
    b"#!": "a script",
}
"""What people hand over by mistake."""
_PE_AT = 0x3C
_PE_MACHINES = {
    0x014C: I386,
    0x01C0: "ARM",
    0x01C2: "ARM",
    0x5032: "RISC-V",
    0x5064: "RISC-V",
    0x6232: "LoongArch",
    0x6264: "LoongArch",
    0x8664: X86_64,
    0xAA64: "AArch64",
}


@dataclass(frozen=True, slots=True)
class MultibootHeader:
    """A multiboot 1 header: where it lies in the file, its flags, and its addresses if AOUT_KLUDGE is among them."""

    offset: int
    flags: int
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0


@dataclass(frozen=True, slots=True)
class Image:
    """What `inspect` found.

    `kind` is "bzImage", "ELF", "multiboot", "raw", "PE", or "Image" and "zImage" of other architectures. `protocols`
    are the ways to boot it here, best first, and empty where there is none. `version` is the kernel's own text,
    `compression` the format that the kernel is packed in; both None where there is nothing of the kind. The last three
    fields are the parsed headers.
    """

    kind: str
    architecture: str
    protocols: tuple[str, ...]
    version: str | None = None
    compression: str | None = None
    bzimage: BzImage | None = None
    elf: Elf | None = None
    multiboot: MultibootHeader | None = None


def recognise(source: Source) -> Image:
    """Say what `source` is, from its headers. ImageError if it is damaged, or nothing that is known here."""
    head = source.read(0, _HEAD)
    for recogniser in _RECOGNISERS:
        if image := recogniser(source, head):
            return image
    what = next((f"this is {name}" for magic, name in _FOREIGN.items() if head.startswith(magic)), "no known format")
    raise ImageError(
        f"{source.name}: no kernel: {what}, it begins with {_show(head)}; "
        "a bzImage, an ELF kernel (PVH or multiboot) or a boot sector would be right"
    )


def _show(head: bytes) -> str:
    start = head[:8]
    return f"{start.hex(' ')} ({''.join(chr(c) if 32 <= c < 127 else '.' for c in start)})"


def _bzimage(source: Source, head: bytes) -> Image | None:
    if not bzimage.is_bzimage(head):
        return None
    parsed = bzimage.parse(source)
    unpackable = compress.supported(parsed.compression)
    architecture = X86_64 if parsed.entry64 or not parsed.tells_64bit else I386
    # What the kernel inside is in truth, and whether it has the PVH note, is seen only when it is unpacked.
    linux64 = parsed.entry64 or (unpackable and not parsed.tells_64bit)
    offered = ((LINUX64, linux64), (PVH, unpackable))
    protocols = tuple(name for name, is_offered in offered if is_offered)
    return Image("bzImage", architecture, protocols, parsed.version, parsed.compression, bzimage=parsed)


def _elf(source: Source, head: bytes) -> Image | None:
    if not head.startswith(elf_abi.ELFMAG):
        return None
    if len(head) < elf_abi.E_MACHINE + 2:
        raise ImageError(f"{source.name}: truncated: an ELF header of {len(head)} bytes")
    architecture = elf.architecture(head)
    if architecture not in RUNNABLE:
        return Image("ELF", architecture, ())
    parsed = elf.parse(source)
    header = find_multiboot(head)
    protocols = []
    if parsed.phys32_entry is not None:
        protocols.append(PVH)
    if header and (parsed.bits == 32 or header.flags & multiboot_abi.AOUT_KLUDGE):
        protocols.append(MULTIBOOT)
    if parsed.machine == elf_abi.EM_X86_64 and parsed.bits == 64 and parsed.starts_at_physical_entry:
        protocols.append(LINUX64)
    return Image("ELF", architecture, tuple(protocols), elf=parsed, multiboot=header)


def _arm_or_riscv(source: Source, head: bytes) -> Image | None:
    if head[0x38:0x3C] == b"ARM\x64":
        return Image("Image", "AArch64", ())
    if head[0x38:0x3C] == b"RSC\x05" or head[0x30:0x38] == b"RISCV\0\0\0":
        return Image("Image", "RISC-V", ())
    if head[0x24:0x28] == b"\x18\x28\x6f\x01":
        return Image("zImage", "ARM", ())
    return None


def _pe(source: Source, head: bytes) -> Image | None:
    if not head.startswith(b"MZ") or len(head) < _PE_AT + 4:
        return None
    (at,) = _U32.unpack_from(head, _PE_AT)
    signature = source.read(at, 6)
    if len(signature) < 6 or not signature.startswith(b"PE\0\0"):
        return None
    machine = int.from_bytes(signature[4:6], "little")
    packed = head[8:12] and head[4:8] == b"zimg"
    compression = head[0x18:0x38].partition(b"\0")[0].decode("ascii", "replace") if packed else None
    return Image("PE", _PE_MACHINES.get(machine, f"machine {machine:#x}"), (), compression=compression or None)


def _compressed(source: Source, head: bytes) -> Image | None:
    name = compress.detect(head)
    return Image(name, "unknown", (), compression=name) if name else None


def _multiboot(source: Source, head: bytes) -> Image | None:
    header = find_multiboot(head)
    if header is None or not header.flags & multiboot_abi.AOUT_KLUDGE:
        return None
    return Image("multiboot", I386, (MULTIBOOT,), multiboot=header)


def _raw(source: Source, head: bytes) -> Image | None:
    if head[510:512] != b"\x55\xaa":
        return None
    return Image("raw", I386, (RAW,) if source.size <= RAW_END - RAW_BASE else ())


_RECOGNISERS: tuple[Callable[[Source, bytes], Image | None], ...] = (
    _bzimage,
    _elf,
    _arm_or_riscv,
    _pe,
    _compressed,
    _multiboot,
    _raw,
)


def find_multiboot(head: bytes) -> MultibootHeader | None:
    """The multiboot header within `head`, the first `SEARCH` bytes of an image."""
    magic = _U32.pack(multiboot_abi.HEADER_MAGIC)
    offset = head.find(magic)
    while offset >= 0:
        if offset % 4 == 0 and offset + multiboot_abi.HEADER.size <= len(head):
            _, flags, checksum = multiboot_abi.HEADER.unpack_from(head, offset)
            if (multiboot_abi.HEADER_MAGIC + flags + checksum) & 0xFFFF_FFFF == 0:
                addresses = offset + multiboot_abi.HEADER.size
                if not flags & multiboot_abi.AOUT_KLUDGE:
                    return MultibootHeader(offset, flags)
                if addresses + multiboot_abi.HEADER_ADDRESSES.size <= len(head):
                    return MultibootHeader(offset, flags, *multiboot_abi.HEADER_ADDRESSES.unpack_from(head, addresses))
        offset = head.find(magic, offset + 1)
    return None
