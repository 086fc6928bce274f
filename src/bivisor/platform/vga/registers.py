"""The registers of a VGA: sequencer, graphics controller, CRT controller, attribute controller, palette.

Specification: IBM Personal System/2 hardware interface technical reference, "Video Subsystem" (VGA function).
"""

from __future__ import annotations

from collections.abc import Callable

from bivisor.host.loop import Clock

FIRST_PORT, PORTS = 0x3B0, 0x30
_FRAME, _LINE = 1 / 70, 1 / 31_469
_SEQ_MASKS = bytes((0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0, 0, 0))


class VgaRegisters:
    """The ports 0x3b0 to 0x3df. `changed()` is called after what may alter how the guest sees the memory."""

    def __init__(self, clock: Clock, changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self.misc = 0
        self.seq = bytearray(8)
        self.gfx = bytearray(16)
        self.crtc = bytearray(256)
        self.attr = bytearray(32)
        self.palette = bytearray(768)  # six bits a colour
        self.dac_mask = 0xFF
        self._seq_index = self._gfx_index = self._crtc_index = self._attr_index = 0
        self.attr_source = 0  # PAS: the palette drives the screen
        self._attr_is_data = False
        self._dac_read = self._dac_write = 0
        self._dac_state = 3

    def read(self, offset: int, size: int) -> int:
        """A register; wider accesses are bytes, one after the other."""
        if size > 1:
            return sum(self.read(offset + i, 1) << 8 * i for i in range(size))
        port = FIRST_PORT + offset
        if not self._decodes(port):
            return 0xFF
        match port:
            case 0x3C0:
                return self._attr_index | self.attr_source
            case 0x3C1:
                return self.attr[self._attr_index]
            case 0x3C2:
                return 0x10
            case 0x3C4:
                return self._seq_index
            case 0x3C5:
                return self.seq[self._seq_index]
            case 0x3C6:
                return self.dac_mask
            case 0x3C7:
                return self._dac_state
            case 0x3C8:
                return self._dac_write // 3 & 0xFF
            case 0x3C9:
                value = self.palette[self._dac_read]
                self._dac_read = (self._dac_read + 1) % 768
                return value
            case 0x3CC:
                return self.misc
            case 0x3CE:
                return self._gfx_index
            case 0x3CF:
                return self.gfx[self._gfx_index]
            case 0x3B4 | 0x3D4:
                return self._crtc_index
            case 0x3B5 | 0x3D5:
                return self.crtc[self._crtc_index]
            case 0x3BA | 0x3DA:
                self._attr_is_data = False
                return self._input_status()
            case _:
                return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A register; wider accesses are bytes, one after the other."""
        for i in range(size):
            self._write(FIRST_PORT + offset + i, value >> 8 * i & 0xFF)

    def _decodes(self, port: int) -> bool:
        """The CRT controller answers at 0x3b. or 0x3d., as the miscellaneous output register says."""
        if 0x3C0 <= port < 0x3D0:
            return True
        return bool(self.misc & 1) == (port >= 0x3D0)

    def _write(self, port: int, value: int) -> None:
        if not self._decodes(port):
            return
        match port:
            case 0x3C0:
                self._write_attr(value)
            case 0x3C2:
                self.misc = value
            case 0x3C4:
                self._seq_index = value & 7
            case 0x3C5:
                self.seq[self._seq_index] = value & _SEQ_MASKS[self._seq_index]
                self._changed()
            case 0x3C6:
                self.dac_mask = value
            case 0x3C7:
                self._dac_read, self._dac_state = 3 * value, 3
            case 0x3C8:
                self._dac_write, self._dac_state = 3 * value, 0
            case 0x3C9:
                self.palette[self._dac_write] = value & 0x3F
                self._dac_write = (self._dac_write + 1) % 768
            case 0x3CE:
                self._gfx_index = value & 15
            case 0x3CF:
                self.gfx[self._gfx_index] = value
                self._changed()
            case 0x3B4 | 0x3D4:
                self._crtc_index = value
            case 0x3B5 | 0x3D5:
                self._write_crtc(value)

    def _write_attr(self, value: int) -> None:
        if self._attr_is_data:
            index = self._attr_index
            self.attr[index] = value & 0x3F if index < 16 else value
        else:
            self._attr_index, self.attr_source = value & 0x1F, value & 0x20
        self._attr_is_data = not self._attr_is_data

    def _write_crtc(self, value: int) -> None:
        index = self._crtc_index
        if self.crtc[0x11] & 0x80 and index < 8:  # registers 0 to 7 are protected, but for one bit
            if index == 7:
                self.crtc[7] = self.crtc[7] & ~0x10 | value & 0x10
            return
        self.crtc[index] = value

    def _input_status(self) -> int:
        """Retrace bits by the time of day: who waits for either edge sees it."""
        now = self._clock.now()
        vertical = now % _FRAME > 0.93 * _FRAME
        return (0x08 if vertical else 0) | (0x01 if vertical or now % _LINE > 0.8 * _LINE else 0)
