"""The high precision event timer: a counter of 100 MHz, if nothing else is said, and three comparators.

Specification: IA-PC HPET 1.0a, section 2.3 (registers) and 2.3.9 (comparators), 3.2.4 (the ACPI table).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.host.loop import Clock
from bivisor.host.loop import Timer as Appointment

BASE, LENGTH = 0xFED0_0000, 0x400
HZ = 100_000_000
TIMERS = 3
_FS = 10**15
_CAPABILITIES, _CONFIGURATION, _STATUS, _COUNTER = 0x000, 0x010, 0x020, 0x0F0
_FIRST, _STRIDE = 0x100, 0x20
_VENDOR, _REVISION, _IS_64_BIT, _LEGACY_CAPABLE = 0x8086, 1, 1 << 13, 1 << 15
ENABLE, LEGACY = 1, 2
LEVEL, INTERRUPT, PERIODIC, PERIODIC_CAPABLE = 1 << 1, 1 << 2, 1 << 3, 1 << 4
IS_64, SET_VALUE, MODE_32 = 1 << 5, 1 << 6, 1 << 8
_ROUTE_SHIFT = 9
_WRITABLE = LEVEL | INTERRUPT | PERIODIC | SET_VALUE | MODE_32 | 31 << _ROUTE_SHIFT
ROUTES = 0x00F0_0000
"""The inputs of the I/O APIC that a comparator can use: 20 to 23, which nobody else does."""

_FASTEST_S = 50e-6
_LONGEST_S = 3600
_LEGACY_LINES = (0, 8)
_MINIMUM_TICK = 128
_U32 = (1 << 32) - 1


class TimerLine:
    """ISA interrupt 0, which is the 8254's, or the HPET's while that replaces it (2.2.5)."""

    def __init__(self, set_line: Callable[[bool], None]) -> None:
        self._set_line = set_line
        self._pit = False
        self._replaced = False

    def pit(self, level: bool) -> None:
        """What the 8254 says."""
        self._pit = level
        if not self._replaced:
            self._set_line(level)

    def replace(self, replaced: bool) -> None:
        """Whether the 8254 is cut off."""
        self._replaced = replaced
        self._set_line(False if replaced else self._pit)


class Hpet:
    """The registers. `set_irq(line, level)` is the interrupt controllers'. Where `line` is given, comparators 0 and 1
    can take the place of the 8254 and of the RTC. The counter counts at `hz`."""

    def __init__(
        self, clock: Clock, set_irq: Callable[[int, bool], None], line: TimerLine | None = None, hz: int = HZ
    ) -> None:
        self._clock = clock
        self.hz = hz
        self._set_irq = set_irq
        self._line = line
        self._configuration = self._status = 0
        self._halted_at = 0
        self._offset = 0
        self.timers = [_Comparator(self, number) for number in range(TIMERS)]

    @property
    def capabilities(self) -> int:
        """The low half of the capabilities register."""
        legacy = _LEGACY_CAPABLE if self._line is not None else 0
        return _VENDOR << 16 | legacy | _IS_64_BIT | TIMERS - 1 << 8 | _REVISION

    def table(self) -> bytes:
        """The body of the ACPI table HPET."""
        return struct.pack("<IBBBBQBHB", self.capabilities, 0, 64, 0, 0, BASE, 0, _MINIMUM_TICK, 0)

    def read(self, offset: int, size: int) -> int:
        """A register or a part of it."""
        value = self._read(offset & ~7) >> 8 * (offset & 7)
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """A register, whole or one half of it."""
        if size < 4 or offset % size:
            return
        shift = 8 * (offset & 7)
        mask = (1 << 8 * size) - 1 << shift
        self._write(offset & ~7, value << shift & mask, mask)

    def close(self) -> None:
        """Let go of the clock."""
        for timer in self.timers:
            timer.disarm()

    # Registers

    def _read(self, offset: int) -> int:
        if offset >= _FIRST:
            number, inside = divmod(offset - _FIRST, _STRIDE)
            return self.timers[number].read(inside) if number < TIMERS else 0
        match offset:
            case 0x000:
                return _FS // self.hz << 32 | self.capabilities
            case 0x010:
                return self._configuration
            case 0x020:
                return self._status
            case 0x0F0:
                return self.count()
            case _:
                return 0

    def _write(self, offset: int, value: int, mask: int) -> None:
        if offset >= _FIRST:
            number, inside = divmod(offset - _FIRST, _STRIDE)
            if number < TIMERS:
                self.timers[number].write(inside, value, mask)
        elif offset == _CONFIGURATION and mask & 1:
            self._configure(value)
        elif offset == _STATUS:
            self._acknowledge(value)
        elif offset == _COUNTER and not self._configuration & ENABLE:
            self._halted_at = self._halted_at & ~mask | value

    def _configure(self, value: int) -> None:
        before = self._configuration
        self._configuration = value & (ENABLE | (LEGACY if self._line is not None else 0))
        changed = before ^ self._configuration
        if changed & ENABLE:
            if value & ENABLE:
                self._offset = self._halted_at - self._ticks()
            else:
                self._halted_at = self._ticks() + self._offset & (1 << 64) - 1
        if changed & LEGACY and self._line is not None:
            self._line.replace(bool(value & LEGACY))
        for timer in self.timers:
            timer.arm()

    def _acknowledge(self, value: int) -> None:
        for number in range(TIMERS):
            if value & self._status & 1 << number:
                self._status &= ~(1 << number)
                self.timers[number].lower()

    # What comparators need

    @property
    def enabled(self) -> bool:
        """Whether the counter counts."""
        return bool(self._configuration & ENABLE)

    def count(self) -> int:
        """The counter."""
        return self._ticks() + self._offset & (1 << 64) - 1 if self.enabled else self._halted_at

    def _ticks(self) -> int:
        return int(self._clock.now() * self.hz)

    def line_of(self, number: int, route: int) -> int | None:
        """The interrupt line of comparator `number`; None where its route does not exist."""
        if self._configuration & LEGACY and number < len(_LEGACY_LINES):
            return _LEGACY_LINES[number]
        return route if ROUTES >> route & 1 else None

    def raise_line(self, number: int, line: int, *, level: bool) -> None:
        """Comparator `number` interrupts."""
        if level:
            self._status |= 1 << number
        else:
            self._set_irq(line, False)  # an edge; the line stays up after it, so that nobody misses it
        self._set_irq(line, True)

    def lower_line(self, line: int) -> None:
        """No interrupt any more."""
        self._set_irq(line, False)

    def call_in(self, ticks: int, callback: Callable[[], None]) -> Appointment:
        """Call back after `ticks` of the counter."""
        return self._clock.call_at(self._clock.now() + ticks / self.hz, callback)


class _Comparator:
    """One comparator: 64 bits, or 32 if the guest wants; periodic, if it wants."""

    def __init__(self, hpet: Hpet, number: int) -> None:
        self._hpet = hpet
        self._number = number
        self._configuration = 0
        self._value = (1 << 64) - 1
        self._period = 0
        self._appointment: Appointment | None = None
        self._raised: int | None = None

    def read(self, offset: int) -> int:
        match offset:
            case 0x00:
                return ROUTES << 32 | self._configuration | PERIODIC_CAPABLE | IS_64
            case 0x08:
                return self._value & self._mask
            case _:
                return 0

    def write(self, offset: int, value: int, mask: int) -> None:
        if offset == 0x00:
            before = self._configuration
            self._configuration = (before & ~mask | value) & _WRITABLE
            if self._configuration & MODE_32:
                self._value &= _U32
                self._period &= _U32
            if before & ~self._configuration & INTERRUPT:
                self.lower()
        elif offset == 0x08:
            periodic = self._configuration & PERIODIC
            if not periodic or self._configuration & SET_VALUE:
                self._value = (self._value & ~mask | value) & self._mask
            if periodic:
                self._period = (self._period & ~mask | value) & self._mask
            self._configuration &= ~SET_VALUE
        self.arm()

    @property
    def _mask(self) -> int:
        return _U32 if self._configuration & MODE_32 else (1 << 64) - 1

    def arm(self) -> None:
        """Wait for the counter, if there is something to wait for."""
        self.disarm()
        if self._hpet.enabled and self._configuration & INTERRUPT:
            ticks = self._value - self._hpet.count() & self._mask
            longest = _LONGEST_S * self._hpet.hz
            self._appointment = self._hpet.call_in(min(ticks, longest), self.arm if ticks > longest else self._due)

    def disarm(self) -> None:
        """Wait no more."""
        if self._appointment is not None:
            self._appointment.cancel()
            self._appointment = None

    def lower(self) -> None:
        """The guest has seen the interrupt, or does not want any."""
        if self._raised is not None:
            self._hpet.lower_line(self._raised)
            self._raised = None

    def _due(self) -> None:
        self._appointment = None
        line = self._hpet.line_of(self._number, self._configuration >> _ROUTE_SHIFT & 31)
        if line is not None:
            self._raised = line
            self._hpet.raise_line(self._number, line, level=bool(self._configuration & LEVEL))
        if self._configuration & PERIODIC and self._period:
            # a guest that asks for more than the host can do gets one interrupt for all that it missed
            late = self._hpet.count() - self._value & self._mask
            missed = late // self._period if late <= self._mask >> 1 else 0  # a clock may call a tick too early
            self._value = self._value + (missed + 1) * self._period & self._mask
            ticks = max(self._value - self._hpet.count() & self._mask, int(_FASTEST_S * self._hpet.hz))
            self._appointment = self._hpet.call_in(ticks, self._due)
