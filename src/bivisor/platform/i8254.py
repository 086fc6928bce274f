"""The 8254 interval timer: three 16-bit counters at 1.193182 MHz.

Specification: Intel 8254 data sheet (231164), "Programming the 8254" and "Mode Definitions". Nothing counts here: what
a counter holds and what its OUT pin shows is computed from the time that has passed since it was loaded.
"""

from __future__ import annotations

from collections.abc import Callable

from bivisor.host.loop import Clock, Timer

BASE_PORT, PORTS = 0x40, 4
FREQUENCY = 1_193_182
MIN_PERIOD = 0.0002
"""Seconds between two edges of channel 0 at least: a guest that asks for more would only keep the host busy."""

_LATCH, _LSB, _MSB, _WORD = 0, 1, 2, 3
_TENS = (1, 10, 100, 1000)


class Channel:
    """One counter. Modes as in the data sheet: 0 terminal count, 1 one-shot, 2 rate, 3 square, 4 and 5 strobes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.mode = 3
        self.gate = True
        self._bcd = False
        self._access = _WORD
        self._reload = 0x10000
        self._next: tuple[float, int] | None = None  # modes 2 and 3: the count that is loaded when this period ends
        self._start: float | None = None  # when the count was loaded; None: not yet loaded, or not triggered
        self._paused: int | None = None  # ticks counted when the gate went down in modes 0 and 4
        self._write_low: int | None = None
        self._read_high = False
        self._count_latch: list[int] = []
        self._status_latch: int | None = None

    # What software does

    def control(self, word: int) -> None:
        """A control word for this counter."""
        access = word >> 4 & 3
        if access == _LATCH:
            self.latch_count()
            return
        mode = word >> 1 & 7
        self.mode = mode & 3 if mode > 5 else mode
        self._bcd = bool(word & 1)
        self._access = access
        self._start = self._paused = self._next = None
        self._write_low = self._status_latch = None
        self._read_high = False
        self._count_latch.clear()

    def latch_count(self) -> None:
        """Keep the count until it is read; a second latch before that does nothing."""
        if not self._count_latch:
            self._count_latch = self._bytes(self.count())

    def latch_status(self) -> None:
        """Keep the status byte until it is read."""
        if self._status_latch is None:
            not_loaded = self._start is None or self._next is not None
            self._status_latch = self.out() << 7 | not_loaded << 6 | self._access << 4 | self.mode << 1 | self._bcd

    def read(self) -> int:
        """The next byte: a latched status, then a latched count, then the running count."""
        if self._status_latch is not None:
            value, self._status_latch = self._status_latch, None
            return value
        if self._count_latch:
            return self._count_latch.pop(0)
        count = self._bytes(self.count())
        if self._access != _WORD:
            return count[0]
        self._read_high = not self._read_high
        return count[0] if self._read_high else count[1]

    def write(self, value: int) -> bool:
        """A byte of the count; whether the counter was loaded by it."""
        if self._access == _WORD and self._write_low is None:
            self._write_low = value
            if self.mode == 0:
                self._start = self._paused = None  # the first byte stops the counter
            return False
        if self._access == _WORD:
            value = value << 8 | (self._write_low or 0)
            self._write_low = None
        elif self._access == _MSB:
            value <<= 8
        self._load(_from_bcd(value) or 10_000 if self._bcd else value or 0x10000)
        return True

    def set_gate(self, level: bool) -> None:
        """The GATE pin."""
        if level == self.gate:
            return
        ticks = self._ticks()
        self.gate = level
        now = self._clock.now()
        if self.mode in (0, 4):
            if not level:
                self._paused = ticks
            elif self._paused is not None:
                self._start, self._paused = now - self._paused / FREQUENCY, None
        elif level:  # a rising edge triggers modes 1 and 5 and restarts modes 2 and 3
            if self._next is not None:
                self._reload, self._next = self._next[1], None
            self._start = now

    # What the counter shows

    def count(self) -> int:
        """The counting element, as software reads it."""
        ticks = self._ticks()
        modulus = 10_000 if self._bcd else 0x10000
        if ticks is None:
            return self._reload % modulus
        match self.mode:
            case 2:
                return (self._reload - ticks % self._reload) % modulus
            case 3:
                return self._square(ticks)[1] % modulus
            case _:
                return (self._reload - ticks) % modulus

    def out(self) -> bool:
        """The OUT pin."""
        ticks = self._ticks()
        if ticks is None:
            return self.mode != 0
        match self.mode:
            case 0 | 1:
                return ticks >= self._reload
            case 2:
                return not self.gate or ticks % self._reload != self._reload - 1
            case 3:
                return not self.gate or self._square(ticks)[0]
            case _:
                return ticks != self._reload

    def next_rise(self) -> float | None:
        """When OUT goes from low to high next, in the clock's seconds; None if it never does by itself."""
        ticks = self._ticks()
        if ticks is None or self._start is None or not self.gate:
            return None
        if self.mode in (2, 3):
            return self._start + (ticks // self._reload + 1) * self._reload / FREQUENCY
        rise = self._reload + (1 if self.mode in (4, 5) else 0)
        return self._start + rise / FREQUENCY if ticks < rise else None

    def _square(self, ticks: int) -> tuple[bool, int]:
        """Mode 3: OUT and count. It counts down by two, and an odd count is high for one tick longer than low."""
        phase = ticks % self._reload
        high = (self._reload + 1) // 2
        even = self._reload & ~1
        return (True, even - 2 * phase) if phase < high else (False, even - 2 * (phase - high))

    def _ticks(self) -> int | None:
        if self._next is not None and self._clock.now() >= self._next[0]:
            (self._start, self._reload), self._next = self._next, None
        if self._start is None:
            return None
        if self._paused is not None:
            return self._paused
        return int((self._clock.now() - self._start) * FREQUENCY + 1e-6)

    def _load(self, count: int) -> None:
        ticks = self._ticks()
        now = self._clock.now()
        if self.mode in (2, 3) and ticks is not None and self._start is not None:
            self._next = (self._start + (ticks // self._reload + 1) * self._reload / FREQUENCY, count)
            return
        self._reload = count
        if self.mode in (1, 5):
            return  # the count waits for the next trigger
        if self.gate:
            self._start, self._paused = now, None
        elif self.mode in (0, 4):
            self._start, self._paused = now, 0
        else:
            self._start = None

    def _bytes(self, count: int) -> list[int]:
        if self._bcd:
            count = _to_bcd(count)
        low, high = count & 0xFF, count >> 8
        return {_LSB: [low], _MSB: [high]}.get(self._access, [low, high])


class I8254:
    """The timer chip. `irq` is the OUT pin of channel 0, which is ISA interrupt 0.

    An edge that the host could not give in time is not given later: a late host never makes a storm.
    """

    def __init__(self, clock: Clock, irq: Callable[[bool], None]) -> None:
        self.channels = tuple(Channel(clock) for _ in range(3))
        self.channels[2].set_gate(False)
        self._clock = clock
        self._irq = irq
        self._timer: Timer | None = None

    def read(self, offset: int, size: int) -> int:
        """Counters 0 to 2; the control register cannot be read."""
        return 0 if offset == 3 else self.channels[offset].read()

    def write(self, offset: int, size: int, value: int) -> None:
        """Counters 0 to 2, or the control register."""
        value &= 0xFF
        if offset < 3:
            if self.channels[offset].write(value) and offset == 0:
                self._arm()
            return
        if value >> 6 == 3:
            self._read_back(value)
            return
        self.channels[value >> 6].control(value)
        if value >> 6 == 0 and value & 0x30:
            self._irq(self.channels[0].out())
            self._arm()

    def close(self) -> None:
        """Stop the interrupts."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read_back(self, command: int) -> None:
        for number, channel in enumerate(self.channels):
            if command >> 1 + number & 1:
                if not command & 0x20:
                    channel.latch_count()
                if not command & 0x10:
                    channel.latch_status()

    def _arm(self) -> None:
        self.close()
        rise = self.channels[0].next_rise()
        if rise is not None:
            earliest = self._clock.now() + MIN_PERIOD
            if rise < earliest and self.channels[0].mode in (2, 3):
                rise = earliest
            self._timer = self._clock.call_at(rise, self._rise)

    def _rise(self) -> None:
        self._irq(False)
        self._irq(True)
        self._arm()


def _from_bcd(value: int) -> int:
    return sum((value >> 4 * digit & 15) * ten for digit, ten in enumerate(_TENS)) % 10_000


def _to_bcd(value: int) -> int:
    return sum(value // ten % 10 << 4 * digit for digit, ten in enumerate(_TENS))
