"""The alarm rings, once, and is not kept from it by waiting for something later."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from bivisor.cpu.soft.alarm import Alarm

PATIENCE = 20.0
FAR = 1e6


class Bell:
    """Counts how often it is rung."""

    def __init__(self) -> None:
        self.rung = threading.Semaphore(0)

    def __call__(self) -> None:
        self.rung.release()

    def rings(self) -> bool:
        return self.rung.acquire(timeout=PATIENCE)

    def is_silent(self) -> bool:
        return not self.rung.acquire(blocking=False)


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def alarm(bell: Bell) -> Iterator[Alarm]:
    made = Alarm(bell, "test-alarm")
    yield made
    made.close()


def test_a_deadline_that_has_passed_rings_at_once(alarm: Alarm, bell: Bell) -> None:
    alarm.set(time.monotonic() - 1)
    assert bell.rings()


def test_an_earlier_deadline_takes_the_place_of_a_later_one(alarm: Alarm, bell: Bell) -> None:
    alarm.set(time.monotonic() + FAR)
    alarm.set(time.monotonic())
    assert bell.rings()


def test_a_deadline_rings_only_once(alarm: Alarm, bell: Bell) -> None:
    for _ in range(3):
        alarm.set(time.monotonic())
        assert bell.rings()
    assert bell.is_silent()


def test_no_deadline_means_silence(alarm: Alarm, bell: Bell) -> None:
    alarm.set(time.monotonic() + FAR)
    alarm.set(None)
    assert bell.is_silent()


def test_a_deadline_in_centuries_does_not_end_the_alarm(alarm: Alarm, bell: Bell) -> None:
    alarm.set(time.monotonic() + 1e12)
    alarm.set(time.monotonic())
    assert bell.rings()


def test_the_heartbeat_goes_on_ringing(alarm: Alarm, bell: Bell) -> None:
    alarm.heartbeat = 0.001
    assert all(bell.rings() for _ in range(5))


def test_the_heartbeat_rings_beside_a_later_deadline(alarm: Alarm, bell: Bell) -> None:
    alarm.set(time.monotonic() + FAR)
    alarm.heartbeat = 0.001
    assert bell.rings()


def test_nothing_rings_after_it_is_closed(bell: Bell) -> None:
    alarm = Alarm(bell, "test-alarm-closed")
    alarm.set(time.monotonic() + FAR)
    alarm.close()
    alarm.set(time.monotonic())
    alarm.close()
    assert bell.is_silent()
    assert "test-alarm-closed" not in {thread.name for thread in threading.enumerate()}
