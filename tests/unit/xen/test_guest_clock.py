"""The time that a guest computes from its counter: true to the hypervisor's, and never backwards."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bivisor.abi.xen import xen as abi
from bivisor.xen.clock import PERIOD, GuestClock, tsc_scale, wall_clock
from bivisor.xen.timers import Timers

MHZ = st.integers(min_value=500_000, max_value=6_000_000)


@given(MHZ, st.integers(min_value=0, max_value=10**12))
def test_the_scale_turns_ticks_into_nanoseconds(khz: int, ticks: int) -> None:
    clock = GuestClock(khz, 0, 0)
    assert abs(clock.time(ticks) - ticks * 1_000_000 // khz) <= 2 + ticks // 10**9
    multiplier, _ = tsc_scale(khz)
    assert multiplier >> 31, "the most significant bit is used, so that no precision is lost"


@given(MHZ, st.integers(min_value=-200, max_value=200))
def test_a_wrong_frequency_makes_no_jump_and_no_growing_error(khz: int, ppm: int) -> None:
    clock = GuestClock(khz, 0, 0)
    real_khz = khz * (1 + ppm / 1e6)
    last = 0
    for now in range(PERIOD, 20 * PERIOD, PERIOD):
        tsc = int(now * real_khz / 1e6)
        before = clock.time(tsc)
        clock.update(tsc, now)
        assert abs(clock.time(tsc) - before) <= 1
        assert before > last
        last = before
        assert abs(before - now) <= (abs(ppm) + 5) * 2000


def test_a_guest_whose_host_slept_goes_on_at_the_right_time() -> None:
    clock = GuestClock(1_000_000, 0, 0)
    clock.update(PERIOD, 100 * PERIOD)
    assert clock.time(PERIOD) == 100 * PERIOD


def test_the_structure_says_what_the_clock_computes() -> None:
    clock = GuestClock(2_600_000, 1000, 5_000)
    _, _, tsc, time, multiplier, shift, _ = abi.VCPU_TIME_INFO.unpack(clock.info())
    ticks = 26_000_000
    assert time + ((ticks >> -shift if shift < 0 else ticks << shift) * multiplier >> 32) == clock.time(tsc + ticks)


def test_the_wall_clock_has_seconds_beyond_32_bits() -> None:
    clock, high = wall_clock(((1 << 32) + 7) * 1_000_000_000 + 5)
    assert abi.WALL_CLOCK.unpack(clock)[1:] == (7, 5)
    assert high == b"\1\0\0\0"


def test_timers_that_are_due_come_in_the_order_of_their_deadlines_and_once() -> None:
    now, rung = [0], list[str]()
    timers = Timers(lambda: now[0])
    timers._closing = True  # no thread: the test looks itself
    timers._set = {
        0: (30, lambda: rung.append("late")),
        ("again", 0): (10, lambda: rung.append("early")),
        1: (99, lambda: rung.append("never")),
    }
    now[0] = 30
    timers.cancel(1)
    for callback in timers.due():
        callback()
    assert rung == ["early", "late"]
    assert timers.due() == []
    timers.close()
