"""The I/O loop: timers in order, calls from other threads, descriptors, errors; and guests that set timers for ever."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from bivisor.host.loop import EventLoop, Loop, ManualLoop, Timer
from bivisor.platform.acpi_pm import PM1_EVENT, TMR_STS, AcpiPm
from bivisor.platform.i8254 import I8254
from bivisor.platform.rtc import Rtc

PATIENCE = 10.0


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    made.start()
    yield made
    made.close()


def timers() -> int:
    """How many timers there are in this process."""
    return sum(isinstance(each, Timer) for each in gc.get_objects())


def nothing(*_: object) -> None:
    pass


def test_timers_ring_in_the_order_of_their_deadlines() -> None:
    loop, rung = ManualLoop(), list[int]()
    for deadline in (3, 1, 2):
        loop.call_at(deadline, lambda deadline=deadline: rung.append(deadline))  # type: ignore[misc]
    loop.call_at(1.5, lambda: rung.append(99)).cancel()
    loop.advance(2)
    assert rung == [1, 2]
    loop.advance(1)
    assert rung == [1, 2, 3]


def test_a_timer_may_set_the_next_one() -> None:
    loop, rung = ManualLoop(), list[float]()

    def ring() -> None:
        rung.append(loop.now())
        if len(rung) < 3:
            loop.call_at(loop.now(), ring)

    loop.call_at(1, ring)
    loop.advance(1)
    assert rung == [1, 1, 1]


def test_a_timer_that_comes_before_the_one_waited_for_is_not_late(loop: EventLoop) -> None:
    rung = threading.Event()
    loop.call_at(loop.now() + 3600, nothing)
    loop.call_at(loop.now() + 0.01, rung.set)
    assert rung.wait(PATIENCE)


def test_calls_of_other_threads_run_in_the_loops(loop: EventLoop) -> None:
    done, names = threading.Event(), list[str]()
    loop.call_soon(lambda: names.append(threading.current_thread().name))
    loop.call_soon(done.set)
    assert done.wait(PATIENCE)
    assert names != [threading.current_thread().name]


def test_a_descriptor_is_called_back_until_its_watch_ends(loop: EventLoop) -> None:
    heard, ended = threading.Event(), threading.Event()
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def readable() -> None:
        os.read(read, 1)
        loop.unwatch(read)
        heard.set()

    try:
        loop.watch(read, readable)
        os.write(write, b"12")
        assert heard.wait(PATIENCE)
        loop.call_soon(ended.set)
        assert ended.wait(PATIENCE)
        assert os.read(read, 2) == b"2"
    finally:
        os.close(read)
        os.close(write)


def test_an_error_in_a_callback_is_handed_over() -> None:
    errors, told = list[BaseException](), threading.Event()

    def on_error(error: BaseException) -> None:
        errors.append(error)
        told.set()

    loop = EventLoop(on_error)
    loop.start()
    loop.call_soon(lambda: [].pop())
    assert told.wait(PATIENCE)
    loop.close()
    assert [type(error) for error in errors] == [IndexError]


@pytest.mark.parametrize("make", [ManualLoop, EventLoop])
def test_timers_that_are_cancelled_are_not_kept_until_their_time_comes(make: Callable[[], Loop]) -> None:
    loop = make()
    before = timers()
    kept = [loop.call_at(1e9, nothing) for _ in range(100)]
    for _ in range(10_000):
        loop.call_at(1e9, nothing).cancel()
    assert timers() - before < 1000
    assert not any(timer.cancelled for timer in kept)
    if isinstance(loop, EventLoop):
        loop.close()


def test_a_guest_that_sets_a_timer_again_and_again_does_not_fill_the_host() -> None:
    loop = ManualLoop()
    power = AcpiPm(loop, nothing, nothing)
    clock = Rtc(loop, lambda: 0.0, nothing)
    pit = I8254(loop, nothing)
    before = timers()
    for number in range(10_000):
        power.write(PM1_EVENT + 2, 2, TMR_STS)
        clock.write(0, 1, 0x0B)
        clock.write(1, 1, 0x52)
        pit.write(3, 1, 0x34)
        pit.write(0, 1, number & 0xFF)
        pit.write(0, 1, 0xFF)
    assert timers() - before < 1000
