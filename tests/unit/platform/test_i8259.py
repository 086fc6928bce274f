from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bivisor.platform.i8259 import I8259Pair


class Wired:
    def __init__(self, icw4: int = 0x01) -> None:
        self.intr = False
        self.pair = I8259Pair(self.set_intr)
        self.init(icw4)

    def set_intr(self, level: bool) -> None:
        assert level != self.intr
        self.intr = level

    def init(self, icw4: int) -> None:
        for chip, icw2, icw3 in ((self.pair.master, 0x20, 0x04), (self.pair.slave, 0x28, 0x02)):
            chip.write(0, 1, 0x11)
            for value in (icw2, icw3, icw4):
                chip.write(1, 1, value)

    def pulse(self, irq: int) -> None:
        self.pair.set_irq(irq, False)
        self.pair.set_irq(irq, True)


def test_before_it_is_programmed_nothing_comes() -> None:
    fresh = I8259Pair(lambda level: None)
    fresh.set_irq(1, True)
    assert fresh.master.pending() is None


def test_the_vector_is_the_base_and_the_line() -> None:
    wired = Wired()
    wired.pulse(4)
    assert wired.intr
    assert wired.pair.acknowledge() == 0x24
    assert not wired.intr
    wired.pulse(12)
    assert wired.pair.acknowledge() == 0x2C  # through line 2, which is higher than the 4 in service


def test_a_higher_line_interrupts_a_lower_one_and_not_the_other_way_round() -> None:
    wired = Wired()
    wired.pulse(4)
    assert wired.pair.acknowledge() == 0x24
    wired.pulse(6)
    assert not wired.intr
    wired.pulse(1)
    assert wired.intr
    assert wired.pair.acknowledge() == 0x21
    wired.pair.master.write(0, 1, 0x20)
    wired.pair.master.write(0, 1, 0x20)
    assert wired.pair.acknowledge() == 0x26


def test_the_slave_comes_through_line_2_and_wants_both_ends() -> None:
    wired = Wired()
    wired.pulse(8)
    wired.pulse(14)
    assert wired.pair.acknowledge() == 0x28
    wired.pair.slave.write(0, 1, 0x20)
    assert not wired.intr
    wired.pair.master.write(0, 1, 0x20)
    assert wired.intr
    assert wired.pair.acknowledge() == 0x2E


def test_a_masked_request_waits_for_its_unmasking() -> None:
    wired = Wired()
    wired.pair.master.write(1, 1, 0x10)
    assert wired.pair.master.read(1, 1) == 0x10
    wired.pulse(4)
    assert not wired.intr
    wired.pair.master.write(1, 1, 0x00)
    assert wired.pair.acknowledge() == 0x24


def test_a_request_that_went_away_is_a_spurious_7_with_nothing_in_service() -> None:
    wired = Wired()
    wired.pulse(3)
    wired.pair.set_irq(3, False)
    assert wired.pair.acknowledge() == 0x27
    assert wired.pair.master.isr == 0


def test_a_request_of_the_slave_that_went_away_between_the_inta_pulses_is_a_spurious_15() -> None:
    wired = Wired()
    wired.pulse(10)
    wired.pair.slave._output = lambda level: None  # the master has seen it; it leaves the slave
    wired.pair.set_irq(10, False)
    assert wired.pair.acknowledge() == 0x2F
    assert wired.pair.slave.isr == 0
    assert wired.pair.master.isr == 0x04


def test_a_level_triggered_line_interrupts_until_it_falls() -> None:
    wired = Wired()
    wired.pair.elcr.write(1, 1, 0xFF)
    assert wired.pair.elcr.read(1, 1) == 0xDE
    wired.pair.set_irq(11, True)
    for _ in range(2):
        assert wired.pair.acknowledge() == 0x2B
        wired.pair.slave.write(0, 1, 0x20)
        wired.pair.master.write(0, 1, 0x20)
    wired.pair.set_irq(11, False)
    assert not wired.intr


def test_an_edge_counts_once() -> None:
    wired = Wired()
    wired.pulse(5)
    wired.pair.acknowledge()
    wired.pair.master.write(0, 1, 0x65)  # specific EOI
    wired.pair.set_irq(5, True)
    assert not wired.intr


def test_rotation_makes_the_served_line_the_lowest() -> None:
    wired = Wired()
    wired.pulse(3)
    wired.pair.acknowledge()
    wired.pair.master.write(0, 1, 0xA0)
    wired.pulse(3)
    wired.pulse(6)
    assert wired.pair.acknowledge() == 0x26
    wired.pair.master.write(0, 1, 0xC5)  # set priority: 5 is the lowest, 6 the highest


def test_set_priority_chooses_the_highest() -> None:
    wired = Wired()
    wired.pair.master.write(0, 1, 0xC4)
    wired.pulse(0)
    wired.pulse(5)
    assert wired.pair.acknowledge() == 0x25


def test_special_mask_lets_lower_lines_through_a_masked_service() -> None:
    wired = Wired()
    wired.pulse(3)
    wired.pair.acknowledge()
    wired.pulse(6)
    assert not wired.intr
    wired.pair.master.write(0, 1, 0x68)
    wired.pair.master.write(1, 1, 0x08)
    assert wired.pair.acknowledge() == 0x26
    wired.pair.master.write(0, 1, 0x20)  # not for the masked 3
    assert wired.pair.master.isr == 0x08


def test_a_poll_acknowledges() -> None:
    wired = Wired()
    wired.pulse(4)
    wired.pair.master.write(0, 1, 0x0C)
    assert wired.pair.master.read(0, 1) == 0x84
    assert not wired.intr
    wired.pair.master.write(0, 1, 0x0C)
    assert wired.pair.master.read(0, 1) == 0
    wired.pair.master.write(0, 1, 0x0B)
    assert wired.pair.master.read(0, 1) == 0x10


def test_automatic_eoi_leaves_nothing_in_service() -> None:
    wired = Wired(icw4=0x03)
    wired.pulse(8)
    wired.pulse(9)
    assert wired.pair.acknowledge() == 0x28
    assert wired.intr
    assert wired.pair.acknowledge() == 0x29
    assert wired.pair.slave.isr == wired.pair.master.isr == 0


def test_linux_finds_the_chip_by_its_mask_register() -> None:
    pair = I8259Pair(lambda level: None)
    pair.slave.write(1, 1, 0xFF)
    pair.master.write(1, 1, 0xFB)
    assert pair.master.read(1, 1) == 0xFB


Step = st.tuples(st.sampled_from("wrial"), st.integers(0, 15), st.integers(0, 255))


@given(st.lists(Step, max_size=200))
def test_whatever_happens_intr_says_whether_a_request_is_pending(steps: list[tuple[str, int, int]]) -> None:
    wired = Wired()
    pair = wired.pair
    devices = (pair.master, pair.slave, pair.elcr)
    for kind, number, value in steps:
        match kind:
            case "w":
                devices[number % 3].write(number >> 2 & 1, 1, value)
            case "r":
                assert 0 <= devices[number % 3].read(number >> 2 & 1, 1) <= 255
            case "i":
                pair.set_irq(number, bool(value & 1))
            case "a":
                assert 0 <= pair.acknowledge() <= 255
            case "l":
                wired.init(value)
        assert wired.intr == (pair.master.pending() is not None)
