"""How often what happened, and how long it took, while somebody asks: what `bivisor top` shows."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from bivisor.events import Event, Events, Exit, Kind, Listener, Ring

_KINDS = (Kind.EXIT, Kind.HYPERCALL, Kind.EVENT, Kind.GRANT, Kind.XENSTORE, Kind.RING, Kind.INTERRUPT)
_ASKED_S = 10.0
"""How long after the last question it goes on counting."""
_MOST = 4096
"""Different things that are counted: a guest chooses some of the names."""


@dataclass(slots=True)
class _Tally:
    count: int = 0
    time: int = 0
    size: int = 0


class Counts:
    """Counts what `events` tell of from the first `look` on, and stops when nobody has looked for a while."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._timer: threading.Timer | None = None
        self._tallies: dict[tuple[int, str, str], _Tally] = {}
        self._asked: dict[tuple[int, str, int], int] = {}

    def look(self) -> dict[str, Any]:
        """What has been counted so far: `time` (ns) and `counts`, a row for each domain, kind and name; times in ns."""
        with self._lock:
            if self._listener is None:
                self._tallies.clear()
                self._asked.clear()
                self._listener = self._events.listen(self._count, _KINDS)
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(_ASKED_S, self.close)
            self._timer.daemon = True
            self._timer.start()
            return {
                "time": time.monotonic_ns(),
                "counts": [
                    {"domain": key[0], "kind": key[1], "name": key[2], "count": t.count, "ns": t.time, "bytes": t.size}
                    for key, t in list(self._tallies.items())
                ],
            }

    def _count(self, event: Event) -> None:
        name, took, size = event.name, event.duration, 0
        if isinstance(event, Exit):
            name = f"{name} {event.device}".rstrip()
        elif isinstance(event, Ring):
            key = event.domain, event.device, event.ident
            name = f"{event.device} {event.op}"
            if event.end == "response":
                began = self._asked.pop(key, None)
                if began is not None:
                    self._tally(event.domain, event.kind, name).time += event.time - began
                return
            if len(self._asked) < _MOST:
                self._asked[key] = event.time
            size = event.size
        tally = self._tally(event.domain, event.kind, name)
        tally.count += 1
        tally.time += took
        tally.size += size

    def _tally(self, domain: int, kind: Kind, name: str) -> _Tally:
        key = domain, kind.value, name
        tally = self._tallies.get(key)
        if tally is None:
            if len(self._tallies) >= _MOST:
                key = domain, kind.value, "others"
            tally = self._tallies.setdefault(key, _Tally())
        return tally

    def close(self) -> None:
        """Stop counting."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._listener is not None:
                self._listener.close()
                self._listener = None
