"""One thread that calls back at a moment: what makes a running soft processor stop for its timer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LONGEST = 3600.0  # a guest's deadline may be centuries away, which the lock would not take


class Alarm:
    """Calls `ring` from a thread of its own once `deadline` (time.monotonic seconds) has passed.

    A later deadline than the one being waited for costs nothing: the thread wakes, sees it, and sleeps again.
    """

    def __init__(self, ring: Callable[[], None], name: str) -> None:
        self._ring = ring
        self._name = name
        self._deadline: float | None = None
        self._heartbeat: float | None = None
        self._sleeping_until = 0.0
        self._wake = threading.Lock()  # held: nobody has called; a binary semaphore, far cheaper than a Condition
        self._wake.acquire()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def heartbeat(self) -> float | None:
        """Ring every so many seconds besides."""
        return self._heartbeat

    @heartbeat.setter
    def heartbeat(self, period: float | None) -> None:
        self._heartbeat = period
        if period is not None:
            self._start(time.monotonic() + period)

    def set(self, deadline: float | None) -> None:
        """Ring at `deadline`, in place of any earlier wish; None: do not ring."""
        self._deadline = deadline
        if deadline is not None:
            self._start(deadline)

    def _start(self, deadline: float) -> None:
        if self._closed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name=self._name, daemon=True)
            self._thread.start()
        elif deadline < self._sleeping_until:
            self._call()

    def _call(self) -> None:
        try:
            self._wake.release()
        except RuntimeError:
            pass  # it has been called already

    def close(self) -> None:
        """End the thread and wait for it."""
        self._closed = True
        if self._thread is not None:
            self._call()
            self._thread.join()
            self._thread = None

    def _main(self) -> None:
        beat: float | None = None
        while not self._closed:
            self._sleeping_until = float("inf")
            deadline, heartbeat = self._deadline, self._heartbeat
            if heartbeat is not None:
                if beat is None:
                    beat = time.monotonic() + heartbeat
                deadline = beat if deadline is None else min(deadline, beat)
            if deadline is None:
                self._wake.acquire()
                continue
            self._sleeping_until = deadline
            wait = deadline - time.monotonic()
            if wait > 0:
                self._wake.acquire(timeout=min(wait, _LONGEST))
                continue
            if self._deadline == deadline:
                self._deadline = None
            if beat == deadline:
                beat = None
            self._ring()
