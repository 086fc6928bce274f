"""The one-shot timers of a domain: a thread that calls back when system time has come to a deadline.

A thread of its own, so that a guest's clock ticks while the I/O loop is busy with a disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

LONGEST_S = 3600.0
"""How long to sleep at once: a guest may name the year 2554, which is beyond what the host can wait for."""


class Timers:
    """At most one deadline for each key. `now()` is system time in nanoseconds; callbacks run with no lock held."""

    def __init__(self, now: Callable[[], int], name: str = "bivisor-timers") -> None:
        self._now = now
        self._name = name
        self._changed = threading.Condition()
        self._set: dict[Hashable, tuple[int, Callable[[], None]]] = {}
        self._next: int | None = None
        self._thread: threading.Thread | None = None
        self._closing = False

    def set(self, key: Hashable, deadline: int, callback: Callable[[], None]) -> None:
        """Call `callback` at `deadline`, and not what `key` had before. From any thread, with any lock held."""
        with self._changed:
            if self._closing:
                return
            self._set[key] = deadline, callback
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name=self._name, daemon=True)
                self._thread.start()
            elif self._next is None or deadline < self._next:
                self._changed.notify()

    def cancel(self, key: Hashable) -> None:
        """Do not call what `key` has; nothing to do where it has none."""
        with self._changed:
            self._set.pop(key, None)

    def due(self) -> list[Callable[[], None]]:
        """Take out the callbacks whose deadline has come, in the order of their deadlines."""
        with self._changed:
            now = self._now()
            ready = [key for key, (deadline, _) in self._set.items() if deadline <= now]
            ready.sort(key=lambda key: self._set[key][0])
            return [self._set.pop(key)[1] for key in ready]

    def _main(self) -> None:
        while not self._closing:
            for callback in self.due():
                callback()
            with self._changed:
                self._next = min((deadline for deadline, _ in self._set.values()), default=None)
                wait = None if self._next is None else min((self._next - self._now()) / 1e9, LONGEST_S)
                if not self._closing and (wait is None or wait > 0):
                    self._changed.wait(wait)

    def close(self) -> None:
        """Call nothing any more, and end the thread."""
        with self._changed:
            self._closing = True
            self._set.clear()
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
