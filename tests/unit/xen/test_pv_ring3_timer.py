"""The one-shot timer of a PV domain's processor on kvm: when it rings, and what the host has to do for it."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.xen.pv.ring3 import hidden as h
from bivisor.xen.pv.ring3 import timer
from bivisor.xen.pv.ring3.block import NEVER, Block

MS: Final = 1_000_000
TICK: Final = 4 * MS


class Host:
    """The host's clock and timer, and the stub: what a guest's processor would meet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = MS
        self.next: int | None = None
        self.again = self.sets = self.calls = 0
        monkeypatch.setattr(timer, "Alarm", lambda: self)
        hidden = h.Hidden(64, 1)
        self.block = Block(hidden, 0)
        self.timer = timer.OneShot(self.block)

    def set(self, after: int, again: int) -> None:
        """See `Alarm.set`."""
        assert after > 0 and again > 0
        self.next, self.again = self.now + after, again
        self.sets += 1

    def off(self) -> None:
        """See `Alarm.off`."""
        self.next = None

    def close(self) -> None:
        """See `Alarm.close`."""

    def guest_sets(self, deadline: int) -> None:
        """VCPUOP_set_singleshot_timer, as the stub takes it or not."""
        if deadline >= self.block.times[0]:
            self.block.times[1] = deadline
        else:
            self.calls += 1
            self.timer.set(deadline, self.now)

    def run(self, until: int) -> list[int]:
        """Let time pass; when it rang."""
        rang = []
        while self.next is not None and self.next <= until:
            self.now, self.next = self.next, self.next + self.again
            if self.timer.alarmed(self.now):
                rang.append(self.now)
        self.now = max(self.now, until)
        return rang


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def tick(host: Host, number: int, late: int = 0) -> None:
    """A kernel's tick, which sets the timer some microseconds after it looked at its clock."""
    deadline = number * TICK + 1000 + number % 7 * 500
    host.guest_sets(deadline)
    assert len(host.run(deadline + 2 * timer.SLACK_NS)) == 1
    host.now += 100_000 + late


def test_the_host_has_nothing_to_do_for_a_kernel_that_ticks(host: Host) -> None:
    for number in range(1, 8):
        tick(host, number)
    sets, calls = host.sets, host.calls
    for number in range(8, 1000):
        tick(host, number)
    assert (host.sets, host.calls) == (sets, calls)


def test_ticks_that_are_left_out_make_no_other_period(host: Host) -> None:
    for number in range(1, 8):
        tick(host, number)
    host.guest_sets(8 * TICK)
    host.now, host.next = 11 * TICK + MS, 12 * TICK + timer.SLACK_NS
    assert host.timer.alarmed(host.now)
    for number in range(12, 15):
        tick(host, number)
    sets, calls = host.sets, host.calls
    for number in range(15, 100):
        tick(host, number)
    assert (host.sets, host.calls) == (sets, calls)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30 * MS), st.integers(0, 30 * MS)), max_size=30))
def test_it_rings_once_for_a_deadline_not_before_it_and_hardly_after(steps: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        host = Host(patch)
        for after, passes in steps:
            deadline, until = host.now + after, host.now + passes
            host.guest_sets(deadline)
            begun = host.now
            rang = host.run(until)
            if until > deadline + 2 * timer.SLACK_NS:
                assert len(rang) == 1
                assert deadline <= rang[0] <= max(deadline, begun + 1) + 2 * timer.SLACK_NS
            else:
                assert len(rang) <= (until >= deadline)


def test_each_hypercall_comes_out_while_somebody_listens(host: Host) -> None:
    for number in range(1, 5):
        tick(host, number)
    host.timer.listen(True)
    calls = host.calls
    for number in range(5, 10):
        tick(host, number)
    assert host.calls == calls + 5
    host.timer.listen(False)
    for number in range(10, 15):
        tick(host, number)
    calls = host.calls
    tick(host, 15)
    assert host.calls == calls


def test_what_is_taken_rings_no_more(host: Host) -> None:
    host.guest_sets(5 * TICK)
    assert host.timer.is_set
    assert host.timer.take() == 5 * TICK
    assert not host.timer.is_set and host.timer.take() is None
    assert host.run(100 * TICK) == []
    assert host.block.times[0] == NEVER


@pytest.mark.parametrize("deadline", [0, -(1 << 63), (1 << 64) - 1, 1 << 63])
def test_a_time_that_has_passed_rings_at_once(host: Host, deadline: int) -> None:
    host.timer.set(deadline, host.now)
    assert len(host.run(host.now + 2 * timer.SLACK_NS)) == 1


@pytest.mark.parametrize("deadline", [NEVER - 1, NEVER, 1 << 60])
def test_a_time_in_centuries_does_not_ring(host: Host, deadline: int) -> None:
    host.timer.set(deadline, host.now)
    assert host.run(host.now + 10 * 3600 * 1000 * MS) == []
