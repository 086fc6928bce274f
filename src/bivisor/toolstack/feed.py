"""What a domain says on its console, for whoever listens: people who come and go, a log, a program that waits.

A feed outlives its domain when that reboots: who listens goes on listening. With the loop's lock held throughout.
"""

from __future__ import annotations

from collections.abc import Callable

Listener = Callable[[bytes], None]
KEPT = 64 << 10


class Feed:
    """Keeps the last `KEPT` bytes. `log` gets everything, `on_close` is called when nothing comes any more."""

    def __init__(self, log: Listener | None = None, on_close: Callable[[], None] = lambda: None) -> None:
        self._log = log
        self._on_close = on_close
        self._kept = bytearray()
        self._listeners: list[Listener] = []
        self._ends: dict[Listener, Callable[[], None]] = {}
        self._unseen = 0
        self.input: Listener = lambda _: None
        """Where what is typed goes."""
        self.untaken: Callable[[], int] = lambda: 0
        """How many bytes of it the domain has not taken yet."""

    def __call__(self, data: bytes) -> None:
        """The domain said `data`."""
        self._kept += data
        del self._kept[:-KEPT]
        self._unseen = 0 if self._listeners else min(self._unseen + len(data), len(self._kept))
        if self._log is not None:
            self._log(data)
        for listener in tuple(self._listeners):
            listener(data)

    def listen(self, listener: Listener, ended: Callable[[], None] = lambda: None) -> None:
        """Hear what nobody has heard yet, at least the line that is not finished (a prompt), and all that follows.

        `ended` is called when there is no domain any more.
        """
        line = len(self._kept) - (self._kept.rfind(b"\n") + 1)
        known = max(self._unseen, line)
        if known:
            listener(bytes(self._kept[-known:]))
        self._unseen = 0
        self._listeners.append(listener)
        self._ends[listener] = ended

    def leave(self, listener: Listener) -> None:
        """Hear no more; no error where it does not listen."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            del self._ends[listener]

    def close(self) -> None:
        """There is no domain any more, and will be none."""
        self._listeners.clear()
        while self._ends:
            self._ends.popitem()[1]()
        self._on_close()
