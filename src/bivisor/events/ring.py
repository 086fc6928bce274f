"""Events kept for a reader, in a ring of a bounded number: a guest never waits for who looks at it."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable

from bivisor.events.model import Event

_GLANCE_S = 0.005


class Subscription:
    """The last `limit` events that were asked for and not yet read. What falls out of the ring is counted in `dropped`.

    Any threads put events in; one reads. As a context manager it closes at the end.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError("a ring has room for one event at least")
        self.limit = limit
        self.dropped = 0
        self.closed = False
        self.on_close: Callable[[], None] = lambda: None
        self._kept: deque[tuple[int, Event]] = deque(maxlen=limit)
        self._next = itertools.count()
        self._highest = -1
        self._read = 0

    def put(self, event: Event) -> None:
        """Keep `event`; the oldest makes room."""
        self._kept.append((next(self._next), event))

    def take(self, most: int = 1 << 30) -> list[Event]:
        """The events that are there, oldest first; at most so many."""
        found: list[Event] = []
        kept = self._kept
        while kept and len(found) < most:
            try:
                number, event = kept.popleft()
            except IndexError:  # it fell out meanwhile
                break
            if number > self._highest:
                self._highest = number
            found.append(event)
        self._read += len(found)
        self.dropped = self._highest + 1 - self._read
        return found

    def wait(self, timeout: float | None = None) -> list[Event]:
        """The events that are there, as soon as there are some; none after `timeout` seconds, or when it is closed."""
        self.wait_until_some(timeout)
        return self.take()

    def wait_until_some(self, timeout: float | None = None) -> None:
        """Wait until there are events, for `timeout` seconds at most, and not if it is closed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._kept and not self.closed:
            if deadline is not None and time.monotonic() >= deadline:
                return
            time.sleep(_GLANCE_S)

    def close(self) -> None:
        """Ask for no more. What is there can still be read."""
        if not self.closed:
            self.closed = True
            self.on_close()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
