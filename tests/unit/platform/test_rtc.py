from __future__ import annotations

import calendar

from hypothesis import given
from hypothesis import strategies as st

from bivisor.host.loop import ManualLoop
from bivisor.platform.rtc import (
    A_UIP,
    B_24H,
    B_AIE,
    B_BINARY,
    B_PIE,
    B_SET,
    B_UIE,
    C_AF,
    C_IRQF,
    C_PF,
    C_UF,
    CENTURY,
    D_VRT,
    UPDATE_WARNING,
    Rtc,
)

A, B, C, D = 10, 11, 12, 13
NOON = calendar.timegm((2026, 8, 31, 13, 5, 9))


class Wired:
    def __init__(self, wall: float = NOON) -> None:
        self.loop = ManualLoop()
        self.level = False
        self.edges = 0
        self.rtc = Rtc(self.loop, lambda: wall + self.loop.now(), self.irq)

    def irq(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level

    def get(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def set(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)


def test_it_shows_the_time_of_the_host_in_bcd() -> None:
    rtc = Wired()
    assert [rtc.get(index) for index in (CENTURY, 9, 8, 7, 4, 2, 0)] == [0x20, 0x26, 0x08, 0x31, 0x13, 0x05, 0x09]
    assert rtc.get(6) == 2  # a Monday
    assert rtc.get(D) == D_VRT


def test_it_can_show_twelve_hours_in_binary() -> None:
    rtc = Wired()
    rtc.set(B, B_BINARY)
    assert (rtc.get(4), rtc.get(7)) == (0x81, 31)


def test_an_update_is_announced_before_it_happens() -> None:
    rtc = Wired()
    assert not rtc.get(A) & A_UIP
    rtc.loop.advance(1 - UPDATE_WARNING / 2)
    assert rtc.get(A) & A_UIP
    rtc.loop.advance(UPDATE_WARNING)
    assert not rtc.get(A) & A_UIP


def test_a_guest_can_set_another_time() -> None:
    rtc = Wired()
    rtc.set(B, B_24H | B_SET)
    for index, value in ((CENTURY, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)):
        rtc.set(index, value)
    rtc.loop.advance(100)
    assert rtc.get(0) == 0x58
    rtc.set(B, B_24H)
    rtc.loop.advance(2)
    assert [rtc.get(index) for index in (CENTURY, 9, 8, 7, 4, 2, 0)] == [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]


def test_a_date_that_does_not_exist_changes_nothing() -> None:
    rtc = Wired()
    rtc.set(8, 0x15)
    assert rtc.get(8) == 0x08


def test_the_periodic_interrupt_never_comes_before_the_last_one_was_read() -> None:
    rtc = Wired()
    rtc.set(A, 0x23)  # 8192 Hz
    rtc.set(B, B_24H | B_PIE)
    rtc.loop.advance(5)
    assert rtc.edges == 1
    assert rtc.get(C) & (C_IRQF | C_PF) == C_IRQF | C_PF
    assert not rtc.level
    rtc.loop.advance(1 / 8192)
    assert rtc.edges == 2


def test_the_rates_are_those_of_the_data_sheet() -> None:
    rtc = Wired()
    for rate, hertz in ((1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)):
        rtc.set(A, 0x20 | rate)
        assert rtc.rtc._period() == 1 / hertz


def test_an_update_interrupt_comes_each_second() -> None:
    rtc = Wired()
    rtc.set(B, B_24H | B_UIE)
    for second in range(1, 4):
        rtc.loop.advance(1)
        assert rtc.edges == second
        assert rtc.get(C) & C_UF


def test_the_alarm_comes_at_its_time_and_only_then() -> None:
    rtc = Wired()
    for index, value in ((1, 0x11), (3, 0x05), (5, 0xFF)):
        rtc.set(index, value)
    rtc.set(B, B_24H | B_AIE)
    rtc.loop.advance(1)
    assert rtc.edges == 0
    rtc.loop.advance(1)
    assert rtc.edges == 1
    assert rtc.get(C) & (C_IRQF | C_AF) == C_IRQF | C_AF


def test_flags_can_be_polled_without_interrupts() -> None:
    rtc = Wired()
    rtc.get(C)
    rtc.loop.advance(1.5)
    assert rtc.get(C) == C_UF | C_PF
    assert rtc.get(C) == 0
    assert rtc.edges == 0


def test_the_other_bytes_are_ram() -> None:
    rtc = Wired()
    rtc.set(0x40, 0xA5)
    assert rtc.get(0x40) == 0xA5
    assert rtc.get(0xC0) == 0xA5  # the top bit of the index is not the clock's


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.integers(0, 255), st.floats(0, 90)), max_size=150),
    st.integers(0, 250_000_000_000),
)
def test_no_sequence_of_accesses_raises_or_storms(steps: list[tuple[bool, int, int, float]], wall: int) -> None:
    rtc = Wired(float(wall))
    for is_write, index, value, seconds in steps:
        if is_write:
            rtc.set(index, value)
        else:
            assert 0 <= rtc.get(index) <= 255
        before = rtc.edges
        rtc.loop.advance(seconds)
        assert rtc.edges - before <= 1
