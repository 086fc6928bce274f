"""The back-end's side of a shared ring: the macros of xen/include/public/io/ring.h as one class.

The front-end writes the pages whenever it likes, so an index is looked at once and then checked, and a request is
copied before anything in it is looked at.

A response takes the place of a request, the one that came first among those not answered. Whoever answers in the order
of the requests leaves every unanswered request whole in the ring, from `rsp_prod` up to `req_prod`: a back-end that
starts anew on a ring in use finds there what it owes, which is how `BackRing` begins.
"""

from __future__ import annotations

from collections.abc import Sequence

from bivisor.abi.xen.ring import ENTRIES_AT, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, ring_size
from bivisor.memory import PAGE
from bivisor.memory.barrier import heavy_fence

_U32 = 0xFFFF_FFFF


class RingError(Exception):
    """The front-end broke the ring; nothing that is in it can be trusted any more."""


class BackRing:
    """A ring of `size` entries of `entry_size` bytes in `pages`, which the front-end has one after the other.

    It takes the ring over as it is: requests that have no response yet are given out (again). RingError where the
    indices cannot be. The pages stay the caller's; `release()` lets go of them.
    """

    def __init__(self, pages: Sequence[memoryview], entry_size: int) -> None:
        self.size = ring_size(entry_size, PAGE * len(pages))
        self._mask = self.size - 1
        self._entry_size = entry_size
        self._fence = heavy_fence()
        self._slots = [_slot(pages, ENTRIES_AT + entry_size * index, entry_size) for index in range(self.size)]
        self._indices = pages[0].cast("I")
        self._responses = self._published = self.req_cons = self._indices[RSP_PROD]
        self._requests = self.req_cons
        try:
            self._look()
        except RingError:
            self.release()
            raise

    def _look(self) -> None:
        requests = self._indices[REQ_PROD]
        # More requests than entries: slots would be served twice, and responses would overtake requests.
        if requests - self._responses & _U32 > self.size or requests - self.req_cons & _U32 > self.size:
            raise RingError(f"the front-end's ring has {requests - self._responses & _U32} of {self.size} requests")
        self._requests = requests

    @property
    def unanswered(self) -> int:
        """How many requests have been taken and not answered."""
        return self.req_cons - self._responses & _U32

    def take(self) -> bytes | None:
        """A copy of the next request, or None where there is none. RingError."""
        index = self.req_cons
        if index == self._requests:
            self._look()
            if index == self._requests:
                return None
        slot = self._slots[index & self._mask]
        self.req_cons = index + 1 & _U32
        return bytes(slot[0]) if len(slot) == 1 else b"".join(slot)

    def has(self, count: int) -> bool:
        """Whether `count` requests are there to be taken; if not, an event comes with the next one. RingError."""
        while self._requests - self.req_cons & _U32 < count:
            before = self._requests
            self._look()
            if self._requests == before:
                self._indices[REQ_EVENT] = before + 1 & _U32
                self._fence()
                self._look()
                if self._requests == before:
                    return False
        return True

    def rest(self) -> bool:
        """RING_FINAL_CHECK_FOR_REQUESTS: ask for an event with the next request. True where one is there already."""
        if self._indices[REQ_PROD] != self.req_cons:
            self._look()
            return True
        self._indices[REQ_EVENT] = self.req_cons + 1 & _U32
        self._fence()
        self._look()
        return self._requests != self.req_cons

    def respond(self, response: bytes | bytearray | memoryview) -> None:
        """Put the next response into its place, where `push` makes it known. There must be a request that it answers.

        It may be shorter than an entry: what is behind it stays.
        """
        assert self._responses != self.req_cons, "a response without a request"
        slot = self._slots[self._responses & self._mask]
        self._responses = self._responses + 1 & _U32
        first = slot[0]
        length = len(response)
        if length <= len(first):
            first[:length] = response
            return
        slot[1][: length - len(first)] = response[len(first) :]
        first[:] = response[: len(first)]

    def push(self) -> bool:
        """RING_PUSH_RESPONSES_AND_CHECK_NOTIFY: make responses known. True where the front-end wants an event."""
        old, new = self._published, self._responses
        if old == new:
            return False
        self._indices[RSP_PROD] = new
        self._published = new
        self._fence()
        return new - self._indices[RSP_EVENT] & _U32 < new - old & _U32

    def release(self) -> None:
        """Let go of the pages."""
        self._indices.release()
        for slot in self._slots:
            for view in slot:
                view.release()
        self._slots.clear()


def _slot(pages: Sequence[memoryview], at: int, size: int) -> tuple[memoryview, ...]:
    """The `size` bytes at `at`, in as many pages as they are in: one or two."""
    page, offset = divmod(at, PAGE)
    if offset + size <= PAGE:
        return (pages[page][offset : offset + size],)
    return pages[page][offset:], pages[page + 1][: offset + size - PAGE]
