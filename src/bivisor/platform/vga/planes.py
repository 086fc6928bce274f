"""The window at 0xa0000 as the graphics controller makes it: four planes, read and write modes, odd/even, chained.

Specification: IBM Personal System/2 hardware interface technical reference, "Video Subsystem", "Graphics Controller".
A byte of plane p at address a is kept at 4 * a + p of the memory, so that chained pixels are linear.
"""

from __future__ import annotations

from bivisor.platform.vga.registers import VgaRegisters

BASE, SIZE = 0xA_0000, 0x2_0000
_WINDOWS = ((0x00000, 0x20000), (0x00000, 0x10000), (0x10000, 0x8000), (0x18000, 0x8000))
_PLANES_END = 0x1_0000


class Planes:
    """The device of the window. `memory` is the adapter's; `bank` the offset that the extensions add."""

    def __init__(self, registers: VgaRegisters, memory: memoryview) -> None:
        self._registers = registers
        self._memory = memory
        self._latch = bytearray(4)
        self.bank = 0

    @property
    def is_chained(self) -> bool:
        """Whether four neighbouring addresses are the four planes."""
        return bool(self._registers.seq[4] & 0x08)

    def window(self) -> tuple[int, int]:
        """Where in the 128 KiB the memory answers: (offset, length)."""
        return _WINDOWS[self._registers.gfx[6] >> 2 & 3]

    def read(self, offset: int, size: int) -> int:
        """Bytes, one after the other."""
        return sum(self._read(offset + i) << 8 * i for i in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        """Bytes, one after the other."""
        for i in range(size):
            self._write(offset + i, value >> 8 * i & 0xFF)

    def _read(self, offset: int) -> int:
        start, length = self.window()
        at = offset - start
        if not 0 <= at < length:
            return 0xFF
        gfx, memory = self._registers.gfx, self._memory
        if self.is_chained:
            at += self.bank
            return memory[at] if at < len(memory) else 0xFF
        plane = gfx[4] & 3
        if gfx[5] & 0x10:
            plane, at = plane & 2 | at & 1, at & ~1
        if at >= _PLANES_END:
            return 0xFF
        latch = self._latch
        latch[:] = memory[4 * at : 4 * at + 4]
        if not gfx[5] & 0x08:
            return latch[plane]
        value = 0xFF  # read mode 1: which pixels have the colour that is looked for
        for p in range(4):
            if gfx[7] >> p & 1:
                value &= ~(latch[p] ^ (0xFF if gfx[2] >> p & 1 else 0))
        return value & 0xFF

    def _write(self, offset: int, value: int) -> None:
        start, length = self.window()
        at = offset - start
        if not 0 <= at < length:
            return
        registers, memory = self._registers, self._memory
        mask = registers.seq[2]
        if self.is_chained:
            at += self.bank
            if mask >> (at & 3) & 1 and at < len(memory):
                memory[at] = value
            return
        gfx = registers.gfx
        if not registers.seq[4] & 0x04:  # odd and even addresses are odd and even planes
            mask &= 0b1010 if at & 1 else 0b0101
            at &= ~1
        if at >= _PLANES_END:
            return
        for plane, byte in enumerate(self._written(gfx, value)):
            if mask >> plane & 1:
                memory[4 * at + plane] = byte

    def _written(self, gfx: bytearray, value: int) -> list[int]:
        """What goes to each plane, by the write mode."""
        mode, latch, bits = gfx[5] & 3, self._latch, gfx[8]
        if mode == 1:
            return list(latch)
        turned = (value >> (gfx[3] & 7) | value << 8 - (gfx[3] & 7)) & 0xFF
        if mode == 0:
            values = [(0xFF if gfx[0] >> p & 1 else 0) if gfx[1] >> p & 1 else turned for p in range(4)]
        elif mode == 2:
            values = [0xFF if value >> p & 1 else 0 for p in range(4)]
        else:
            bits &= turned
            values = [0xFF if gfx[0] >> p & 1 else 0 for p in range(4)]
        match gfx[3] >> 3 & 3:
            case 1:
                values = [v & old for v, old in zip(values, latch, strict=True)]
            case 2:
                values = [v | old for v, old in zip(values, latch, strict=True)]
            case 3:
                values = [v ^ old for v, old in zip(values, latch, strict=True)]
        return [v & bits | old & ~bits & 0xFF for v, old in zip(values, latch, strict=True)]
