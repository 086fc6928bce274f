"""The alarm that takes a processor's thread out of the guest."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from bivisor.cpu.kvm.alarm import Alarm
from bivisor.cpu.kvm.kick import kick_signal

PATIENCE_S = 60.0


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    """One whose signal waits to be looked at."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {kick_signal()})
    alarm = Alarm()
    yield alarm
    alarm.close()
    while signal.sigtimedwait({kick_signal()}, 0):
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, old)


def rings(patience: float = PATIENCE_S) -> bool:
    return signal.sigtimedwait({kick_signal()}, patience) is not None


def test_an_alarm_that_nobody_heard_comes_again(alarm: Alarm) -> None:
    alarm.set(1)
    assert [rings() for _ in range(3)] == [True] * 3


def test_an_alarm_that_is_off_does_not_come(alarm: Alarm) -> None:
    alarm.set(1)
    assert rings()
    alarm.off()
    rings(0)  # one may have come before
    assert not rings(0.02)


def test_the_last_deadline_is_the_one_that_counts(alarm: Alarm) -> None:
    alarm.set(1)
    alarm.set(3_600_000_000_000)
    rings(0)
    assert not rings(0.02)
    alarm.set(2_500_000)
    assert rings()
