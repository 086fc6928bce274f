"""The HPET under a clock that the test owns: counting, one shot, periods, levels, and the place of the 8254."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.host.loop import ManualLoop
from bivisor.platform import hpet
from bivisor.platform.hpet import ENABLE, INTERRUPT, LEGACY, LEVEL, MODE_32, PERIODIC, SET_VALUE, Hpet, TimerLine

CONFIGURATION, STATUS, COUNTER, FIRST = 0x10, 0x20, 0xF0, 0x100
MS = hpet.HZ // 1000


class Bench:
    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.edges: list[tuple[int, bool]] = []
        self.line = TimerLine(lambda level: self.set_irq(0, level))
        self.hpet = Hpet(self.loop, self.set_irq, self.line)

    def set_irq(self, line: int, level: bool) -> None:
        self.edges.append((line, level))

    def rises(self, line: int) -> int:
        return self.edges.count((line, True))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_counter_counts_while_it_is_enabled_and_can_be_set_while_not(bench: Bench) -> None:
    device = bench.hpet
    assert device.read(4, 4) == 10_000_000  # femtoseconds
    device.write(COUNTER, 8, 5)
    bench.loop.advance(1)
    assert device.read(COUNTER, 8) == 5
    device.write(CONFIGURATION, 4, ENABLE)
    bench.loop.advance(0.001)
    assert device.read(COUNTER, 8) == pytest.approx(5 + MS, abs=1)
    device.write(COUNTER, 8, 0)  # ignored: it runs
    assert device.read(COUNTER, 4) == pytest.approx(5 + MS, abs=1)
    device.write(CONFIGURATION, 4, 0)
    stopped = device.read(COUNTER, 8)
    bench.loop.advance(1)
    assert device.read(COUNTER, 8) == stopped


def test_a_comparator_interrupts_once_at_its_value(bench: Bench) -> None:
    device = bench.hpet
    device.write(FIRST + 0x48, 8, 3 * MS)
    device.write(FIRST + 0x40, 4, INTERRUPT | 20 << 9)
    device.write(CONFIGURATION, 4, ENABLE)
    bench.loop.advance(0.0029)
    assert not bench.rises(20)
    bench.loop.advance(0.0002)
    assert bench.rises(20) == 1
    bench.loop.advance(1)
    assert bench.rises(20) == 1


def test_a_period_comes_again_and_again_and_a_slow_host_gets_one_for_all(bench: Bench) -> None:
    device = bench.hpet
    device.write(FIRST, 4, INTERRUPT | PERIODIC | SET_VALUE | MODE_32)
    device.write(FIRST + 8, 4, 2 * MS)
    device.write(FIRST + 8, 4, MS)
    device.write(CONFIGURATION, 4, ENABLE | LEGACY)
    for _ in range(100):
        bench.loop.advance(0.0001)
    bench.loop.advance(0.00005)
    assert bench.rises(0) == 9  # after 2 ms, and 3, to 10
    device.write(FIRST + 8, 4, 1)  # 100 million interrupts a second
    bench.edges.clear()
    for _ in range(10):
        bench.loop.advance(0.001)
    assert 10 <= bench.rises(0) <= 200


def test_a_level_stays_up_until_its_bit_is_cleared(bench: Bench) -> None:
    device = bench.hpet
    device.write(FIRST + 0x28, 8, MS)
    device.write(FIRST + 0x20, 4, INTERRUPT | LEVEL | 23 << 9)
    device.write(CONFIGURATION, 4, ENABLE)
    bench.loop.advance(0.002)
    assert (bench.edges, device.read(STATUS, 4)) == ([(23, True)], 2)
    device.write(STATUS, 4, 2)
    assert (bench.edges[-1], device.read(STATUS, 4)) == ((23, False), 0)


def test_the_8254_is_cut_off_while_it_is_replaced(bench: Bench) -> None:
    bench.line.pit(True)
    assert bench.edges == [(0, True)]
    bench.hpet.write(CONFIGURATION, 4, ENABLE | LEGACY)
    bench.edges.clear()
    bench.line.pit(False)
    bench.line.pit(True)
    assert bench.edges == []
    bench.hpet.write(CONFIGURATION, 4, ENABLE)
    assert bench.edges == [(0, True)]
    assert Hpet(bench.loop, bench.set_irq).capabilities & 0x8000 == 0


def test_the_acpi_table_says_where_it_is(bench: Bench) -> None:
    (block, space, _, _, _, address, number, _, _) = struct.unpack("<IBBBBQBHB", bench.hpet.table())
    assert (block, space, address, number) == (bench.hpet.read(0, 4), 0, hpet.BASE, 0)


ACCESS = st.tuples(
    st.one_of(st.integers(0, 0x3FF), st.sampled_from((0x10, 0x20, 0xF0, 0x100, 0x108, 0x120, 0x128))),
    st.sampled_from((1, 2, 4, 8)),
    st.one_of(st.integers(0, 0xFF), st.integers(0, (1 << 64) - 1)),
    st.floats(0, 100),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ACCESS, max_size=30))
def test_nothing_that_a_guest_writes_raises_or_floods_the_host(steps: list[tuple[int, int, int, float]]) -> None:
    bench = Bench()
    for offset, size, value, wait in steps:
        if offset + size <= hpet.LENGTH:
            bench.hpet.write(offset, size, value & (1 << 8 * size) - 1)
            assert 0 <= bench.hpet.read(offset, size) < 1 << 8 * size
        bench.loop.advance(wait / 10_000)
    bench.hpet.close()
    bench.edges.clear()
    bench.loop.advance(10)
    assert not bench.edges
