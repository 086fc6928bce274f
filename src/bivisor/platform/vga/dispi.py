"""Bochs' graphics extensions: modes of any size with a linear frame buffer, by two ports or a BAR.

Specification: Bochs, "VBE display interface" (iodev/display/vga); QEMU docs/specs/standard-vga.rst.
"""

from __future__ import annotations

from collections.abc import Callable

INDEX_PORT, PORTS = 0x1CE, 3
VERSION = 0xB0C5
_ID, XRES, YRES, BPP, ENABLE, BANK, VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY_64K = range(11)
ENABLED, GET_CAPS, LFB, NO_CLEAR = 0x01, 0x02, 0x40, 0x80
XRES_MAX, YRES_MAX = 2560, 1600
_DEPTHS = (4, 8, 15, 16, 24, 32)


class Dispi:
    """The registers. `changed()` is called after each change of mode or bank, `clear()` where a mode begins empty."""

    def __init__(self, memory_size: int, changed: Callable[[], None], clear: Callable[[], None]) -> None:
        self._size = memory_size
        self._changed = changed
        self._clear = clear
        self._index = 0
        self._registers = [VERSION, 640, 480, 8, 0, 0, 640, 480, 0, 0, memory_size >> 16]

    def __getitem__(self, index: int) -> int:
        return self._registers[index]

    @property
    def enabled(self) -> bool:
        """Whether a mode of the extensions is on."""
        return bool(self._registers[ENABLE] & ENABLED)

    @property
    def stride(self) -> int:
        """Bytes from one line to the next."""
        return self._registers[VIRT_WIDTH] * ((self._registers[BPP] + 7) // 8)

    @property
    def start(self) -> int:
        """Where in the memory the picture begins."""
        return self._registers[Y_OFFSET] * self.stride + self._registers[X_OFFSET] * ((self._registers[BPP] + 7) // 8)

    def read(self, offset: int, size: int) -> int:
        """The index at 0, the data at 1 (and at 2, where it is aligned)."""
        return self._index if offset == 0 else self.get(self._index)

    def write(self, offset: int, size: int, value: int) -> None:
        """Likewise."""
        if offset == 0:
            self._index = value & 0xFFFF
        else:
            self.set(self._index, value & 0xFFFF)

    def get(self, index: int) -> int:
        """Register `index`; the limits where the guest asks for them."""
        if self._registers[ENABLE] & GET_CAPS and index in (XRES, YRES, BPP):
            return (XRES_MAX, YRES_MAX, 32)[index - XRES]
        return self._registers[index] if index < len(self._registers) else 0

    def set(self, index: int, value: int) -> None:
        """Write register `index`; values that make no mode are not taken."""
        registers = self._registers
        match index:
            case 0 if 0xB0C0 <= value <= VERSION:  # who looks for a version writes it, and sees whether it stays
                registers[_ID] = value
            case 1 if 0 < value <= XRES_MAX:
                registers[XRES] = value & ~7 or 8
            case 2 if 0 < value <= YRES_MAX:
                registers[YRES] = value
            case 3 if value in _DEPTHS:
                registers[BPP] = value
            case 4:
                self._enable(value)
            case 5 if value < registers[MEMORY_64K]:
                registers[BANK] = value
                self._changed()
            case 6 if self._fits(value):
                registers[VIRT_WIDTH] = value
                self._set_height()
            case 8 | 9:
                before = registers[index]
                registers[index] = value
                if self.start + registers[YRES] * self.stride > self._size:
                    registers[index] = before

    def _enable(self, value: int) -> None:
        registers = self._registers
        begins = value & ENABLED and not registers[ENABLE] & ENABLED
        registers[ENABLE] = value
        if begins:
            registers[BANK] = registers[X_OFFSET] = registers[Y_OFFSET] = 0
            if not self._fits(registers[XRES]):
                registers[ENABLE] &= ~ENABLED
                return
            registers[VIRT_WIDTH] = registers[XRES]
            self._set_height()
            if not value & NO_CLEAR:
                self._clear()
        self._changed()

    def _fits(self, width: int) -> bool:
        """A picture that wide, with the height and depth that are set, is inside the memory."""
        registers = self._registers
        wide = width * ((registers[BPP] + 7) // 8)
        return width >= registers[XRES] and wide * registers[YRES] <= self._size

    def _set_height(self) -> None:
        self._registers[VIRT_HEIGHT] = min(0xFFFF, self._size // max(1, self.stride))
