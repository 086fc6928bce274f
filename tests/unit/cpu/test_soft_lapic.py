"""The local APIC against the SDM's rules, with an owner that owns time."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bivisor.abi.x86 import APIC_BASE_ENABLE, APIC_BASE_EXTD, Apic
from bivisor.cpu.soft.lapic import TIMER_HZ, LocalApic
from bivisor.cpu.soft.x2apic import ApicError, read_msr, write_msr

FIXED, NMI, INIT, SIPI = 0, 4, 5, 6
LEVEL, LOGICAL, SELF, ALL = 1 << 15, 1 << 11, 1 << 18, 2 << 18
ONESHOT, PERIODIC, TSC_DEADLINE, MASKED = 0, 1 << 17, 2 << 17, 1 << 16
TSC_HZ = 2_000_000_000.0


class Owner:
    """A processor whose clock stands still until it is told to go on."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.changes = self.nmis = 0
        self.ended: list[int] = []
        self.deadline: float | None = None
        self.sent: list[tuple[int, bool, int, int, int]] = []

    def apic_changed(self) -> None:
        self.changes += 1

    def apic_nmi(self) -> None:
        self.nmis += 1

    def apic_eoi(self, vector: int) -> None:
        self.ended.append(vector)

    def apic_timer(self, deadline: float | None) -> None:
        self.deadline = deadline

    def apic_send(self, destination: int, logical: bool, shorthand: int, mode: int, vector: int) -> None:
        self.sent.append((destination, logical, shorthand, mode, vector))

    def now(self) -> float:
        return self.time

    def tsc(self) -> int:
        return int(self.time * TSC_HZ)

    def tsc_hz(self) -> float:
        return TSC_HZ


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def apic(owner: Owner) -> LocalApic:
    return enabled(owner)


@pytest.fixture
def x2apic(apic: LocalApic) -> LocalApic:
    apic.base |= APIC_BASE_EXTD
    return apic


def enabled(owner: Owner) -> LocalApic:
    apic = LocalApic(0, owner)
    apic.base = 0xFEE0_0000 | APIC_BASE_ENABLE
    apic.write(Apic.SIVR, 0x1FF)
    return apic


def take(apic: LocalApic) -> int:
    vector = apic.pending()
    if vector >= 0:
        apic.accept(vector)
    return vector


# ---------------------------------------------------------------- priorities


def test_the_highest_vector_comes_first(apic: LocalApic) -> None:
    for vector in (0x31, 0x81, 0x52):
        apic.request(vector)
    assert take(apic) == 0x81


def test_an_interrupt_in_service_holds_back_its_class_and_those_below(apic: LocalApic) -> None:
    apic.request(0x51)
    assert take(apic) == 0x51
    apic.request(0x5F)
    apic.request(0x42)
    assert take(apic) == -1
    apic.request(0x60)
    assert take(apic) == 0x60


def test_eoi_ends_the_highest_in_service(apic: LocalApic) -> None:
    for vector in (0x41, 0x61):
        apic.request(vector)
        take(apic)
    apic.write(Apic.EOI, 0)
    assert apic.isr == 1 << 0x41
    apic.write(Apic.EOI, 0)
    assert apic.isr == 0
    apic.write(Apic.EOI, 0)


def test_the_task_priority_holds_back_its_class(apic: LocalApic) -> None:
    apic.write(Apic.TPR, 0x50)
    apic.request(0x5F)
    assert apic.pending() == -1
    apic.write(Apic.TPR, 0x4F)
    assert apic.pending() == 0x5F


@pytest.mark.parametrize(
    ("tpr", "isr", "ppr"), [(0x23, 0, 0x23), (0x23, 0x45, 0x40), (0x45, 0x41, 0x45), (0, 0x45, 0x40)]
)
def test_the_processor_priority_is_the_higher_of_task_and_service(
    apic: LocalApic, tpr: int, isr: int, ppr: int
) -> None:
    if isr:
        apic.request(isr)
        take(apic)
    apic.write(Apic.TPR, tpr)
    assert apic.read(Apic.PPR) == ppr


def test_requests_service_and_trigger_modes_show_in_their_registers(apic: LocalApic) -> None:
    apic.request(0x47, level=True)
    apic.request(0xE1)
    assert take(apic) == 0xE1
    assert apic.read(Apic.IRR + 0x20) == 1 << 7
    assert apic.read(Apic.TMR + 0x20) == 1 << 7
    assert apic.read(Apic.ISR + 0x70) == 1 << 1
    assert apic.read(Apic.IRR + 0x70) == apic.read(Apic.TMR + 0x70) == 0


def test_only_the_end_of_a_level_interrupt_is_broadcast(apic: LocalApic, owner: Owner) -> None:
    for vector, level in ((0x31, True), (0x41, False)):
        apic.request(vector, level)
        take(apic)
    apic.eoi()
    assert owner.ended == []
    apic.eoi()
    assert owner.ended == [0x31]


def test_the_broadcast_can_be_suppressed(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.SIVR, 0x11FF)
    apic.request(0x31, level=True)
    take(apic)
    apic.eoi()
    assert owner.ended == []


# ---------------------------------------------------------------- enabling and errors


def test_a_disabled_apic_takes_no_fixed_interrupt_but_an_nmi(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.SIVR, 0xFF)
    apic.deliver(FIXED, 0x40, False)
    apic.deliver(NMI, 0, False)
    assert apic.pending() == -1
    assert owner.nmis == 1


def test_disabling_masks_every_local_vector_for_good(apic: LocalApic) -> None:
    apic.write(Apic.LVT_TIMER, 0x40)
    apic.write(Apic.SIVR, 0xFF)
    assert apic.read(Apic.LVT_TIMER) & MASKED
    apic.write(Apic.LVT_TIMER, 0x40)
    assert apic.read(Apic.LVT_TIMER) & MASKED
    apic.write(Apic.SIVR, 0x1FF)
    assert apic.read(Apic.LVT_TIMER) & MASKED


def test_a_vector_below_16_is_an_error_that_is_reported_once(apic: LocalApic) -> None:
    apic.write(Apic.LVT_ERROR, 0x33)
    apic.request(0x0F)
    assert take(apic) == 0x33
    apic.write(Apic.ESR, 0)
    assert apic.read(Apic.ESR) == 1 << 6
    apic.write(Apic.ESR, 0)
    assert apic.read(Apic.ESR) == 0


def test_an_error_vector_below_16_does_not_report_itself(apic: LocalApic) -> None:
    apic.write(Apic.LVT_ERROR, 0x05)
    apic.request(0x01)
    assert apic.pending() == -1


def test_an_illegal_vector_is_not_sent(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.ICR_LOW, SELF | 0x0F)
    apic.write(Apic.ESR, 0)
    assert apic.read(Apic.ESR) == 1 << 5
    assert owner.sent == []


def test_reserved_registers_read_as_zero_and_ignore_writes(apic: LocalApic) -> None:
    for offset in (0, 0x10, 0x40, 0x2F0, 0x3A0, 0x3F0):
        apic.write(offset, 0xFFFF_FFFF)
        assert apic.read(offset) == 0


def test_every_offset_can_be_read_and_written_with_anything(apic: LocalApic) -> None:
    for offset in range(0, 0x1000, 0x10):
        for value in (0xFFFF_FFFF, 0):
            apic.write(offset, value)
            assert 0 <= apic.read(offset) <= 0xFFFF_FFFF


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("low", [SELF | 0x71, ALL | 0x71, 0x71])
def test_an_ipi_to_itself_arrives(apic: LocalApic, low: int) -> None:
    apic.write(Apic.ICR_LOW, low)
    assert apic.pending() == 0x71


def test_an_ipi_to_all_others_does_not_arrive_here(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.ICR_LOW, 3 << 18 | 0x71)
    assert apic.pending() == -1
    assert owner.sent == [(0, False, 3, FIXED, 0x71)]


def test_init_and_startup_to_itself_do_nothing(apic: LocalApic) -> None:
    for mode in (INIT, SIPI):
        apic.write(Apic.ICR_LOW, mode << 8 | 0x71)
    assert apic.pending() == -1


def test_an_nmi_ipi_arrives_whatever_its_vector(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.ICR_LOW, SELF | NMI << 8)
    assert owner.nmis == 1


@pytest.mark.parametrize(("destination", "arrives"), [(0, True), (1, False), (0xFF, True)])
def test_a_physical_destination_is_an_apic_id_or_all(apic: LocalApic, destination: int, arrives: bool) -> None:
    assert apic.matches(destination, logical=False) is arrives


@pytest.mark.parametrize(
    ("dfr", "destination", "arrives"),
    [(0xFFFF_FFFF, 0x24, True), (0xFFFF_FFFF, 0x01, False), (0x0FFF_FFFF, 0x24, True), (0x0FFF_FFFF, 0x14, False)],
)
def test_a_logical_destination_is_flat_or_clustered(apic: LocalApic, dfr: int, destination: int, arrives: bool) -> None:
    apic.write(Apic.LDR, 0x24 << 24)
    apic.write(Apic.DFR, dfr)
    assert apic.matches(destination, logical=True) is arrives


# ---------------------------------------------------------------- x2APIC


@pytest.mark.parametrize("index", [0x80B, 0x80E, 0x831, 0x83F, 0x800, 0x82F])
def test_x2apic_registers_that_cannot_be_read(x2apic: LocalApic, index: int) -> None:
    with pytest.raises(ApicError):
        read_msr(x2apic, index)


@pytest.mark.parametrize(
    ("index", "value"),
    [(0x802, 0), (0x80D, 0), (0x80E, 0), (0x831, 0), (0x80B, 1), (0x828, 1), (0x808, 1 << 32), (0x810, 0), (0x800, 0)],
)
def test_x2apic_registers_that_cannot_be_written(x2apic: LocalApic, index: int, value: int) -> None:
    with pytest.raises(ApicError):
        write_msr(x2apic, index, value)


def test_the_msrs_are_not_there_in_xapic_mode(apic: LocalApic) -> None:
    with pytest.raises(ApicError):
        read_msr(apic, 0x802)
    with pytest.raises(ApicError):
        write_msr(apic, 0x80B, 0)


def test_the_x2apic_sends_in_one_write_and_to_itself_in_another(x2apic: LocalApic) -> None:
    write_msr(x2apic, 0x830, 0x52)
    assert take(x2apic) == 0x52
    write_msr(x2apic, 0x83F, 0x63)
    assert take(x2apic) == 0x63
    write_msr(x2apic, 0x80B, 0)
    assert x2apic.isr == 1 << 0x52


def test_the_x2apic_has_a_logical_id_of_its_own(x2apic: LocalApic) -> None:
    assert read_msr(x2apic, 0x80D) == 1
    assert x2apic.matches(1, logical=True)
    assert not x2apic.matches(0x1_0001, logical=True)
    assert x2apic.matches(0xFFFF_FFFF, logical=True)


def test_the_page_answers_in_xapic_mode_only(apic: LocalApic) -> None:
    assert apic.answers_at(0xFEE0_0320)
    assert not apic.answers_at(0xFEE0_1000)
    apic.base |= APIC_BASE_EXTD
    assert not apic.answers_at(0xFEE0_0320)


# ---------------------------------------------------------------- timer


def test_a_one_shot_timer_fires_once(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.DIV_CONF, 0xB)
    apic.write(Apic.LVT_TIMER, ONESHOT | 0x40)
    apic.write(Apic.INIT_COUNT, TIMER_HZ)
    assert owner.deadline == owner.time + 1
    owner.time += 0.75
    apic.tick()
    assert apic.pending() == -1
    assert apic.read(Apic.CUR_COUNT) == TIMER_HZ // 4
    owner.time += 0.25
    apic.tick()
    assert take(apic) == 0x40
    assert apic.read(Apic.CUR_COUNT) == 0
    apic.eoi()
    owner.time += 10
    apic.tick()
    assert apic.pending() == -1


@pytest.mark.parametrize(("code", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_the_clock_is_divided(apic: LocalApic, owner: Owner, code: int, divisor: int) -> None:
    apic.write(Apic.DIV_CONF, code)
    apic.write(Apic.INIT_COUNT, TIMER_HZ // 128)
    assert owner.deadline == pytest.approx(owner.time + divisor / 128)


def test_a_periodic_timer_catches_up_with_one_interrupt(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.DIV_CONF, 0xB)
    apic.write(Apic.LVT_TIMER, PERIODIC | 0x40)
    apic.write(Apic.INIT_COUNT, TIMER_HZ // 1000)
    owner.time += 1000.0005
    apic.tick()
    assert take(apic) == 0x40
    apic.eoi()
    apic.tick()
    assert apic.pending() == -1
    assert owner.deadline is not None
    assert owner.time < owner.deadline <= owner.time + 0.001


def test_a_period_of_one_nanosecond_is_more_than_the_host_does(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.DIV_CONF, 0xB)
    apic.write(Apic.LVT_TIMER, PERIODIC | 0x40)
    apic.write(Apic.INIT_COUNT, 1)
    for _ in range(3):
        owner.time += 1e-6
        apic.tick()
    assert owner.deadline is not None
    assert owner.deadline >= owner.time + 10e-6


def test_the_tsc_deadline_fires_when_the_counter_is_there(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.LVT_TIMER, TSC_DEADLINE | 0x40)
    apic.set_tsc_deadline(owner.tsc() + int(TSC_HZ))
    assert owner.deadline == pytest.approx(owner.time + 1)
    owner.time += 1.001
    apic.tick()
    assert take(apic) == 0x40
    assert apic.tsc_deadline == 0


def test_a_tsc_deadline_of_zero_disarms(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.LVT_TIMER, TSC_DEADLINE | 0x40)
    apic.set_tsc_deadline(owner.tsc() + 1000)
    apic.set_tsc_deadline(0)
    assert owner.deadline is None


def test_a_tsc_deadline_is_ignored_in_the_other_modes(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.LVT_TIMER, ONESHOT | 0x40)
    apic.set_tsc_deadline(owner.tsc() + 1000)
    assert owner.deadline is None
    assert apic.tsc_deadline == 0


def test_a_count_is_ignored_in_tsc_deadline_mode(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.LVT_TIMER, TSC_DEADLINE | 0x40)
    apic.write(Apic.INIT_COUNT, 1000)
    assert owner.deadline is None


def test_another_mode_disarms_the_timer(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.INIT_COUNT, 1000)
    apic.write(Apic.LVT_TIMER, TSC_DEADLINE | 0x40)
    assert owner.deadline is None


def test_a_masked_timer_runs_but_does_not_interrupt(apic: LocalApic, owner: Owner) -> None:
    apic.write(Apic.LVT_TIMER, MASKED | 0x40)
    apic.write(Apic.INIT_COUNT, 1000)
    owner.time += 1
    apic.tick()
    assert apic.pending() == -1
    assert apic.read(Apic.CUR_COUNT) == 0


# ---------------------------------------------------------------- whatever happens, in whatever order


class AnyOrder(RuleBasedStateMachine):
    """Requests, acceptance, EOIs and task priorities against two sets of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.apic = enabled(Owner())
        self.requested: set[int] = set()
        self.service: list[int] = []
        self.tpr = 0

    def priority(self) -> int:
        return max([self.tpr >> 4, *(vector >> 4 for vector in self.service)])

    def expected(self) -> int:
        highest = max(self.requested, default=-1)
        return highest if highest >> 4 > self.priority() else -1

    @rule(vector=st.integers(16, 255), level=st.booleans())
    def request(self, vector: int, level: bool) -> None:
        self.apic.request(vector, level)
        self.requested.add(vector)

    @rule()
    def accept(self) -> None:
        expected = self.expected()
        assert take(self.apic) == expected
        if expected >= 0:
            self.requested.remove(expected)
            self.service.append(expected)

    @precondition(lambda self: self.service)
    @rule()
    def end(self) -> None:
        self.apic.eoi()
        self.service.remove(max(self.service))

    @rule(value=st.integers(0, 255))
    def task_priority(self, value: int) -> None:
        self.apic.write(Apic.TPR, value)
        self.tpr = value

    @invariant()
    def nothing_is_lost_and_nothing_comes_twice(self) -> None:
        assert self.apic.irr == sum(1 << vector for vector in self.requested)
        assert self.apic.isr == sum(1 << vector for vector in self.service)
        assert self.apic.pending() == self.expected()


TestAnyOrder = AnyOrder.TestCase
