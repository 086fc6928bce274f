"""From registers and memory to a picture.

Specification: IBM Personal System/2 hardware interface technical reference, "Video Subsystem", "CRT Controller". What
the guest sets is taken modulo the memory: a picture of nonsense is nonsense, and no error.
"""

from __future__ import annotations

from functools import cache

from bivisor.platform.vga import dispi as d
from bivisor.platform.vga.dispi import Dispi
from bivisor.platform.vga.frame import Frame
from bivisor.platform.vga.registers import VgaRegisters

_WIDTH_MAX, _HEIGHT_MAX, _COLUMNS_MAX = 1600, 1200, 200
_BLACK = bytes(768)


def render(registers: VgaRegisters, dispi: Dispi, memory: memoryview, text: memoryview | None) -> Frame:
    """The picture. `text` has characters and attributes where they are not in the planes."""
    if dispi.enabled and dispi[d.BPP] > 4:
        return _linear(registers, dispi, memory)
    if not registers.attr_source and not dispi.enabled:
        return Frame(640, 400, 8, 640, bytes(640 * 400), _BLACK)  # the screen is off
    if not registers.gfx[6] & 1:
        return _text(registers, memory, text)
    if registers.gfx[5] & 0x40:
        return _256_colours(registers, memory)
    return _planar(registers, memory)


def characters(registers: VgaRegisters, dispi: Dispi, memory: memoryview, text: memoryview | None) -> list[str]:
    """The lines of a text screen, in code page 437; none where there are pixels, or nothing."""
    if dispi.enabled or not registers.attr_source or registers.gfx[6] & 1:
        return []
    columns, lines = _size(registers)
    columns = min(columns, _COLUMNS_MAX)
    pitch = 2 * registers.crtc[0x13] or columns
    cells = _characters(memory, text)[::2]
    starts = (_start(registers) + row * pitch for row in range(max(1, lines // ((registers.crtc[9] & 0x1F) + 1))))
    rows = (bytes(cells[(start + column) % len(cells)] for column in range(columns)) for start in starts)
    return [row.decode("cp437").rstrip("\0 ") for row in rows]


def palette_of(registers: VgaRegisters) -> bytes:
    """The palette with eight bits a colour."""
    return bytes(value << 2 | value >> 4 for value in registers.palette)


def _linear(registers: VgaRegisters, dispi: Dispi, memory: memoryview) -> Frame:
    width, height, depth = dispi[d.XRES], dispi[d.YRES], dispi[d.BPP]
    start, stride = dispi.start, dispi.stride
    pixels = bytes(memory[start : start + stride * height]).ljust(stride * height, b"\0")
    return Frame(width, height, depth, stride, pixels, palette_of(registers) if depth == 8 else b"")


def _size(registers: VgaRegisters) -> tuple[int, int]:
    """Columns and lines that are displayed."""
    crtc = registers.crtc
    lines = crtc[0x12] | (crtc[7] << 7 & 0x100) | (crtc[7] << 3 & 0x200)
    return crtc[1] + 1, min(lines + 1, _HEIGHT_MAX)


def _start(registers: VgaRegisters) -> int:
    return registers.crtc[0x0C] << 8 | registers.crtc[0x0D]


def _attribute_palette(registers: VgaRegisters) -> bytes:
    """The 16 colours that the attribute controller makes, as indices into the palette."""
    attr = registers.attr
    high = attr[0x14] << 4 & 0xC0
    if attr[0x10] & 0x80:
        return bytes(attr[i] & 0x0F | (attr[0x14] << 4 & 0xF0) for i in range(16))
    return bytes(attr[i] & 0x3F | high for i in range(16))


def _text(registers: VgaRegisters, memory: memoryview, text: memoryview | None) -> Frame:
    columns, lines = _size(registers)
    columns = min(columns, _COLUMNS_MAX)
    cell = (registers.crtc[9] & 0x1F) + 1
    rows = max(1, lines // cell)
    wide = 8 if registers.seq[1] & 1 else 9
    pitch = 2 * registers.crtc[0x13] or columns
    start = _start(registers)
    colours = _attribute_palette(registers)
    font = _font(registers, memory)
    cells = _characters(memory, text)
    cursor = _cursor(registers)
    words = memoryview(cells).cast("H")
    count = len(words)
    blink = registers.attr[0x10] & 8
    glyphs: dict[int, tuple[bytes, ...]] = {}

    def glyph(word: int, first: int = 1, last: int = 0) -> tuple[bytes, ...]:
        """The lines of a cell: its character and attribute, and the lines that are the cursor's."""
        character, attribute = word & 0xFF, word >> 8
        front, back = colours[attribute & 15], colours[attribute >> 4 & (7 if blink else 15)]
        extend = wide == 9 and 0xC0 <= character < 0xE0
        lines = font[32 * character : 32 * character + cell]
        bits = (0xFF if first <= line <= last else drawn for line, drawn in enumerate(lines))
        return tuple(_pixels(each, front, back, wide, extend) for each in bits)

    stripes: list[bytes] = []
    for row in range(rows):
        place = [(start + row * pitch + column) % count for column in range(columns)]
        shown = []
        for at in place:
            word = words[at]
            found = glyphs.get(word)
            if found is None:
                found = glyphs[word] = glyph(word)
            shown.append(found)
        if cursor is not None and cursor[0] in place:
            shown[place.index(cursor[0])] = glyph(words[cursor[0]], cursor[1], cursor[2])
        stripes += map(b"".join, zip(*shown, strict=True))
    width = columns * wide
    return Frame(width, rows * cell, 8, width, b"".join(stripes), palette_of(registers))


def _characters(memory: memoryview, text: memoryview | None) -> bytes:
    if text is not None:
        return bytes(text)
    cells = bytearray(0x8000)
    cells[0::2] = memory[0 : 4 * 0x8000 : 8]
    cells[1::2] = memory[1 : 4 * 0x8000 : 8]
    return bytes(cells)


def _font(registers: VgaRegisters, memory: memoryview) -> bytes:
    """The character generator's map A, from plane 2: 32 bytes for each character."""
    select = registers.seq[3]
    number = select & 3 | (select >> 4 & 1) << 2
    at = (number & 3) * 0x4000 + (number >> 2) * 0x2000
    return bytes(memory[4 * at + 2 : 4 * (at + 0x2000) + 2 : 4])


def _cursor(registers: VgaRegisters) -> tuple[int, int, int] | None:
    """The cursor's place and its first and last line."""
    crtc = registers.crtc
    if crtc[0x0A] & 0x20:
        return None
    return crtc[0x0E] << 8 | crtc[0x0F], crtc[0x0A] & 0x1F, crtc[0x0B] & 0x1F


@cache
def _pixels(bits: int, front: int, back: int, wide: int, extend: bool) -> bytes:
    row = bytes(front if bits >> 7 - i & 1 else back for i in range(8))
    if wide == 9:
        row += row[7:8] if extend else bytes((back,))
    return row


def _256_colours(registers: VgaRegisters, memory: memoryview) -> Frame:
    columns, lines = _size(registers)
    repeat = (registers.crtc[9] & 0x1F) + 1
    width, height = min(columns * 4, _WIDTH_MAX), max(1, lines // repeat)
    pitch = registers.crtc[0x13] * 8 or width
    start = 4 * _start(registers)
    out = b"".join(
        bytes(memory[at : at + width]).ljust(width, b"\0")
        for at in (start + row * pitch for row in range(height))
    )  # fmt: skip
    return Frame(width, height, 8, width, out, palette_of(registers))


def _planar(registers: VgaRegisters, memory: memoryview) -> Frame:
    columns, lines = _size(registers)
    columns = min(columns, _WIDTH_MAX // 8)
    repeat = (registers.crtc[9] & 0x1F) + 1
    height = max(1, lines // repeat)
    pitch = registers.crtc[0x13] * 2 or columns
    start = _start(registers)
    colours = _attribute_palette(registers)
    spread = [bytes(byte >> 7 - i & 1 for i in range(8)) for byte in range(256)]
    out = bytearray()
    for row in range(height):
        at = 4 * ((start + row * pitch) & 0xFFFF)
        data = bytes(memory[at : at + 4 * columns]).ljust(4 * columns, b"\0")
        pixels = 0
        for plane in range(4):
            bits = b"".join(spread[byte] for byte in data[plane::4])
            pixels |= int.from_bytes(bits, "big") << plane
        out += pixels.to_bytes(8 * columns, "big")
    return Frame(
        8 * columns, height, 8, 8 * columns, bytes(out.translate(colours.ljust(256, b"\0"))), palette_of(registers)
    )
