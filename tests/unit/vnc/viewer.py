"""A VNC client for tests, written from the specification alone: it decodes what a session says into a picture."""

from __future__ import annotations

import struct
import zlib

from bivisor.vnc import Session

RAW, COPY_RECT, HEXTILE, TIGHT, ZRLE, DESKTOP_SIZE = 0, 1, 5, 7, 16, -223
Colour = tuple[int, int, int]
FORMATS = {
    "32 little": (32, 24, 0, 1, 255, 255, 255, 16, 8, 0),
    "32 big": (32, 24, 1, 1, 255, 255, 255, 16, 8, 0),
    "32 high": (32, 24, 0, 1, 255, 255, 255, 24, 16, 8),
    "32 odd": (32, 32, 0, 1, 255, 255, 255, 20, 11, 1),
    "16": (16, 16, 0, 1, 31, 63, 31, 11, 5, 0),
    "15 big": (16, 15, 1, 1, 31, 31, 31, 10, 5, 0),
    "8": (8, 8, 0, 1, 7, 7, 3, 0, 3, 6),
}


class Viewer:
    """A client of `session` with pixels of the format that FORMATS has under this name."""

    def __init__(self, session: Session, format_: str = "32 little") -> None:
        self.session = session
        self.format = FORMATS[format_]
        self.said = bytearray()
        self.kinds: list[int] = []
        self.inflate: dict[int, zlib._Decompress] = {}

    def open(self, version: bytes = b"RFB 003.008\n") -> None:
        """The handshake, without a password."""
        assert self.take(12) == b"RFB 003.008\n"
        self.session.feed(version)
        if version == b"RFB 003.003\n":
            assert self.take(4) == b"\0\0\0\1"
        else:
            assert self.take(2) == b"\1\1"
            self.session.feed(b"\1")
        if version == b"RFB 003.008\n":
            assert self.take(4) == b"\0\0\0\0"
        self.session.feed(b"\1")
        self.begin()

    def begin(self) -> None:
        """ServerInit, and our own format."""
        width, height = struct.unpack(">HH", self.take(4))
        self.take(16)
        (length,) = struct.unpack(">I", self.take(4))
        self.name = self.take(length)
        self.resize(width, height)
        self.session.feed(b"\0\0\0\0" + struct.pack(">BBBBHHHBBB3x", *self.format))

    def resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.picture = [[0] * width for _ in range(height)]

    def take(self, size: int) -> bytes:
        self.said += self.session.take()
        assert len(self.said) >= size, (size, bytes(self.said[:100]), self.session.ended)
        found = bytes(self.said[:size])
        del self.said[:size]
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def encodings(self, *numbers: int) -> None:
        self.session.feed(struct.pack(f">BxH{len(numbers)}i", 2, len(numbers), *numbers))

    def ask(self, *, incremental: bool = True, box: tuple[int, int, int, int] | None = None) -> None:
        """Ask for an update; box is x, y, width, height."""
        self.session.feed(struct.pack(">BBHHHH", 3, incremental, *(box or (0, 0, self.width, self.height))))

    def update(self) -> bool:
        """Let the session look, and draw what it says; whether it said anything."""
        self.session.tick()
        self.said += self.session.take()
        if not self.said:
            return False
        assert self.take(2)[0] == 0
        self.kinds = []
        for _ in range(self.number(2)):
            x, y, width, height, kind = struct.unpack(">HHHHi", self.take(12))
            self.kinds.append(kind)
            match kind:
                case 0:
                    self.draw(x, y, width, self.pixels(width * height))
                case 1:
                    self.copy(x, y, width, height, self.number(2), self.number(2))
                case 5:
                    self.hextile(x, y, width, height)
                case 7:
                    self.tight(x, y, width, height)
                case 16:
                    self.zrle(x, y, width, height)
                case -223:
                    self.resize(width, height)
                case _:
                    assert (x, y, width, height) == (0, 0, 0, 0)
        assert not self.said
        return True

    def colour(self, pixel: int) -> Colour:
        """What is to be seen, in the steps that the format has."""
        red, green, blue, *shifts = self.format[4:]
        return tuple(pixel >> shift & top for top, shift in zip((red, green, blue), shifts, strict=True))  # type: ignore[return-value]

    def colours(self) -> list[list[Colour]]:
        return [[self.colour(pixel) for pixel in row] for row in self.picture]

    def draw(self, x: int, y: int, width: int, pixels: list[int]) -> None:
        for row in range(len(pixels) // width):
            self.picture[y + row][x : x + width] = pixels[row * width : (row + 1) * width]

    def copy(self, x: int, y: int, width: int, height: int, from_x: int, from_y: int) -> None:
        rows = [row[from_x : from_x + width] for row in self.picture[from_y : from_y + height]]
        self.draw(x, y, width, [pixel for row in rows for pixel in row])

    # Pixels: whole, compact (three bytes of four where one is unused) and tight (red, green, blue)

    def whole(self, data: bytes) -> int:
        return int.from_bytes(data, "big" if self.format[2] else "little")

    def pixels(self, count: int) -> list[int]:
        size = self.format[0] // 8
        data = self.take(count * size)
        return [self.whole(data[at : at + size]) for at in range(0, len(data), size)]

    @property
    def compact_size(self) -> int:
        return 3 if self.format[0] == 32 and self.format[1] <= 24 else self.format[0] // 8

    def compact(self, data: bytes) -> int:
        if self.compact_size != 3:
            return self.whole(data)
        is_low = max(self.format[7:]) <= 16
        return self.whole(data) if is_low else self.whole(data) << 8

    @property
    def tight_size(self) -> int:
        return 3 if self.format[:2] == (32, 24) else self.format[0] // 8

    def tight_pixel(self, data: bytes) -> int:
        if self.tight_size != 3:
            return self.whole(data)
        return sum(value << shift for value, shift in zip(data, self.format[7:], strict=True))

    def hextile(self, x: int, y: int, width: int, height: int) -> None:
        back = front = 0
        for top in range(0, height, 16):
            for left in range(0, width, 16):
                wide, high = min(16, width - left), min(16, height - top)
                kind = self.number(1)
                if kind & 1:
                    self.draw(x + left, y + top, wide, self.pixels(wide * high))
                    continue
                if kind & 2:
                    (back,) = self.pixels(1)
                if kind & 4:
                    (front,) = self.pixels(1)
                self.draw(x + left, y + top, wide, [back] * (wide * high))
                for _ in range(self.number(1) if kind & 8 else 0):
                    place, size = self.number(1), self.number(1)
                    w, h = (size >> 4) + 1, (size & 15) + 1
                    self.draw(x + left + (place >> 4), y + top + (place & 15), w, [front] * (w * h))

    def tight(self, x: int, y: int, width: int, height: int) -> None:
        assert width <= 2048
        control, size = self.number(1), self.tight_size
        if control == 0x80:
            self.draw(x, y, width, [self.tight_pixel(self.take(size))] * (width * height))
        elif control == 0x40:
            assert self.take(2) == b"\1\1"
            colours = [self.tight_pixel(self.take(size)) for _ in range(2)]
            data = self.tight_data((width + 7) // 8 * height)
            self.draw(x, y, width, bits(data, width, height, colours))
        else:
            assert control == 0
            data = self.tight_data(width * height * size)
            self.draw(x, y, width, [self.tight_pixel(data[at : at + size]) for at in range(0, len(data), size)])

    def tight_data(self, size: int) -> bytes:
        if size < 12:
            return self.take(size)
        length = shift = 0
        while True:
            byte = self.number(1)
            length |= (byte & 0x7F if shift < 14 else byte) << shift
            shift += 7
            if not byte & 0x80 or shift == 21:
                break
        data = self.inflate.setdefault(TIGHT, zlib.decompressobj()).decompress(self.take(length))
        assert len(data) == size
        return data

    def zrle(self, x: int, y: int, width: int, height: int) -> None:
        data = self.inflate.setdefault(ZRLE, zlib.decompressobj()).decompress(self.take(self.number(4)))
        at, size = 0, self.compact_size
        for top in range(0, height, 64):
            for left in range(0, width, 64):
                wide, high = min(64, width - left), min(64, height - top)
                kind = data[at]
                at += 1
                if kind == 0:
                    raw = data[at : at + wide * high * size]
                    at += len(raw)
                    pixels = [self.compact(raw[i : i + size]) for i in range(0, len(raw), size)]
                elif kind == 1:
                    pixels = [self.compact(data[at : at + size])] * (wide * high)
                    at += size
                else:
                    assert kind == 2
                    colours = [self.compact(data[at + i * size : at + (i + 1) * size]) for i in range(2)]
                    at += 2 * size
                    packed = (wide + 7) // 8 * high
                    pixels = bits(data[at : at + packed], wide, high, colours)
                    at += packed
                self.draw(x + left, y + top, wide, pixels)
        assert at == len(data)


def bits(data: bytes, width: int, height: int, colours: list[int]) -> list[int]:
    stride = (width + 7) // 8
    return [
        colours[data[row * stride + column // 8] >> (7 - column % 8) & 1]
        for row in range(height)
        for column in range(width)
    ]
