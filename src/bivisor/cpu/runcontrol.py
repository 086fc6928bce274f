"""Holds the processors of a machine between two entries, for whoever wants to look at them: a debugger, a snapshot.

A processor's thread passes `gate()` before each entry and waits there while the machine is held. `hold()` kicks every
processor out of the guest and returns when all of them wait, so that their state may be read and changed from any
thread (see `contract.Vcpu`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bivisor.cpu.contract import Vcpu
from bivisor.cpu.exits import Debug

OnHit = Callable[[Vcpu, Debug], None]


class RunControl:
    """The gate of the processors `vcpus`. `on_hit(vcpu, exit)` is called in the thread of a processor that stopped at a
    breakpoint or after a step, and says by `close()` whether the machine is to be held; more than one may come at a
    time. Nobody listens where it is None. `kick` gets all of them out of the guest; without it, each is kicked."""

    def __init__(self, vcpus: Sequence[Vcpu], kick: Callable[[], None] | None = None) -> None:
        self._vcpus = vcpus
        self._kick = kick or self._kick_each
        self._news = threading.Condition()
        self._held = False
        self._only: int | None = None
        self._ended = False
        self._waiting = 0
        self._threads = 0
        self.on_hit: OnHit | None = None

    def enter_thread(self) -> None:
        """A processor's thread begins: from now on `hold()` waits for it."""
        with self._news:
            self._threads += 1

    def leave_thread(self) -> None:
        """A processor's thread ends."""
        with self._news:
            self._threads -= 1
            self._news.notify_all()

    def gate(self, vcpu: Vcpu) -> None:
        """Wait here while the machine is held. In the processor's thread, before each entry."""
        if not self._held:
            return
        with self._news:
            self._waiting += 1
            self._news.notify_all()
            while self._held and self._only != vcpu.index and not self._ended:
                self._news.wait()
            self._waiting -= 1

    def is_open(self, vcpu: Vcpu) -> bool:
        """Whether that processor may enter its guest."""
        return not self._held or self._only == vcpu.index

    @property
    def is_held(self) -> bool:
        """Whether it is held, but for a step."""
        return self._held

    @contextmanager
    def aside(self) -> Iterator[None]:
        """In the processor's thread: it waits for something else, and is as good as held meanwhile. It must pass
        `gate()` before it enters again."""
        with self._news:
            self._waiting += 1
            self._news.notify_all()
        try:
            yield
        finally:
            with self._news:
                self._waiting -= 1

    def hit(self, vcpu: Vcpu, exit_: Debug) -> bool:
        """A processor came out with a debug exit. False where nobody listens."""
        listener = self.on_hit
        if listener is None:
            return False
        listener(vcpu, exit_)
        return True

    def close(self) -> None:
        """Let no processor into the guest again, and have all of them leave it. From any thread; does not wait."""
        with self._news:
            self._held, self._only = True, None
        self._kick()

    def hold(self, timeout: float = 10.0) -> bool:
        """Hold every processor, and wait until all of them are outside of the guest. False where one does not come out
        within `timeout` seconds, as while a device works for it. Not from a processor's thread."""
        self.close()
        with self._news:
            return self._news.wait_for(lambda: self._ended or self._waiting >= self._threads, timeout)

    def resume(self, only: int | None = None) -> None:
        """Let the processors go on; with `only`, that one alone."""
        with self._news:
            self._held, self._only = only is not None, only
            self._news.notify_all()

    def end(self) -> None:
        """The machine ends: nobody waits any more."""
        with self._news:
            self._ended = True
            self._held = False
            self._news.notify_all()

    def _kick_each(self) -> None:
        for vcpu in self._vcpus:
            vcpu.kick()
