"""The I/O thread of a machine: file descriptors and timers, each with a callback.

`call_at` and `now` are the only clock that devices know, so a test can pass a `ManualLoop` that owns time. Callbacks
run in the loop's thread with `lock` held; so do device accesses of the processors. `lock` is the one lock of a
machine's devices.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

Callback = Callable[[], None]


class Timer:
    """One appointment; `cancel()` takes it back."""

    __slots__ = ("callback", "cancelled", "deadline")

    def __init__(self, deadline: float, callback: Callback) -> None:
        self.deadline = deadline
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Never call it."""
        self.cancelled = True


class _Timers:
    """Timers in order of their deadlines, cancelled ones with them until they are more than half: a guest that sets
    a timer far ahead again and again must not fill the host's memory."""

    _FEW = 64

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._limit = self._FEW

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline: float, callback: Callback) -> Timer:
        """A timer for `callback`."""
        if len(self._heap) >= self._limit:
            self._heap = [entry for entry in self._heap if not entry[2].cancelled]
            heapq.heapify(self._heap)
            self._limit = max(self._FEW, 2 * len(self._heap))
        timer = Timer(deadline, callback)
        heapq.heappush(self._heap, (deadline, next(self._order), timer))
        return timer

    def deadline(self) -> float:
        """When the next timer is due, infinity where there is none."""
        while self._heap and self._heap[0][2].cancelled:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now: float) -> Timer | None:
        """Take out the first timer whose deadline is not after `now`."""
        return heapq.heappop(self._heap)[2] if self.deadline() <= now else None

    def clear(self) -> None:
        """Forget them all."""
        self._heap.clear()


class Clock(Protocol):
    """Time, as devices see it."""

    def now(self) -> float:
        """Seconds since some fixed moment, monotonic."""

    def call_at(self, deadline: float, callback: Callback) -> Timer:
        """Call `callback` in the loop's thread, with the device lock held, once `now()` has reached `deadline`."""


class Loop(Clock, Protocol):
    """A clock that also watches file descriptors."""

    lock: threading.RLock

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None = None) -> None:
        """Call back when `fd` can be read or written; replaces an earlier watch; both None ends it."""

    def unwatch(self, fd: int) -> None:
        """End a watch; none is no error."""

    def call_soon(self, callback: Callback) -> None:
        """Call `callback` in the loop's thread, from any thread."""


class EventLoop:
    """The real loop, in a thread of its own between `start()` and `close()`.

    An exception in a callback ends the loop's work and is handed to `on_error`, so that the machine can stop and say
    so.
    """

    def __init__(self, on_error: Callable[[BaseException], None] | None = None) -> None:
        self.lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._timers = _Timers()
        self._soon: deque[Callback] = deque()
        self._on_error = on_error
        self._closing = False
        self._next = math.inf
        self._thread: threading.Thread | None = None

    def now(self) -> float:
        """time.monotonic()"""
        return time.monotonic()

    def call_at(self, deadline: float, callback: Callback) -> Timer:
        """See `Clock.call_at`."""
        with self.lock:
            timer = self._timers.add(deadline, callback)
            if deadline < self._next:
                self._wake()
        return timer

    def call_soon(self, callback: Callback) -> None:
        """See `Loop.call_soon`. It takes no lock: who holds it may be waiting for the calling thread."""
        self._soon.append(callback)
        self._wake()

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None = None) -> None:
        """See `Loop.watch`."""
        events = (selectors.EVENT_READ if readable else 0) | (selectors.EVENT_WRITE if writable else 0)
        if not events:
            self.unwatch(fd)
            return
        try:
            self._selector.modify(fd, events, (readable, writable))
        except KeyError:
            self._selector.register(fd, events, (readable, writable))
        self._wake()

    def unwatch(self, fd: int) -> None:
        """See `Loop.unwatch`."""
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            pass

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._main, name="bivisor-io", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, wait for it and close what the loop itself opened.

        Watched descriptors stay their owners'.
        """
        if self._closing:
            return
        self._closing = True
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._wake_read = self._wake_write = -1
        self._timers.clear()
        self._soon.clear()

    def _wake(self) -> None:
        if threading.current_thread() is self._thread or self._wake_write < 0:
            return
        try:
            os.write(self._wake_write, b"\0")
        except (BlockingIOError, OSError):
            pass

    def _main(self) -> None:
        try:
            while not self._closing:
                self._turn()
        except BaseException as error:
            if self._on_error is None:
                raise
            self._on_error(error)

    def _turn(self) -> None:
        with self.lock:
            for _ in range(len(self._soon)):
                self._soon.popleft()()
            timeout = self._run_timers()
        if self._soon:
            timeout = 0
        ready = self._selector.select(timeout)
        for key, events in ready:
            if key.data is None:
                try:
                    os.read(self._wake_read, 4096)
                except BlockingIOError:
                    pass
                continue
            readable, writable = key.data
            with self.lock:
                # An earlier callback, or a processor, may have ended or changed this watch: the descriptor may even be
                # another by now.
                if self._closing or self._selector.get_map().get(key.fd) is not key:
                    continue
                if events & selectors.EVENT_READ and readable:
                    readable()
                if events & selectors.EVENT_WRITE and writable:
                    writable()

    def _run_timers(self) -> float | None:
        """Call what is due; the seconds until the next timer, None where there is none."""
        while (timer := self._timers.due(self.now())) is not None:
            timer.callback()
        self._next = self._timers.deadline()
        return None if self._next == math.inf else max(0.0, self._next - self.now())


class ManualLoop:
    """A loop whose time the test owns: `advance(seconds)` runs what falls due. Watches are called by `poll()`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.time = 0.0
        self._timers = _Timers()
        self._soon: deque[Callback] = deque()
        self.watches: dict[int, tuple[Callback | None, Callback | None]] = {}

    def now(self) -> float:
        """The time that the test set."""
        return self.time

    def call_at(self, deadline: float, callback: Callback) -> Timer:
        """See `Clock.call_at`."""
        return self._timers.add(deadline, callback)

    def call_soon(self, callback: Callback) -> None:
        """See `Loop.call_soon`."""
        self._soon.append(callback)

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None = None) -> None:
        """See `Loop.watch`."""
        if readable or writable:
            self.watches[fd] = (readable, writable)
        else:
            self.unwatch(fd)

    def unwatch(self, fd: int) -> None:
        """See `Loop.unwatch`."""
        self.watches.pop(fd, None)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass and run what falls due, in order."""
        self.time += seconds
        self.run_soon()
        while (timer := self._timers.due(self.time)) is not None:
            timer.callback()

    def run_soon(self) -> None:
        """Run what `call_soon` collected."""
        while self._soon:
            self._soon.popleft()()

    def poll(self, fd: int) -> None:
        """Call the readable callback of `fd`, as if it had become readable."""
        readable, _ = self.watches[fd]
        if readable:
            readable()
