"""The ports that reset a PC: the reset control register at 0xcf9 and system control port A at 0x92.

Specification: Intel 82371SB (PIIX3) data sheet, "RC: Reset Control Register"; PS/2 technical reference, "System Control
Port A". Port 0xcf9 lies inside the PCI configuration address register, which answers only to four bytes at once, so
`PciConfig` (platform/pci/config.py) hands single bytes there on to this device.
"""

from __future__ import annotations

from collections.abc import Callable

from bivisor.platform.events import OnEvent, Reset

RESET_PORT, FAST_RESET_PORT = 0xCF9, 0x92

RCPU = 0x04
FAST_RESET, FAST_A20 = 0x01, 0x02


class ResetControl:
    """Port 0xcf9. A reset happens when RCPU goes from 0 to 1."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        """The kind of reset last chosen; RCPU reads as 0."""
        return self._value & ~RCPU

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose the kind of reset, and reset."""
        rising = value & ~self._value & RCPU
        self._value = value & 0x0E
        if rising:
            self._on_event(Reset("port 0xcf9"))


class FastReset:
    """Port 0x92. Without `a20(bool)` A20 is always on, whatever is written."""

    def __init__(self, on_event: OnEvent, a20: Callable[[bool], None] | None = None) -> None:
        self._on_event = on_event
        self._a20 = a20
        self._value = FAST_A20

    def read(self, offset: int, size: int) -> int:
        """Whether A20 is enabled; no reset."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Gate A20, and reset where bit 0 is set."""
        if self._a20 is not None and (value ^ self._value) & FAST_A20:
            self._value = value & FAST_A20
            self._a20(bool(value & FAST_A20))
        if value & FAST_RESET:
            self._on_event(Reset("port 0x92"))
