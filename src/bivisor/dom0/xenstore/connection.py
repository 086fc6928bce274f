"""A client as the server knows it: who it is, what it holds, and what waits to be sent to it.

A transport takes bytes by `peek` and says by `sent` how many have gone; it sets `wake` to hear that there are some.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from bivisor.abi.xen.xs_wire import MessageType
from bivisor.dom0.xenstore.path import Path, Special, domain_path
from bivisor.dom0.xenstore.quota import QuotaLog, Quotas
from bivisor.dom0.xenstore.transaction import Transaction
from bivisor.dom0.xenstore.watches import Watch

_EVENT: Final = int(MessageType.WATCH_EVENT)
_TOOL_OUTPUT: Final = 16 << 20
_TOOL_REPLIES: Final = 64 << 10


OnEvent = Callable[["Connection", bytes], bool]
"""Somebody listens: called with a client and a WATCH_EVENT for it. False: it is not sent, or later."""


def _nothing() -> None:
    pass


class Connection:
    """One client: a domain's ring or a tool of Dom0."""

    def __init__(self, domid: int, *, privileged: bool, quotas: Quotas, quota_log: QuotaLog) -> None:
        self.domid = domid
        self.privileged = privileged
        self.home: Path = domain_path(domid)
        self.target: Connection | None = None
        self.transactions: dict[int, Transaction] = {}
        self.watches: dict[tuple[Path | Special, bytes], Watch] = {}
        self.wake: Callable[[], None] = _nothing
        self.first_events: list[bytes] = []
        """Events of new watches, which go after the reply to WATCH."""
        self.on_event: OnEvent | None = None
        self.overflowed = False
        """Events were lost, because so much waits already. A tool has to be disconnected then."""
        self._quotas = quotas
        self._quota_log = quota_log
        self._next_transaction = 1
        self._output: deque[bytes] = deque()
        self._offset = 0
        self._bytes = 0
        self._replies = 0
        self._events: set[bytes] = set()

    @property
    def target_domid(self) -> int | None:
        """See `Caller.target_domid`."""
        return None if self.target is None else self.target.domid

    def new_transaction_id(self) -> int:
        """A number from 1 to 2^32 - 1 that none of the open transactions has."""
        while True:
            number = self._next_transaction
            self._next_transaction = number % 0xFFFF_FFFF + 1
            if number not in self.transactions:
                return number

    # What goes out

    def send_reply(self, reply: bytes) -> None:
        """Queue a reply. A domain bounds their number by `may_ask`."""
        self._output.append(reply)
        self._bytes += len(reply)
        self._replies += 1

    def send_event(self, event: bytes) -> None:
        """Queue a WATCH_EVENT and wake the transport, unless the same event waits already.

        Events of special watches are never the same: each is another domain. A domain that takes nothing loses what
        goes beyond its quota: it must not fill the host's memory.
        """
        if self.on_event is None or self.on_event(self, event):
            self.queue_event(event)

    def queue_event(self, event: bytes) -> None:
        """See `send_event`: with nobody asked."""
        if event[16:17] != b"@":
            if event in self._events:
                return
            self._events.add(event)
        if self._bytes + len(event) > (_TOOL_OUTPUT if self.privileged else self._quotas.output):
            self._events.discard(event)
            self.overflowed = True
            self._quota_log.hit(self.domid, "output", _TOOL_OUTPUT if self.privileged else self._quotas.output)
            self.wake()
            return
        self._output.append(event)
        self._bytes += len(event)
        self.wake()

    @property
    def may_ask(self) -> bool:
        """Whether the next request may be read: a domain has to take the replies to its earlier ones some time."""
        if self.privileged:
            return self._bytes <= _TOOL_REPLIES
        return self._replies < self._quotas.outstanding

    def held_up(self) -> None:
        """Nothing more can be sent to the client, and so no more requests are read from it: make a record of it."""
        if not self.privileged:
            self._quota_log.hit(self.domid, "outstanding", self._quotas.outstanding)

    @property
    def has_output(self) -> bool:
        """Whether `peek` has bytes."""
        return bool(self._output)

    def peek(self, limit: int) -> bytes | memoryview:
        """The next bytes to be sent: at most about `limit`, at least one message if there is one."""
        output = self._output
        if not output:
            return b""
        if len(output) == 1 and not self._offset:
            return output[0]
        pieces = []
        wanted = limit + self._offset
        for message in output:
            pieces.append(message)
            wanted -= len(message)
            if wanted <= 0:
                break
        return memoryview(b"".join(pieces))[self._offset :]

    def sent(self, count: int) -> None:
        """`count` bytes of what `peek` gave have gone."""
        count += self._offset
        output = self._output
        while output and count >= len(output[0]):
            message = output.popleft()
            count -= len(message)
            self._bytes -= len(message)
            if message[0] == _EVENT:
                self._events.discard(message)
            else:
                self._replies -= 1
        self._offset = count

    def drop_output(self) -> None:
        """Forget what waits to be sent."""
        self._output.clear()
        self._events.clear()
        self.first_events.clear()
        self._offset = self._bytes = self._replies = 0
