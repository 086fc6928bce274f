"""What a guest says on its console, with the moment at which each mark of the workload came."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from bivisor.errors import GuestTimeout
from bivisor.toolstack.compare.moment import Moment

_MARK = re.compile(rb"@[be]\d+\r?\n")
_LONGEST_MARK = 16
_GLANCE_S = 0.25


class Console:
    """`hear` is called with what the guest writes, in any thread. `on_mark(mark)` is called in that thread."""

    def __init__(self, *, clock: Callable[[], Moment] = Moment.now) -> None:
        self._clock = clock
        self._said = bytearray()
        self._seen = self._scanned = 0
        self._news = threading.Condition()
        self.marks: dict[str, Moment] = {}
        self.on_mark: Callable[[str], None] = lambda _: None
        self.has_ended: Callable[[], bool] = lambda: False
        """Says that nothing more will come."""

    def hear(self, data: bytes) -> None:
        """The guest wrote `data`."""
        with self._news:
            now = self._clock()
            self._said += data
            for found in _MARK.finditer(self._said, self._scanned):
                mark = found[0].strip().decode()
                self._scanned = found.end()
                self.marks[mark] = now
                self.on_mark(mark)
            self._scanned = max(self._scanned, len(self._said) - _LONGEST_MARK)
            self._news.notify_all()

    def wait_for(self, words: str, timeout: float) -> str:
        """Wait until it says `words`; what it said since the last such call, up to and with them. GuestTimeout."""
        wanted = words.encode()
        deadline = time.monotonic() + timeout
        with self._news:
            while (at := self._said.find(wanted, self._seen)) < 0:
                left = deadline - time.monotonic()
                if left <= 0 or self.has_ended():
                    lines = self._said.decode(errors="replace").split("\n")
                    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
                    why = "ended" if self.has_ended() else f"ran for {timeout:g} s"
                    raise GuestTimeout(f"the guest {why} without saying {words.strip()!r}; it ended with {last!r}")
                self._news.wait(min(left, _GLANCE_S))
            start, self._seen = self._seen, at + len(wanted)
            return self._said[start : self._seen].decode(errors="replace")
