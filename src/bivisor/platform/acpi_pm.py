"""ACPI fixed hardware: PM1a event and control, the power management timer and general-purpose event block 0.

Specification: ACPI 6.5, section 4.8.3 "Fixed Hardware Registers". The machine is in ACPI mode from the start (the FADT
has no SMI command port), so SCI_EN is always set. The only sleeping state is S5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.host.loop import Clock, Timer
from bivisor.platform.events import OnEvent, PowerOff

BASE_PORT, PORTS = 0x600, 16
PM1_EVENT, PM1_CONTROL, PM_TIMER, GPE0 = 0, 4, 8, 12
PM1_EVENT_LENGTH, PM1_CONTROL_LENGTH, PM_TIMER_LENGTH, GPE0_LENGTH = 4, 2, 4, 4
SCI_IRQ = 9
S5_TYPE = 5
TIMER_FREQUENCY = 3_579_545

TMR_STS, GBL_STS, PWRBTN_STS, SLPBTN_STS, RTC_STS, WAK_STS = 1 << 0, 1 << 5, 1 << 8, 1 << 9, 1 << 10, 1 << 15
_EVENTS = TMR_STS | GBL_STS | PWRBTN_STS | SLPBTN_STS | RTC_STS
SCI_EN, SLP_EN = 1 << 0, 1 << 13
_CONTROL_KEPT = 0x1C02
_BLOCK = struct.Struct("<HHHHIHH")
_STATUS, _ENABLE, _CONTROL, _GPE_STATUS, _GPE_ENABLE = 0, 1, 2, 5, 6
_HALF_TURN = 1 << 31


class AcpiPm:
    """The block of registers. `sci` is the system control interrupt, level-triggered; `s5_type` the SLP_TYP of S5."""

    def __init__(self, clock: Clock, sci: Callable[[bool], None], on_event: OnEvent, *, s5_type: int = S5_TYPE) -> None:
        self._s5_type = s5_type
        self._clock = clock
        self._sci = sci
        self._on_event = on_event
        self._status = self._enable = self._gpe_status = self._gpe_enable = 0
        self._control = SCI_EN
        self._half_turns = self._ticks() // _HALF_TURN
        self._timer: Timer | None = None

    def read(self, offset: int, size: int) -> int:
        """Any part of the block."""
        if offset == PM_TIMER and size == PM_TIMER_LENGTH:
            return self._ticks() & 0xFFFF_FFFF
        block = bytearray(_BLOCK.size)
        timer = self._ticks() & 0xFFFF_FFFF
        self._count_half_turns()
        gpe = (self._gpe_status, self._gpe_enable)
        _BLOCK.pack_into(block, 0, self._status, self._enable, self._control, 0, timer, *gpe)
        return int.from_bytes(block[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Any part of the block, whose registers are written byte by byte: status bits are cleared by ones."""
        block = bytearray(_BLOCK.size)
        written = bytearray(_BLOCK.size)
        end = min(offset + size, _BLOCK.size)
        block[offset:end] = value.to_bytes(8, "little")[: end - offset]
        written[offset:end] = b"\xff" * (end - offset)
        new, mask = _BLOCK.unpack(block), _BLOCK.unpack(written)
        self._count_half_turns()
        self._status &= ~new[_STATUS]
        self._enable = (self._enable & ~mask[_ENABLE] | new[_ENABLE]) & _EVENTS
        self._gpe_status &= ~new[_GPE_STATUS]
        self._gpe_enable = self._gpe_enable & ~mask[_GPE_ENABLE] | new[_GPE_ENABLE]
        self._control = (self._control & ~mask[_CONTROL] | new[_CONTROL]) & _CONTROL_KEPT | SCI_EN
        self._drive()
        if new[_CONTROL] & SLP_EN and self._control >> 10 & 7 == self._s5_type:
            self._on_event(PowerOff())

    def press_power_button(self) -> None:
        """Ask the guest to power off, as a person would."""
        self._status |= PWRBTN_STS
        self._drive()

    def raise_gpe(self, number: int) -> None:
        """General-purpose event `number` (0 to 15)."""
        self._gpe_status |= 1 << (number & 15)
        self._drive()

    def close(self) -> None:
        """Stop the timer's interrupt."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ticks(self) -> int:
        return int(self._clock.now() * TIMER_FREQUENCY)

    def _count_half_turns(self) -> None:
        """TMR_STS is set whenever the top bit of the timer changes, every ten minutes."""
        half_turns = self._ticks() // _HALF_TURN
        if half_turns != self._half_turns:
            self._half_turns = half_turns
            self._status |= TMR_STS

    def _half_turn(self) -> None:
        self._count_half_turns()
        self._drive()

    def _drive(self) -> None:
        self._sci(bool(self._status & self._enable & _EVENTS or self._gpe_status & self._gpe_enable))
        self.close()
        if self._enable & TMR_STS and not self._status & TMR_STS:
            deadline = ((self._half_turns + 1) * _HALF_TURN + 1) / TIMER_FREQUENCY
            self._timer = self._clock.call_at(deadline, self._half_turn)
