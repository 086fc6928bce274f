"""The two 8237A DMA controllers of a PC, as registers alone: software finds them and programs them, nothing is moved.

Specification: Intel 8237A data sheet; the page registers are the PC AT's. No device of this board uses ISA DMA.
"""

from __future__ import annotations

FIRST_PORTS, SECOND_PORTS, PAGE_PORTS = (0x00, 16), (0xC0, 32), (0x80, 16)


class I8237:
    """One controller: 16 registers, `step` ports apart."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._words = [0] * 8
        self._high = False
        self._mask = 0x0F

    def read(self, offset: int, size: int) -> int:
        """An address or count, low byte first; the mask at 15; 0 elsewhere."""
        register = offset // self._step
        if register < 8:
            word, self._high = self._words[register] >> (8 if self._high else 0), not self._high
            return word & 0xFF
        return self._mask | 0xF0 if register == 15 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Addresses, counts and masks are kept."""
        value &= 0xFF
        register = offset // self._step
        if register < 8:
            shift = 8 if self._high else 0
            self._words[register] = self._words[register] & ~(0xFF << shift) | value << shift
            self._high = not self._high
        elif register == 10:
            bit = 1 << (value & 3)
            self._mask = self._mask | bit if value & 4 else self._mask & ~bit
        elif register == 12:
            self._high = False
        elif register == 13:
            self._high, self._mask = False, 0x0F
        elif register in (14, 15):
            self._mask = value & 0x0F if register == 15 else 0


class PageRegisters:
    """Ports 0x80 to 0x8f: the upper address bits of each channel, kept as written."""

    def __init__(self) -> None:
        self._pages = bytearray(16)

    def read(self, offset: int, size: int) -> int:
        """What was written."""
        return self._pages[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep it."""
        self._pages[offset] = value & 0xFF
