"""Port 0x61, system control port B: the gate and the output of the timer's channel 2, and the speaker.

Specification: Intel 82371SB (PIIX3) data sheet, "NMI Status and Control Register".
"""

from __future__ import annotations

from bivisor.host.loop import Clock
from bivisor.platform.i8254 import Channel

PORT = 0x61

GATE2, WRITABLE = 0x01, 0x0F
REFRESH, OUT2 = 0x10, 0x20
_REFRESH_PERIOD = 15.085e-6


class Port61:
    """One byte. Bit 4 toggles with every memory refresh, which old software counts to wait."""

    def __init__(self, channel2: Channel, clock: Clock) -> None:
        self._channel2 = channel2
        self._clock = clock
        self._control = 0

    def read(self, offset: int, size: int) -> int:
        """Control bits, refresh and OUT of channel 2."""
        refresh = REFRESH if int(self._clock.now() / _REFRESH_PERIOD) & 1 else 0
        return self._control | refresh | (OUT2 if self._channel2.out() else 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the gate of channel 2, and the speaker bits, which nobody hears."""
        self._control = value & WRITABLE
        self._channel2.set_gate(bool(value & GATE2))
