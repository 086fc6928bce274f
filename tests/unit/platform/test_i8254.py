from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.host.loop import ManualLoop
from bivisor.platform.i8254 import FREQUENCY, I8254
from bivisor.platform.port61 import OUT2, Port61

CONTROL = 3


class Pit:
    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.level = False
        self.edges = 0
        self.chip = I8254(self.loop, self.irq)
        self.port61 = Port61(self.chip.channels[2], self.loop)

    def irq(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level

    def program(self, channel: int, mode: int, count: int) -> None:
        self.chip.write(CONTROL, 1, channel << 6 | 0x30 | mode << 1)
        self.chip.write(channel, 1, count & 0xFF)
        self.chip.write(channel, 1, count >> 8)
        self.edges = 0  # choosing a mode whose OUT starts high may have been one

    def ticks(self, ticks: float) -> None:
        self.loop.advance(ticks / FREQUENCY)

    def count(self, channel: int) -> int:
        self.chip.write(CONTROL, 1, channel << 6)
        return self.chip.read(channel, 1) | self.chip.read(channel, 1) << 8

    def out(self, channel: int) -> bool:
        return self.chip.channels[channel].out()


def test_mode_0_raises_out_once_at_terminal_count() -> None:
    pit = Pit()
    pit.program(0, 0, 1000)
    assert not pit.level
    pit.ticks(999)
    assert (pit.edges, pit.count(0)) == (0, 1)
    pit.ticks(1.01)
    assert (pit.edges, pit.level) == (1, True)
    pit.ticks(100_000)
    assert pit.edges == 1


def test_mode_2_interrupts_once_a_period_and_counts_from_n_to_1() -> None:
    pit = Pit()
    pit.program(0, 2, 1000)
    assert pit.count(0) == 1000
    pit.ticks(999.5)
    assert (pit.count(0), pit.out(0)) == (1, False)
    for period in range(1, 5):
        pit.ticks(1000)
        assert pit.edges == period


def test_mode_3_is_high_for_the_first_half_and_counts_by_two() -> None:
    pit = Pit()
    pit.program(0, 3, 1000)
    assert (pit.out(0), pit.count(0)) == (True, 1000)
    pit.ticks(250.5)
    assert (pit.out(0), pit.count(0)) == (True, 500)
    pit.ticks(300)
    assert (pit.out(0), pit.count(0)) == (False, 900)


def test_mode_3_with_an_odd_count_is_high_for_one_tick_more() -> None:
    pit = Pit()
    pit.program(0, 3, 5)
    levels = []
    for _ in range(10):
        levels.append(pit.out(0))
        pit.loop.time += 1 / FREQUENCY
    assert levels == [True, True, True, False, False] * 2


@pytest.mark.parametrize("mode", [4, 5])
def test_the_strobes_are_low_for_one_tick_at_zero(mode: int) -> None:
    pit = Pit()
    pit.program(2, mode, 100)
    pit.port61.write(0, 1, 1)  # in mode 5 the trigger, in mode 4 the gate
    pit.ticks(99.5)
    assert pit.out(2)
    pit.ticks(1)
    assert not pit.out(2)
    pit.ticks(1)
    assert pit.out(2)


def test_mode_1_waits_for_its_trigger_and_can_be_triggered_again() -> None:
    pit = Pit()
    pit.program(2, 1, 100)
    pit.ticks(500)
    assert pit.out(2)
    pit.port61.write(0, 1, 1)
    assert not pit.out(2)
    pit.ticks(60)
    pit.port61.write(0, 1, 0)
    pit.port61.write(0, 1, 1)
    pit.ticks(60)
    assert not pit.out(2)
    pit.ticks(41)
    assert pit.out(2)


def test_channel_2_calibrates_a_clock_through_port_61() -> None:
    pit = Pit()
    pit.port61.write(0, 1, 1)
    pit.program(2, 0, FREQUENCY // 100)
    assert not pit.port61.read(0, 1) & OUT2
    pit.loop.advance(0.0099)
    assert not pit.port61.read(0, 1) & OUT2
    pit.loop.advance(0.0002)
    assert pit.port61.read(0, 1) & OUT2


def test_a_low_gate_pauses_mode_0() -> None:
    pit = Pit()
    pit.program(2, 0, 1000)  # the gate is low still
    pit.ticks(700.5)
    assert pit.count(2) == 1000
    pit.port61.write(0, 1, 1)
    pit.ticks(400.5)
    pit.port61.write(0, 1, 0)
    pit.ticks(5000)
    assert pit.count(2) == 600
    pit.port61.write(0, 1, 1)
    pit.ticks(600.5)
    assert pit.out(2)


def test_a_latched_count_stays_until_both_bytes_are_read() -> None:
    pit = Pit()
    pit.program(0, 2, 0x1234)
    pit.chip.write(CONTROL, 1, 0x00)
    pit.ticks(0x200)
    pit.chip.write(CONTROL, 1, 0x00)
    assert pit.chip.read(0, 1) == 0x34
    assert pit.chip.read(0, 1) == 0x12


def test_read_back_latches_status_and_count_of_several_counters() -> None:
    pit = Pit()
    pit.program(0, 2, 0x4000)
    pit.chip.write(CONTROL, 1, 0xC2)
    assert pit.chip.read(0, 1) == 0x80 | 0x30 | 2 << 1
    assert pit.chip.read(0, 1) == 0x00
    assert pit.chip.read(0, 1) == 0x40


def test_status_shows_a_count_that_is_not_loaded_yet() -> None:
    pit = Pit()
    pit.chip.write(CONTROL, 1, 0x34)
    pit.chip.write(CONTROL, 1, 0xE2)
    assert pit.chip.read(0, 1) & 0x40


def test_a_new_count_in_mode_2_begins_with_the_next_period() -> None:
    pit = Pit()
    pit.program(0, 2, 1000)
    pit.ticks(500.5)
    pit.chip.write(0, 1, 2000 & 0xFF)
    pit.chip.write(0, 1, 2000 >> 8)
    assert pit.count(0) == 500
    pit.ticks(500)
    assert pit.count(0) == 2000


def test_bcd_counts_in_decimal() -> None:
    pit = Pit()
    pit.chip.write(CONTROL, 1, 0x30 | 0x01)
    pit.chip.write(0, 1, 0x00)
    pit.chip.write(0, 1, 0x10)
    pit.ticks(1.5)
    assert pit.count(0) == 0x0999


def test_a_late_host_gives_one_interrupt_and_no_storm() -> None:
    pit = Pit()
    pit.program(0, 2, 1193)
    pit.loop.advance(10.0)
    assert pit.edges == 1
    pit.loop.advance(0.0011)
    assert pit.edges == 2


def test_the_shortest_period_does_not_keep_the_host_busy() -> None:
    pit = Pit()
    pit.program(0, 2, 1)
    for _ in range(1000):
        pit.loop.advance(1e-5)
    assert pit.edges <= 51


Step = st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 255), st.floats(0, 0.1))


@given(st.lists(Step, max_size=150))
def test_no_sequence_of_accesses_raises_or_needs_more_than_bounded_work(
    steps: list[tuple[bool, int, int, float]],
) -> None:
    pit = Pit()
    for is_write, offset, value, seconds in steps:
        device, at = (pit.port61, 0) if offset == 4 else (pit.chip, offset)
        if is_write:
            device.write(at, 1, value)
        else:
            assert 0 <= device.read(at, 1) <= 255
        before = pit.edges
        pit.loop.advance(seconds)
        assert pit.edges - before <= 1
