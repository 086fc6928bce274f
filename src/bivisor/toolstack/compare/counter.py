"""Counting what happens to one guest: a listener on the stream of events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from bivisor import events
from bivisor.events import Event, Kind
from bivisor.toolstack.compare.result import Counts

KINDS = (Kind.EXIT, Kind.HYPERCALL, Kind.EVENT, Kind.INTERRUPT, Kind.GRANT, Kind.RING)
TO_BACKEND, TO_GUEST = "to the back-end", "to the guest"
DOORBELL = "Mmio doorbell (ioeventfd)"
_HYPERCALL, _MULTICALL = "Hypercall", "multicall"
_MOST_BATCHED = 64
_CONSOLE = "console"


Counters = Callable[[], Mapping[str, int]]


class Counter:
    """Counts the events of `domain`, 0 for a machine of the hosted architecture, where there is no other."""

    def __init__(self, domain: int, counters: Counters = dict) -> None:
        """`counters` are the engine's own. A write that the engine answers by an eventfd is no event; it shows as the
        difference."""
        self._domain = domain
        self._counters = counters
        self._mmio = counters().get("Mmio", 0)
        self._told_mmio = 0
        self._recent: deque[tuple[int, str]] = deque(maxlen=_MOST_BATCHED)
        self._batched: dict[str, int] = {}
        self._exits: dict[str, int] = {}
        self._hypercalls: dict[str, int] = {}
        self._events: dict[str, int] = {}
        self._interrupts: dict[str, int] = {}
        self._grants: dict[str, int] = {}
        self._requests: dict[str, int] = {}
        self._bytes = 0
        self.all = 0
        """Events that came, counted or not."""
        self._table = {
            events.Exit: self._exit,
            events.Hypercall: self._hypercall,
            events.EventSend: self._send,
            events.Interrupt: self._interrupt,
            events.Grant: self._grant,
            events.Ring: self._ring,
        }

    def hear(self, event: Event) -> None:
        """It happened."""
        self.all += 1
        self._table[type(event)](event)  # type: ignore[operator]

    def _exit(self, event: events.Exit) -> None:
        if event.domain == self._domain and event.reason != _HYPERCALL:
            key = f"{event.reason} {event.device}" if event.device else event.reason
            self._exits[key] = self._exits.get(key, 0) + 1
            self._told_mmio += event.reason == "Mmio"

    def _hypercall(self, event: events.Hypercall) -> None:
        if event.domain == self._domain:
            key = event.name
            self._hypercalls[key] = self._hypercalls.get(key, 0) + 1
            if event.call == _MULTICALL:  # those that it was made of came before it
                while self._recent and self._recent[-1][0] >= event.time:
                    inner = self._recent.pop()[1]
                    self._hypercalls[inner] -= 1
                    self._batched[inner] = self._batched.get(inner, 0) + 1
            else:
                self._recent.append((event.time, key))

    def _send(self, event: events.EventSend) -> None:
        if self._domain in (event.domain, event.to):
            key = TO_GUEST if event.to == self._domain else TO_BACKEND
            self._events[key] = self._events.get(key, 0) + 1

    def _interrupt(self, event: events.Interrupt) -> None:
        if event.domain == self._domain and event.level:
            self._interrupts[event.source] = self._interrupts.get(event.source, 0) + 1

    def _grant(self, event: events.Grant) -> None:
        if event.granter == self._domain:
            self._grants[event.op] = self._grants.get(event.op, 0) + 1

    def _ring(self, event: events.Ring) -> None:
        if event.domain == self._domain and event.end == "request" and _CONSOLE not in event.device:
            self._requests[event.op] = self._requests.get(event.op, 0) + 1
            self._bytes += event.size

    def counts(self) -> Counts:
        """What was counted so far."""
        exits = dict(self._exits)
        doorbells = self._counters().get("Mmio", 0) - self._mmio - self._told_mmio
        if doorbells > 0:
            exits[DOORBELL] = doorbells
        return Counts(
            exits,
            {name: number for name, number in self._hypercalls.items() if number},
            dict(self._batched),
            dict(self._events),
            dict(self._interrupts),
            dict(self._grants),
            dict(self._requests),
            self._bytes,
        )
