"""bzImage, the file that distributions install as vmlinuz: its setup header, its parts, the kernel inside.

Specification: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header". The file is the boot sector and
setup code (sectors of 512 bytes), then the protected-mode code, and somewhere in that the payload: the compressed
vmlinux, an ELF file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bivisor.abi import boot_params as abi
from bivisor.abi.elf import ELFMAG
from bivisor.boot import compress
from bivisor.boot.cache import Cache
from bivisor.boot.source import Source
from bivisor.errors import ImageError

_SECTOR = 512
_HEAD = 0x1000
_MAX_VERSION = 512
_OLDEST = 0x0202
_HAS_CMDLINE_SIZE = 0x0206
_HAS_PAYLOAD = 0x0208
_HAS_XLOADFLAGS = 0x020C


@dataclass(frozen=True, slots=True)
class BzImage:
    """A checked bzImage. Offsets are in the file; `compression` is None where there is no payload of a known format."""

    header: abi.SetupHeader
    raw_header: bytes
    code_offset: int
    payload_offset: int
    payload_length: int
    compression: str | None
    version: str | None

    @property
    def tells_64bit(self) -> bool:
        """Whether the header is new enough to say if the kernel is a 64-bit one."""
        return self.header.version >= _HAS_XLOADFLAGS

    @property
    def entry64(self) -> bool:
        """Whether the protected-mode code has the 64-bit entry point."""
        return bool(self.header.xloadflags & abi.XLF_KERNEL_64)

    @property
    def above_4g(self) -> bool:
        """Whether the kernel takes an initrd above 4 GiB."""
        return bool(self.header.xloadflags & abi.XLF_CAN_BE_LOADED_ABOVE_4G)


def is_bzimage(head: bytes) -> bool:
    """Whether a file that begins with `head` has the setup header, or ends before it after the boot sector of one."""
    if len(head) < abi.HEADER_AT + 4:
        # A boot sector would not begin with the magic of an EFI program, but that of a kernel does.
        return head[:2] == b"MZ" and head[abi.BOOT_FLAG_AT : abi.BOOT_FLAG_AT + 2] == b"\x55\xaa"
    return head[abi.HEADER_AT : abi.HEADER_AT + 4] == abi.HEADER


def parse(source: Source) -> BzImage:
    """Read and check the setup header of `source`. ImageError says which part is missing, and how many bytes of it."""
    name = source.name
    head = source.read(0, _HEAD)
    if len(head) < abi.HEADER_AT + 6:
        raise ImageError(f"{name}: truncated: the setup header of the bzImage is missing")
    # What lies beyond the header's own end is code of an older kernel and not a field.
    end = min(abi.HEADER_AT + head[abi.JUMP_LENGTH], abi.SETUP_HEADER_LIMIT)
    raw = head[abi.SETUP_HEADER_START : end]
    if len(head) < end:
        raise ImageError(f"{name}: truncated: {end - len(head)} bytes of the bzImage's setup header are missing")
    header = abi.SetupHeader._make(abi.SETUP_HEADER.unpack_from(raw.ljust(abi.SETUP_HEADER.size, b"\0")))
    header = _known(header)
    if header.version < _OLDEST or not header.loadflags & abi.LOADED_HIGH:
        version = f"{header.version >> 8}.{header.version & 0xFF:02}"
        raise ImageError(
            f"{name}: a kernel of boot protocol {version} for low memory; a bzImage of 2.02 or newer works"
        )

    code = ((header.setup_sects or 4) + 1) * _SECTOR
    parts = [("setup code", 0, code), ("protected-mode code", code, header.syssize * 16)]
    payload = code + header.payload_offset
    compression = None
    if header.payload_length:
        compression = compress.detect(source.read(payload, 16))
        parts.insert(1, (f"payload{f' ({compression})' if compression else ''}", payload, header.payload_length))
    for part, start, length in parts:
        if missing := max(0, start + length - source.size):
            raise ImageError(
                f"{name}: truncated: the {part} of the bzImage lacks {min(missing, length)} of {length} bytes"
            )
    version_at = header.kernel_version + _SECTOR
    text = source.read(version_at, _MAX_VERSION).partition(b"\0")[0] if header.kernel_version else b""
    return BzImage(
        header, raw, code, payload, header.payload_length, compression, text.decode("ascii", "replace") or None
    )


def payload(source: Source, image: BzImage, cache: Cache) -> Source | None:
    """The vmlinux inside, to be closed by the caller; None where its compression cannot be undone here.

    ImageError if the payload is damaged.
    """
    name, offset, length = image.compression, image.payload_offset, image.payload_length
    if name is None or not compress.supported(name):
        if source.read(offset, 4) != ELFMAG or not length:
            return None
        return Source(source.name, data=source.read(offset, length))
    what = f"{source.name}: the payload of the bzImage"
    if length < 8 or length > compress.LIMIT:
        raise ImageError(f"{what} has {length} bytes")
    # Its last four bytes are the unpacked size, which gzip has anyway and which is appended to the other formats.
    size = int.from_bytes(source.read(offset + length - 4, 4), "little")

    def unpack() -> Iterable[bytes]:
        data = source.read(offset, length if name == "gzip" else length - 4)
        total = 0
        for piece in compress.decompress(name, data, what):
            total += len(piece)
            if total > size:
                break
            yield piece
        if total != size:
            raise ImageError(f"{what} is damaged: it does not unpack to the {size} bytes that it has to give")

    return cache(source, offset, length, unpack)


def _known(header: abi.SetupHeader) -> abi.SetupHeader:
    """`header` with the values that hold for a protocol which does not have the field yet."""
    version = header.version
    if version < _HAS_CMDLINE_SIZE:
        header = header._replace(cmdline_size=255)
    if version < _HAS_PAYLOAD:
        header = header._replace(payload_offset=0, payload_length=0)
    if version < _HAS_XLOADFLAGS:
        header = header._replace(xloadflags=0)
    return header
