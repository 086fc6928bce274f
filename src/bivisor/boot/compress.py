"""What a compressed kernel unpacks to: formats known by their first bytes, unpacked piece by piece and within a bound.

Formats: those of Linux lib/decompress.c. Specifications: RFC 1952 (gzip), RFC 8878 (Zstandard), the XZ file format
1.0.4, the LZ4 frame format 1.6.2, whose section "Legacy frame" is what kernels use. A decompressor is imported when it
is needed, since a cached kernel needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Protocol

from bivisor.errors import ImageError

LIMIT = 1 << 30
"""No more than this many bytes come out of one payload, whatever it claims."""

_PIECE = 4 << 20
_INPUT = 256 << 10
_WINDOW = 128 << 20
_XZ_MEMORY = 512 << 20

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_LEGACY_BLOCK = 8 << 20
_LZ4_WORST = _LZ4_LEGACY_BLOCK + _LZ4_LEGACY_BLOCK // 255 + 16
_U32 = Struct("<I")

_MAGICS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\0", "XZ"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (_LZ4_LEGACY, "LZ4"),
    (b"\x04\x22\x4d\x18", "LZ4 frame"),
    (b"BZh", "bzip2"),
    (b"\x5d\x00\x00", "LZMA"),
    (b"\x89LZO\0\r\n\x1a\n", "LZO"),
)


def detect(head: bytes) -> str | None:
    """The name of the format whose magic `head` begins with, or None."""
    return next((name for magic, name in _MAGICS if head.startswith(magic)), None)


def supported(name: str | None) -> bool:
    """Whether `decompress` can unpack the format `name`."""
    return name in _DECOMPRESSORS


def decompress(name: str, data: bytes, what: str, limit: int = LIMIT) -> Iterator[bytes]:
    """The content of `data`, in pieces. What follows the end of the compressed stream is ignored.

    ImageError, which begins with `what`, if the data is damaged or more than `limit` bytes come out.
    """
    total = 0
    try:
        for piece in _DECOMPRESSORS[name](data):
            total += len(piece)
            if total > limit:
                raise ImageError(f"{what}: unpacks to more than {limit >> 20} MiB; that is no kernel")
            yield piece
    except ImageError:
        raise
    except Exception as error:  # zlib.error, LZMAError, LZ4BlockError and ZstdError have no base in common
        raise ImageError(f"{what}: the {name} data is damaged: {error}") from error


def _gzip(data: bytes) -> Iterator[bytes]:
    import zlib

    stream = zlib.decompressobj(31)
    for start in range(0, len(data), _INPUT):
        rest = data[start : start + _INPUT]
        while rest and not stream.eof:
            yield stream.decompress(rest, _PIECE)
            rest = stream.unconsumed_tail
        if stream.eof:
            return
    raise EOFError("it ends too early")


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _pump(stream: _Stream, data: bytes) -> Iterator[bytes]:
    yield stream.decompress(data, _PIECE)
    while not stream.eof:
        if stream.needs_input:
            raise EOFError("it ends too early")
        yield stream.decompress(b"", _PIECE)


def _xz(data: bytes) -> Iterator[bytes]:
    import lzma

    return _pump(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), data)


def _lzma(data: bytes) -> Iterator[bytes]:
    import lzma

    return _pump(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_XZ_MEMORY), data)


def _bzip2(data: bytes) -> Iterator[bytes]:
    import bz2

    return _pump(bz2.BZ2Decompressor(), data)


def _lz4_frame(data: bytes) -> Iterator[bytes]:
    from lz4.frame import LZ4FrameDecompressor

    return _pump(LZ4FrameDecompressor(), data)  # type: ignore[no-untyped-call]


def _zstandard(data: bytes) -> Iterator[bytes]:
    import zstandard

    # Not decompressobj(): its output has no bound for a given input.
    with zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(data) as reader:
        while piece := reader.read(_PIECE):
            yield piece


def _lz4_legacy(data: bytes) -> Iterator[bytes]:
    from lz4.block import decompress as unpack  # type: ignore[attr-defined]

    offset = len(_LZ4_LEGACY)
    while offset + _U32.size <= len(data):
        (size,) = _U32.unpack_from(data, offset)
        offset += _U32.size
        if data.startswith(_LZ4_LEGACY, offset - _U32.size):
            continue  # another frame
        if not size:
            return
        if size > _LZ4_WORST or offset + size > len(data):
            raise EOFError(f"a block of {size} bytes where {len(data) - offset} are left")
        yield unpack(data[offset : offset + size], uncompressed_size=_LZ4_LEGACY_BLOCK)
        offset += size


_DECOMPRESSORS: dict[str | None, Callable[[bytes], Iterator[bytes]]] = {
    "gzip": _gzip,
    "XZ": _xz,
    "LZMA": _lzma,
    "bzip2": _bzip2,
    "LZ4": _lz4_legacy,
    "LZ4 frame": _lz4_frame,
    "Zstandard": _zstandard,
}
