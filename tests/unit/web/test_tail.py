"""The newest events for somebody who looks on: bounded, counted, and ended with the connection."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bivisor.errors import UsageError
from bivisor.events import Events, EventSend, Kind, Life
from bivisor.toolstack.hostd.tail import MOST_A_TURN, Newest, Tail, kinds_of


def sent(number: int, domain: int = 1) -> EventSend:
    return EventSend(number, domain, 0, 0, "send", 7, 0, number)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    yield here, there
    here.close()
    there.close()


def test_a_turn_has_the_newest_and_counts_them_all() -> None:
    newest = Newest()
    for number in range(10_000):
        newest.put(sent(number))
    message = newest.turn()
    assert message is not None
    assert message["counts"] == {"event.send": 10_000}
    assert [event["port"] for event in message["events"]] == list(range(10_000 - MOST_A_TURN, 10_000))
    assert len(json.dumps(message)) < 16_000
    assert newest.turn() is None


def test_only_events_with_the_fields_that_were_asked_for_are_told() -> None:
    newest = Newest([{"domain": 2, "port": 5}, {"domain": 0, "port": 9}, {"colour": "red"}])
    for number in range(10):
        newest.put(sent(number, domain=number % 3))
    message = newest.turn()
    assert message is not None
    assert [event["port"] for event in message["events"]] == [5, 9]
    assert message["counts"] == {"event.send": 2}
    newest.put(sent(1))
    assert newest.turn() is None


def test_nobody_listens_any_more_once_the_other_end_has_hung_up(ends: tuple[socket.socket, socket.socket]) -> None:
    events = Events()
    here, there = ends
    tail = Tail(events, here, kinds=[Kind.LIFE])
    tail.start()
    events.tell(Life(1, 3, -1, 0, "created", "demo"))
    line = there.makefile().readline()
    assert json.loads(line)["events"][0]["domain"] == 3
    there.close()
    deadline = time.monotonic() + 10
    while events.wants(Kind.LIFE):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_reader_that_does_not_read_holds_nobody_up(ends: tuple[socket.socket, socket.socket]) -> None:
    events = Events()
    here, _ = ends
    Tail(events, here, kinds=[Kind.LIFE]).start()
    told = threading.Event()

    def tell() -> None:
        for number in range(50_000):
            events.tell(Life(number, 3, -1, 0, "created", "x" * 200))
        told.set()

    threading.Thread(target=tell, daemon=True).start()
    assert told.wait(60)


def test_a_kind_that_is_none_is_refused_with_those_that_are() -> None:
    assert kinds_of(["ring", "exit"]) == [Kind.RING, Kind.EXIT]
    assert kinds_of([]) == list(Kind)
    with pytest.raises(UsageError, match=r"colour.*hypercall"):
        kinds_of(["colour"])
