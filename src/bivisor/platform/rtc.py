"""The real-time clock of a PC, an MC146818 with 128 bytes of CMOS RAM, at ports 0x70 and 0x71.

Specification: Motorola MC146818A data sheet; the century byte at 0x32 is where the FADT says. The time is computed from
the host's when it is read, so nothing ticks unless the guest has enabled an interrupt, and then a flag that the guest
has not read stops the ticking: however fast a rate it chooses, there is one interrupt for each read of register C.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from bivisor.host.loop import Clock, Timer

BASE_PORT = 0x70
IRQ = 8
CENTURY = 0x32

_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR = 0, 2, 4, 6, 7, 8, 9
_ALARM = ((1, _SECONDS), (3, _MINUTES), (5, _HOURS))
_TIME = frozenset((_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, CENTURY))
_A, _B, _C, _D = 10, 11, 12, 13

A_UIP = 0x80
B_SET, B_PIE, B_AIE, B_UIE, B_BINARY, B_24H = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
D_VRT = 0x80
UPDATE_WARNING = 244e-6
"""Seconds before an update for which UIP is set: whoever sees it clear has at least these to read the time."""


class Rtc:
    """The clock. `wall()` is the time in seconds since 1970 that the clock shows, until the guest sets another.

    `cmos` is what its RAM holds at the start, by index.
    """

    def __init__(
        self,
        clock: Clock,
        wall: Callable[[], float],
        irq: Callable[[bool], None],
        cmos: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._irq = irq
        self._offset = 0
        self._index = 0
        self._ram = bytearray(128)
        for index, value in cmos.items():
            self._ram[index] = value
        self._ram[_A], self._ram[_B], self._ram[_D] = 0x26, B_24H, D_VRT
        self._second_timer: Timer | None = None
        self._periodic_timer: Timer | None = None
        self._c_read = self._now()

    def read(self, offset: int, size: int) -> int:
        """Offset 1: the byte that the index selects."""
        if offset == 0:
            return 0xFF
        index = self._index
        if index in _TIME and not self._ram[_B] & B_SET:
            self._show_time()
        elif index == _A:
            return self._ram[_A] | (A_UIP if self._updating() else 0)
        elif index == _C:
            return self._take_flags()
        return self._ram[index]

    def write(self, offset: int, size: int, value: int) -> None:
        """Offset 0: the index, whose top bit masks NMI elsewhere. Offset 1: the byte there."""
        value &= 0xFF
        index = self._index
        if offset == 0:
            self._index = value & 0x7F
        elif index == _A:
            self._ram[_A] = value & ~A_UIP
            self._arm()
        elif index == _B:
            self._set_b(value)
        elif index in _TIME:
            if self._ram[_B] & B_SET:
                self._ram[index] = value
            else:
                self._show_time()
                self._ram[index] = value
                self._adopt_time()
        elif index not in (_C, _D):
            self._ram[index] = value

    def close(self) -> None:
        """Stop the interrupts."""
        for timer in (self._second_timer, self._periodic_timer):
            if timer is not None:
                timer.cancel()
        self._second_timer = self._periodic_timer = None

    # Time of day

    def _now(self) -> float:
        return self._wall() + self._offset

    def _updating(self) -> bool:
        return not self._ram[_B] & B_SET and self._now() % 1 >= 1 - UPDATE_WARNING

    def _show_time(self) -> None:
        now = time.gmtime(int(self._now()))
        hour = now.tm_hour
        ram, code = self._ram, self._encode
        ram[_SECONDS], ram[_MINUTES] = code(min(now.tm_sec, 59)), code(now.tm_min)
        ram[_HOURS] = code(hour) if ram[_B] & B_24H else code((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)
        ram[_WEEKDAY] = code((now.tm_wday + 1) % 7 + 1)
        ram[_DAY], ram[_MONTH] = code(now.tm_mday), code(now.tm_mon)
        ram[_YEAR], ram[CENTURY] = code(now.tm_year % 100), code(now.tm_year // 100 % 100)

    def _adopt_time(self) -> None:
        """Go on from the time in the registers; one that is no date leaves the clock as it was."""
        ram, number = self._ram, self._decode
        year = number(ram[CENTURY]) * 100 + number(ram[_YEAR])
        month, day, minute, second = (
            number(ram[_MONTH]),
            number(ram[_DAY]),
            number(ram[_MINUTES]),
            number(ram[_SECONDS]),
        )
        hour = self._hour(ram[_HOURS])
        if not (1 <= year <= 9999 and 1 <= month <= 12 and hour < 24 and minute < 60 and second < 60):
            return
        if 1 <= day <= calendar.monthrange(year, month)[1]:
            then = calendar.timegm((year, month, day, hour, minute, second))
            self._offset = then - int(self._wall())

    def _hour(self, value: int) -> int:
        if self._ram[_B] & B_24H:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    def _encode(self, value: int) -> int:
        return value if self._ram[_B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._ram[_B] & B_BINARY else (value >> 4) * 10 + (value & 15)

    # Interrupts

    def _set_b(self, value: int) -> None:
        old = self._ram[_B]
        if value & ~old & B_SET:
            self._show_time()
            value &= ~B_UIE  # the data sheet: setting SET clears UIE
        self._ram[_B] = value
        if old & ~value & B_SET:
            self._adopt_time()
        self._drive()
        self._arm()

    def _take_flags(self) -> int:
        now, flags = self._now(), self._ram[_C]
        if int(now) != int(self._c_read):
            flags |= C_UF
        if (period := self._period()) and now // period != self._c_read // period:
            flags |= C_PF
        self._c_read = now
        self._ram[_C] = 0
        self._irq(False)
        self._arm()
        return flags

    def _period(self) -> float:
        rate = self._ram[_A] & 15
        if rate == 0:
            return 0.0
        return (1 << (rate + 7 if rate < 3 else rate) - 1) / 32768

    def _arm(self) -> None:
        """Set a timer for each enabled interrupt whose flag is clear."""
        self.close()
        enabled, flags, now = self._ram[_B], self._ram[_C], self._clock.now()
        if ((enabled & B_UIE and not flags & C_UF) or (enabled & B_AIE and not flags & C_AF)) and not enabled & B_SET:
            self._second_timer = self._clock.call_at(now + 1 - self._now() % 1, self._second)
        if enabled & B_PIE and not flags & C_PF and (period := self._period()):
            self._periodic_timer = self._clock.call_at(now + period, self._tick)

    def _second(self) -> None:
        self._raise(C_UF | (C_AF if self._alarm_matches() else 0))

    def _tick(self) -> None:
        self._raise(C_PF)

    def _raise(self, flags: int) -> None:
        self._ram[_C] |= flags
        self._drive()
        self._arm()

    def _drive(self) -> None:
        if self._ram[_B] & self._ram[_C] & (C_PF | C_AF | C_UF):
            self._ram[_C] |= C_IRQF
            self._irq(True)
        else:
            self._ram[_C] &= ~C_IRQF & 0xFF
            self._irq(False)

    def _alarm_matches(self) -> bool:
        self._show_time()
        ram = self._ram
        return all(ram[alarm] >= 0xC0 or ram[alarm] == ram[field] for alarm, field in _ALARM)
