"""The card's EEPROM: 64 words, read by EERD at once, or bit by bit over the four wires of EECD.

Specification: Intel 317453, section 5.6 (map), 13.4.3 (EECD); the data sheet of a 93C46 for the wires: a start bit, two
bits of command, six of address; then 16 bits come out, high bit first, one with each rising clock.
"""

from __future__ import annotations

import struct

from bivisor.platform.e1000 import registers as r

WORDS = 64
_CHECKSUM = 0xBABA
_READ = 0b110  # the start bit, and the command
_COMMAND_BITS, _ADDRESS_BITS = 3, 6


class Eeprom:
    """Contents for a card with address `mac`. Only reading is carried out."""

    def __init__(self, mac: bytes) -> None:
        words = [0] * WORDS
        words[0:3] = struct.unpack("<3H", mac)
        words[0x0A:0x0F] = [0x0000, 0x1100, 0x1AF4, 0x100E, 0x8086]
        words[0x3F] = _CHECKSUM - sum(words[:0x3F]) & 0xFFFF
        self._words = words
        self.reset()

    def reset(self) -> None:
        """Nobody holds the wires."""
        self._wires = 0
        self._deselect()

    def word(self, address: int) -> int:
        """The word at `address`, whose upper bits are ignored."""
        return self._words[address % WORDS]

    @property
    def control(self) -> int:
        """EECD. The card gives the wires to whoever asks."""
        granted = r.EECD_GNT if self._wires & r.EECD_REQ else 0
        return self._wires | granted | r.EECD_PRES | (r.EECD_DO if self._out else 0)

    def set_control(self, value: int) -> None:
        """The guest moves the wires."""
        before, self._wires = self._wires, value & (r.EECD_SK | r.EECD_CS | r.EECD_DI | r.EECD_REQ)
        if not value & r.EECD_CS:
            self._deselect()
        elif value & ~before & r.EECD_SK:
            self._clock(bool(value & r.EECD_DI))

    def _deselect(self) -> None:
        self._taken = self._bits = 0
        self._reading: int | None = None
        self._out = True

    def _clock(self, bit: bool) -> None:
        if self._reading is not None:
            self._out = bool(self.word(self._reading >> 4) >> (15 - self._reading % 16) & 1)
            self._reading = (self._reading + 1) % (16 * WORDS)  # the next word follows
            return
        if not self._bits and not bit:
            return  # no start bit yet
        self._taken, self._bits = self._taken << 1 | bit, self._bits + 1
        if self._bits == _COMMAND_BITS + _ADDRESS_BITS:
            if self._taken >> _ADDRESS_BITS == _READ:
                self._reading = 16 * (self._taken % WORDS)
                self._out = False
            else:
                self._taken = self._bits = 0
