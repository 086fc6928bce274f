"""Time for soft processors: the frequency of the host's time-stamp counter, and KVM's clock for the guest.

The guest's counter is the host's plus an offset, so reading it costs the guest nothing. Its frequency is measured once
per process against CLOCK_MONOTONIC_RAW, over the time that start-up takes anyway. KVM's clock: Linux's
Documentation/virt/kvm/x86/msr.rst.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

MSR_KVM_WALL_CLOCK = 0x11
MSR_KVM_SYSTEM_TIME = 0x12
MSR_KVM_WALL_CLOCK_NEW = 0x4B56_4D00
MSR_KVM_SYSTEM_TIME_NEW = 0x4B56_4D01

_MIN_SAMPLE_NS = 20_000_000
_TIME_INFO = struct.Struct("<IIQQIbB2x")  # struct pvclock_vcpu_time_info
_WALL_CLOCK = struct.Struct("<III")  # struct pvclock_wall_clock
_TSC_STABLE = 1


class TscFrequency:
    """Measures the host's counter: from construction to the first call of `khz()`, but for 20 ms at least."""

    def __init__(self, rdtsc: Callable[[], int]) -> None:
        self._rdtsc = rdtsc
        self._khz = 0
        self._start = self._sample()

    def _sample(self) -> tuple[int, int]:
        """(nanoseconds, ticks), read as close together as Python can: the tightest of a few tries."""
        best: tuple[int, int, int] | None = None
        for _ in range(5):
            before = self._rdtsc()
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            after = self._rdtsc()
            if best is None or after - before < best[0]:
                best = (after - before, now, (before + after) // 2)
        assert best is not None
        return best[1], best[2]

    def khz(self) -> int:
        """Ticks per millisecond; the same answer every time."""
        if not self._khz:
            wait = self._start[0] + _MIN_SAMPLE_NS - time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            if wait > 0:
                time.sleep(wait / 1e9)
            now, ticks = self._sample()
            self._khz = round((ticks - self._start[1]) * 1_000_000 / (now - self._start[0]))
        return self._khz


def tsc_scale(khz: int) -> tuple[int, int]:
    """(multiplier, shift) so that nanoseconds are (ticks << shift) * multiplier >> 32, as pvclock wants them."""
    shift = 0
    base = khz * 1000
    while base > 2_000_000_000:
        base >>= 1
        shift -= 1
    while base <= 1_000_000_000:
        base <<= 1
        shift += 1
    return (1_000_000_000 << 32) // base & 0xFFFF_FFFF, shift


def time_info(khz: int, tsc: int, nanoseconds: int) -> bytes:
    """A pvclock page that says: at `tsc` the system had been up for `nanoseconds`."""
    multiplier, shift = tsc_scale(khz)
    return _TIME_INFO.pack(2, 0, tsc, nanoseconds, multiplier, shift, _TSC_STABLE)


def wall_clock(boot_time_ns: int) -> bytes:
    """The wall-clock time at which the system's nanoseconds were zero."""
    return _WALL_CLOCK.pack(2, boot_time_ns // 1_000_000_000, boot_time_ns % 1_000_000_000)
