"""Pixels in the form that a client wants.

Pillow packs the usual forms. For any other, a table for each colour and byte says what the colour adds to the byte, and
the three results are one number after another OR.

Specification: RFC 6143, 7.4 "Pixel Format Data Structure"; CPIXEL: 7.7.5; TPIXEL: rfbproto "Tight Encoding".
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL.Image import Image

from bivisor.abi import rfb
from bivisor.vnc.contract import ProtocolError

Colour = tuple[int, int, int]
_PACKERS = ("BGRX", "RGBX", "XRGB", "XBGR")
_CHANNELS = "RGB"


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """`maxima` and `shifts` are those of red, green and blue. ProtocolError for one that holds no colours."""

    bits: int
    depth: int
    big_endian: bool
    maxima: Colour
    shifts: Colour
    true_colour: bool = True

    def __post_init__(self) -> None:
        fits = all(
            top > 0 and top << shift < 1 << self.bits for top, shift in zip(self.maxima, self.shifts, strict=True)
        )
        if self.bits not in (8, 16, 32) or not fits:
            raise ProtocolError("a pixel format that holds no colours")

    @classmethod
    def parse(cls, raw: bytes) -> PixelFormat:
        """From its 16 bytes. One with a colour map gets the format of that which it will be sent."""
        bits, depth, big, true, *rest = rfb.PIXEL_FORMAT.unpack(raw)
        if not true:
            if bits != 8:
                raise ProtocolError("a colour map of more than 256 colours")
            return COLOUR_MAP
        return cls(bits, depth, bool(big), (rest[0], rest[1], rest[2]), (rest[3], rest[4], rest[5]))

    def pack(self) -> bytes:
        """Its 16 bytes."""
        return rfb.PIXEL_FORMAT.pack(
            self.bits, self.depth, self.big_endian, self.true_colour, *self.maxima, *self.shifts
        )


NATIVE = PixelFormat(32, 24, False, (255, 255, 255), (16, 8, 0))
COLOUR_MAP = PixelFormat(8, 8, False, (7, 7, 3), (0, 3, 6), true_colour=False)


def colour_map() -> list[Colour]:
    """The 256 colours of `COLOUR_MAP`, with 16 bits each."""
    return [((i & 7) * 65535 // 7, (i >> 3 & 7) * 65535 // 7, (i >> 6) * 65535 // 3) for i in range(256)]


class Packer:
    """Makes pixels of one format of images."""

    def __init__(self, wanted: PixelFormat) -> None:
        self.format = wanted
        self._size = wanted.bits // 8
        self._raw = _raw_mode(wanted)
        self._tables = _tables(wanted)
        self._compact = self._raw.replace("X", "") if self._raw and wanted.depth <= 24 else ""
        self._is_tight = self._raw != "" and wanted.depth == 24

    def pixels(self, image: Image) -> bytes:
        """All pixels of `image`."""
        if self._raw:
            return image.tobytes("raw", self._raw)
        out = bytearray(image.width * image.height * self._size)
        planes = [band.tobytes() for band in image.split()]
        for at in range(self._size):
            parts = (int.from_bytes(plane.translate(self._tables[c][at])) for c, plane in enumerate(planes))
            first, second, third = parts
            out[at :: self._size] = (first | second | third).to_bytes(len(planes[0]))
        return bytes(out)

    def compact(self, image: Image) -> bytes:
        """As CPIXELs: three bytes where a fourth one would say nothing."""
        return image.tobytes("raw", self._compact) if self._compact else self.pixels(image)

    def tight(self, image: Image) -> bytes:
        """As TPIXELs: red, green and blue where the format has eight bits of each."""
        return image.tobytes() if self._is_tight else self.pixels(image)


def _raw_mode(wanted: PixelFormat) -> str:
    """Pillow's name of the format, "" where it has none."""
    if wanted.bits != 32 or wanted.maxima != (255, 255, 255) or any(shift % 8 for shift in wanted.shifts):
        return ""
    places = ["X"] * 4
    for channel, shift in zip(_CHANNELS, wanted.shifts, strict=True):
        places[3 - shift // 8 if wanted.big_endian else shift // 8] = channel
    name = "".join(places)
    return name if name in _PACKERS else ""


def _tables(wanted: PixelFormat) -> list[list[bytes]]:
    """For each colour and each byte of a pixel, what the 256 values of the colour add to it."""
    size = wanted.bits // 8
    order = "big" if wanted.big_endian else "little"
    tables = []
    for top, shift in zip(wanted.maxima, wanted.shifts, strict=True):
        values = [((value * top + 127) // 255 << shift).to_bytes(size, order) for value in range(256)]  # type: ignore[arg-type]
        tables.append([bytes(value[at] for value in values) for at in range(size)])
    return tables
