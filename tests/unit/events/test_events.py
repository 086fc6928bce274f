"""The stream of events: who hears what, what is lost, what hooks decide, and that nothing else stays behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.events import (
    Answer,
    Delay,
    Deny,
    Drop,
    Event,
    Events,
    EventSend,
    Exit,
    Hypercall,
    Kind,
    Life,
    Probe,
    Subscription,
)
from bivisor.events.model import CLASSES, from_dict


def hypercall(call: str = "sched_op", op: str = "yield", domain: int = 1) -> Hypercall:
    return Hypercall(5, domain, 0, 2, 29, call, op, [0, 0], {"arg": 7}, 0)


class Place:
    """A place that tells of hypercalls, of one domain or of many."""

    def __init__(self, events: Events, domain: int | None = None, kind: Kind = Kind.HYPERCALL) -> None:
        self.probe: Probe | None = None
        self.installed = 0
        self.site = events.site(kind, self._install, domain)

    def _install(self, probe: Probe | None) -> None:
        self.probe = probe
        self.installed += 1

    def happens(self, event: Event) -> object:
        """What becomes of it."""
        if self.probe is None:
            return "unseen"
        verdict = self.probe.ask(event)
        if verdict is None:
            self.probe.over(event)
        return verdict


def test_a_place_holds_nothing_while_nobody_listens() -> None:
    events = Events()
    place, other = Place(events, 1), Place(events, 2)
    assert place.probe is None and not place.installed
    listener = events.listen(lambda _: None, [Kind.HYPERCALL], domains=[1])
    assert place.probe is not None
    assert other.probe is None and not other.installed
    exits = Place(events, 1, Kind.EXIT)
    assert exits.probe is None
    listener.close()
    listener.close()
    assert place.probe is None


def test_a_place_that_comes_later_is_told_at_once_and_one_that_goes_is_told_too() -> None:
    events = Events()
    events.listen(lambda _: None)
    place = Place(events)
    assert place.probe is not None
    events.remove(place.site)
    assert place.probe is None
    events.remove(place.site)


def test_who_listens_hears_what_was_asked_for_and_nothing_else() -> None:
    events = Events()
    place = Place(events)
    heard: list[Event] = []
    events.listen(heard.append, [Kind.HYPERCALL], domains=[1], names=["sched_op.*", "send"])
    one, two, other = hypercall(), hypercall("event_channel_op", "send"), hypercall("memory_op", "exchange")
    for event in (one, two, other, hypercall(domain=2)):
        place.happens(event)
    assert heard == [one, two]


def test_rare_things_are_told_without_a_place() -> None:
    events = Events()
    with events.subscribe([Kind.LIFE]) as lives, events.subscribe([Kind.EXIT]) as exits:
        events.tell(Life(1, 3, -1, 0, "created", "demo"))
        assert [event.name for event in lives.take()] == ["created"]
        assert exits.take() == []


def test_a_listener_that_raises_is_taken_off_and_nobody_else_notices() -> None:
    events = Events()
    place = Place(events)
    heard: list[Event] = []

    def broken(_: Event) -> None:
        raise RuntimeError("broken")

    listener = events.listen(broken, [Kind.HYPERCALL])
    events.listen(heard.append, [Kind.HYPERCALL])
    for _ in range(2):
        place.happens(hypercall())
    assert isinstance(listener.error, RuntimeError)
    assert len(heard) == 2


# -------------------------------------------------------------------- the ring


@given(limit=st.integers(1, 20), turns=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=20))
def test_a_ring_keeps_the_newest_and_counts_the_others(limit: int, turns: list[tuple[int, int]]) -> None:
    ring = Subscription(limit)
    put = taken = 0
    last = -1
    for come, most in turns:
        for _ in range(come):
            ring.put(Life(put, 0, -1, 0, "x"))
            put += 1
        waiting = min(limit, put - taken - ring.dropped) if come == 0 else None
        found = [event.time for event in ring.take(most)]
        assert found == sorted(found) and (not found or found[0] > last)
        assert waiting is None or len(found) == min(waiting, most) or ring.dropped
        taken += len(found)
        last = found[-1] if found else last
    taken += len(ring.take())
    assert taken + ring.dropped == put
    assert ring.dropped >= 0


def test_events_of_many_threads_are_all_kept_or_counted() -> None:
    ring = Subscription(100)

    def put() -> None:
        for _ in range(2000):
            ring.put(Life(0, 0, -1, 0, "x"))

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    taken = 0
    while any(thread.is_alive() for thread in threads):
        taken += len(ring.take())
    taken += len(ring.take())
    assert taken + ring.dropped == 8000


def test_a_reader_waits_for_events_and_not_for_ever() -> None:
    events = Events()
    subscription = events.subscribe([Kind.LIFE])
    assert subscription.wait(0.01) == []
    threading.Timer(0.01, events.tell, [Life(1, 0, -1, 0, "started")]).start()
    assert [event.name for event in subscription.wait(10)] == ["started"]
    subscription.close()
    events.tell(Life(1, 0, -1, 0, "ended"))
    assert subscription.wait() == []
    with pytest.raises(ValueError, match="room for one"):
        Subscription(0)


# -------------------------------------------------------------------- hooks


@pytest.mark.parametrize("verdict", [Deny(22), Drop(), Delay(1.0), Answer(3)])
def test_what_the_first_hook_says_that_says_something_counts(verdict: object) -> None:
    events = Events()
    place = Place(events)
    asked: list[int] = []
    events.intercept(Kind.HYPERCALL, lambda event: asked.append(1))
    events.intercept(Kind.HYPERCALL, lambda event: verdict)  # type: ignore[arg-type, return-value]
    events.intercept(Kind.HYPERCALL, lambda event: asked.append(3))
    assert place.happens(hypercall()) is verdict
    assert asked == [1]


def test_hooks_may_change_what_came_of_it_before_listeners_hear() -> None:
    events = Events()
    place = Place(events)
    results: list[int | None] = []

    def change(to: int) -> Callable[[Event], None]:
        def after(event: Event) -> None:
            assert isinstance(event, Hypercall)
            results.append(event.result)
            event.result = to

        return after

    events.listen(lambda event: results.append(event.result), [Kind.HYPERCALL])  # type: ignore[attr-defined]
    events.intercept(Kind.HYPERCALL, after=change(2))
    events.intercept(Kind.HYPERCALL, after=change(1), names=["yield"])
    place.happens(hypercall())
    assert results == [0, 1, 2]  # the hook that came last is the first to see it


def test_a_hook_that_raises_is_taken_off_and_raises_when_it_is_closed() -> None:
    events = Events()
    place = Place(events)

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), events.intercept(Kind.HYPERCALL, broken):
        assert place.happens(hypercall()) is None
        assert place.happens(hypercall()) == "unseen"
    assert place.probe is None


# -------------------------------------------------------------------- as JSON


def test_every_event_is_the_same_again_after_a_journey_as_json() -> None:
    for kind, class_ in CLASSES.items():
        assert class_.kind is kind
    for event in (
        hypercall(),
        Exit(1, 0, 0, 9, "PortIo", 0x3F8, 1, True, 65, "COM1"),
        EventSend(1, 1, -1, 0, "send", 1, 0, 2),
    ):
        said = json.loads(json.dumps(event.to_dict()))
        assert said["name"] == event.name
        assert from_dict(said) == event
