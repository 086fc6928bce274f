"""Time as a guest computes it from what the engine told it."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from bivisor.cpu.soft import clock

KHZ = st.integers(100_000, 10_000_000)  # 0.1 to 10 GHz


def guest_nanoseconds(page: bytes, tsc: int) -> int:
    """As Linux's pvclock reads a page."""
    version, _, stamp, system_time, multiplier, shift, flags = struct.unpack("<IIQQIbB2x", page)
    assert version % 2 == 0
    assert flags & 1
    delta = tsc - stamp
    delta = delta << shift if shift >= 0 else delta >> -shift
    return int(system_time + (delta * multiplier >> 32))


@given(KHZ)
def test_the_multiplier_fits_and_uses_its_32_bits(khz: int) -> None:
    multiplier, shift = clock.tsc_scale(khz)
    assert 1 << 30 < multiplier < 1 << 32
    assert -32 < shift < 32


@given(KHZ, st.integers(0, 1 << 40), st.integers(0, 1 << 50), st.integers(1, 1000))
def test_a_guest_computes_nanoseconds_to_one_in_a_million(khz: int, start: int, uptime: int, seconds: int) -> None:
    page = clock.time_info(khz, start, uptime)
    true = seconds * 1_000_000_000
    measured = guest_nanoseconds(page, start + khz * 1000 * seconds) - uptime
    assert abs(measured - true) <= true / 1_000_000 + 10


def test_the_wall_clock_is_seconds_and_nanoseconds() -> None:
    assert struct.unpack("<III", clock.wall_clock(1_234_567_890_123_456_789)) == (2, 1_234_567_890, 123_456_789)


def test_the_frequency_is_measured_once() -> None:
    ticks = iter(range(0, 1 << 62, 1 << 32))
    frequency = clock.TscFrequency(lambda: next(ticks))
    assert frequency.khz() == frequency.khz() > 0
