"""The encodings of a rectangle: raw, hextile, tight and ZRLE.

Rectangles of one colour and of two, which is what a screen of text is made of, are told in few bytes; for the rest
there is zlib. Specification: RFC 6143, 7.7; rfbproto, "Tight Encoding".
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol

from PIL import ImageChops
from PIL.Image import Image, new

from bivisor.abi import rfb
from bivisor.vnc.pixels import Colour, Packer

_LEVEL = 1
_TILE = 16
_ONES = bytes([0, *[255] * 255])


class Encoder(Protocol):
    """One encoding for one client; it may remember what it sent."""

    def encode(self, image: Image, packer: Packer) -> bytes:
        """The data of a rectangle that shows `image`."""


class Raw:
    """7.7.1: the pixels."""

    def encode(self, image: Image, packer: Packer) -> bytes:
        """See `Encoder.encode`."""
        return packer.pixels(image)


class Hextile:
    """7.7.4: tiles of 16 by 16, each of one colour, a background with rectangles on it, or raw."""

    def encode(self, image: Image, packer: Packer) -> bytes:
        """See `Encoder.encode`."""
        return b"".join(self._tile(tile, packer) for tile in _tiles(image, _TILE))

    def _tile(self, tile: Image, packer: Packer) -> bytes:
        colours = _colours(tile)
        if len(colours) == 1:
            return bytes((rfb.HEXTILE_BACKGROUND,)) + _pixel(packer.pixels, colours[0])
        raw = bytes((rfb.HEXTILE_RAW,)) + packer.pixels(tile)
        if not colours:
            return raw
        runs = list(_runs(_mask(tile, colours[0]), tile.width))
        kind = rfb.HEXTILE_BACKGROUND | rfb.HEXTILE_FOREGROUND | rfb.HEXTILE_SUBRECTS
        head = bytes((kind,)) + _pixel(packer.pixels, colours[0]) + _pixel(packer.pixels, colours[1])
        pieces = b"".join(bytes((x << 4 | y, (width - 1) << 4)) for x, y, width in runs)
        told = head + bytes((len(runs),)) + pieces
        return min(told, raw, key=len)


class Tight:
    """A fill, or pixels or one bit a pixel through zlib; rectangles are at most 2048 wide."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(_LEVEL)

    def encode(self, image: Image, packer: Packer) -> bytes:
        """See `Encoder.encode`."""
        colours = _colours(image)
        if len(colours) == 1:
            return bytes((rfb.TIGHT_FILL,)) + _pixel(packer.tight, colours[0])
        if colours:
            head = bytes((rfb.TIGHT_EXPLICIT_FILTER, rfb.TIGHT_FILTER_PALETTE, 1))
            head += _pixel(packer.tight, colours[0]) + _pixel(packer.tight, colours[1])
            return head + self._packed(_mask(image, colours[0]).tobytes())
        return b"\0" + self._packed(packer.tight(image))

    def _packed(self, data: bytes) -> bytes:
        if len(data) <= rfb.TIGHT_UNCOMPRESSED_MAX:
            return data
        packed = self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        return _compact_length(len(packed)) + packed


class Zrle:
    """7.7.6: tiles of 64 by 64, each of one colour, of two, or raw; all of it through zlib."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(_LEVEL)

    def encode(self, image: Image, packer: Packer) -> bytes:
        """See `Encoder.encode`."""
        data = b"".join(self._tile(tile, packer) for tile in _tiles(image, rfb.ZRLE_TILE))
        packed = self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        return len(packed).to_bytes(4) + packed

    def _tile(self, tile: Image, packer: Packer) -> bytes:
        colours = _colours(tile)
        if not colours:
            return bytes((rfb.ZRLE_RAW,)) + packer.compact(tile)
        pixels = b"".join(_pixel(packer.compact, colour) for colour in colours)
        if len(colours) == 1:
            return bytes((rfb.ZRLE_SOLID,)) + pixels
        return bytes((rfb.ZRLE_TWO_COLOURS,)) + pixels + _mask(tile, colours[0]).tobytes()


ENCODERS: dict[int, type[Encoder]] = {rfb.RAW: Raw, rfb.HEXTILE: Hextile, rfb.TIGHT: Tight, rfb.ZRLE: Zrle}


def _tiles(image: Image, size: int) -> Iterator[Image]:
    for top in range(0, image.height, size):
        for left in range(0, image.width, size):
            yield image.crop((left, top, min(left + size, image.width), min(top + size, image.height)))


def _colours(image: Image) -> list[Colour]:
    """The colours of an image that has one or two, the more frequent one first; none for more."""
    found = image.getcolors(2)
    return [colour for _, colour in sorted(found, reverse=True)] if found else []  # type: ignore[misc]


def _mask(image: Image, background: Colour) -> Image:
    """Black where `image` is `background`, white elsewhere; mode 1, whose bytes are rows of bits."""

    red, green, blue = ImageChops.difference(image, new("RGB", image.size, background)).split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue).point(list(_ONES), "1")


def _runs(mask: Image, width: int) -> Iterator[tuple[int, int, int]]:
    """The white runs of each row: x, y and width."""
    data = mask.convert("L").tobytes()
    for at in range(0, len(data), width):
        row, x = data[at : at + width], 0
        while (x := row.find(b"\xff", x)) >= 0:
            end = row.find(b"\0", x)
            end = width if end < 0 else end
            yield x, at // width, end - x
            x = end


def _pixel(pack: Pack, colour: Colour) -> bytes:

    return pack(new("RGB", (1, 1), colour))


class Pack(Protocol):
    """One of a packer's methods."""

    def __call__(self, image: Image) -> bytes:
        """The pixels of `image`."""


def _compact_length(size: int) -> bytes:
    """One to three bytes, seven bits and seven and eight."""
    if size < 1 << 7:
        return bytes((size,))
    if size < 1 << 14:
        return bytes((size & 0x7F | 0x80, size >> 7))
    return bytes((size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14))
