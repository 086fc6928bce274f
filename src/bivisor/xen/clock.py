"""System time as a guest computes it: `struct vcpu_time_info` (xen.h), kept true to the hypervisor's own.

A guest takes its time-stamp counter, subtracts the one of the structure, scales, and adds the structure's system time.
The frequency that the scale was made of is never quite right, so from time to time there is a new pair. Time must not
jump for that: a new pair starts where the old one had come to, and its scale makes up for the difference.
"""

from __future__ import annotations

from typing import Final

from bivisor.abi.xen import xen as abi

PERIOD: Final = 1_000_000_000
"""Nanoseconds between two pairs, and in which the difference is made up."""

_MAX_SLEW: Final = 500e-6
_MAX_STEP: Final = 50_000_000  # further behind than this (the host was asleep), and the guest's time jumps forward
_TSC_STABLE: Final = 1


def tsc_scale(khz: float) -> tuple[int, int]:
    """(multiplier, shift) of vcpu_time_info: nanoseconds are (ticks << shift) * multiplier >> 32."""
    shift, hz = 0, khz * 1000.0
    while hz > 2_000_000_000:
        hz /= 2
        shift -= 1
    while hz <= 1_000_000_000:
        hz *= 2
        shift += 1
    return int((1_000_000_000 << 32) / hz) & 0xFFFF_FFFF, shift


class GuestClock:
    """The time of one domain. `khz` is the frequency of its counter, which stood at `tsc` at system time `now`."""

    def __init__(self, khz: int, tsc: int, now: int) -> None:
        self._khz = khz
        self._tsc = tsc
        self._time = now
        self._next = now + PERIOD
        self._multiplier, self._shift = tsc_scale(khz)

    def time(self, tsc: int) -> int:
        """System time in nanoseconds, as the guest computes it when its counter stands at `tsc`."""
        ticks = tsc - self._tsc
        ticks = ticks << self._shift if self._shift >= 0 else ticks >> -self._shift
        return self._time + (ticks * self._multiplier >> 32)

    def is_due(self, now: int) -> bool:
        """Whether it is time for `update`."""
        return now >= self._next

    def update(self, tsc: int, now: int) -> None:
        """System time is `now` in truth while the counter stands at `tsc`: go that way from here on."""
        guest = self.time(tsc)
        behind = now - guest
        if behind > _MAX_STEP:
            guest, behind = now, 0
        slew = max(-_MAX_SLEW, min(_MAX_SLEW, behind / PERIOD))
        self._multiplier, self._shift = tsc_scale(self._khz / (1 + slew))
        self._tsc, self._time, self._next = tsc, guest, now + PERIOD

    def info(self) -> bytes:
        """`struct vcpu_time_info`; its version is the caller's business."""
        return abi.VCPU_TIME_INFO.pack(0, 0, self._tsc, self._time, self._multiplier, self._shift, _TSC_STABLE)


def wall_clock(boot: int) -> tuple[bytes, bytes]:
    """`wc_version` to `wc_nsec`, and `wc_sec_hi`, for a hypervisor whose time began `boot` nanoseconds after 1970."""
    seconds, nanoseconds = divmod(boot, 1_000_000_000)
    return abi.WALL_CLOCK.pack(2, seconds & 0xFFFF_FFFF, nanoseconds), (seconds >> 32).to_bytes(4, "little")
