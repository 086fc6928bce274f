"""The front-end's side of a shared ring: the macros of xen/include/public/io/ring.h; `ring.py` has the other side."""

from __future__ import annotations

from collections.abc import Sequence

from bivisor.abi.xen.ring import ENTRIES_AT, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, ring_size
from bivisor.memory import PAGE
from bivisor.memory.barrier import heavy_fence

_U32 = 0xFFFF_FFFF


class FrontRing:
    """A new ring of entries of `entry_size` bytes in `pages`, which stay the caller's; `release()` lets go of them."""

    def __init__(self, pages: Sequence[memoryview], entry_size: int) -> None:
        self._pages = [page[:PAGE] for page in pages]
        self.size = ring_size(entry_size, PAGE * len(pages))
        self.entry_size = entry_size
        self._fence = heavy_fence()
        self._indices = self._pages[0].cast("I")
        self._indices[REQ_PROD] = self._indices[RSP_PROD] = 0
        self._indices[REQ_EVENT] = self._indices[RSP_EVENT] = 1
        self.req_prod = self.rsp_cons = 0

    @property
    def room(self) -> int:
        """How many requests can be put."""
        return self.size - (self.req_prod - self.rsp_cons & _U32)

    def put(self, request: bytes) -> None:
        """Put a request, where `push` makes it known. There must be room."""
        at = ENTRIES_AT + self.entry_size * (self.req_prod % self.size)
        for index, byte in enumerate(request):
            page, offset = divmod(at + index, PAGE)
            self._pages[page][offset] = byte
        self.req_prod = self.req_prod + 1 & _U32

    def push(self) -> bool:
        """RING_PUSH_REQUESTS_AND_CHECK_NOTIFY: make requests known. True where the back-end wants an event."""
        old = self._indices[REQ_PROD]
        self._indices[REQ_PROD] = self.req_prod
        self._fence()
        return self.req_prod - self._indices[REQ_EVENT] & _U32 < self.req_prod - old & _U32

    def take(self) -> bytes | None:
        """The next response, of an entry's length; None where there is none."""
        if self.rsp_cons == self._indices[RSP_PROD]:
            return None
        at = ENTRIES_AT + self.entry_size * (self.rsp_cons % self.size)
        self.rsp_cons = self.rsp_cons + 1 & _U32
        page, offset = divmod(at, PAGE)
        found = bytes(self._pages[page][offset : offset + self.entry_size])
        rest = self.entry_size - len(found)
        return found + bytes(self._pages[page + 1][:rest]) if rest else found

    def rest(self) -> bool:
        """RING_FINAL_CHECK_FOR_RESPONSES: ask for an event with the next one. True where one is there already."""
        self._indices[RSP_EVENT] = self.rsp_cons + 1 & _U32
        self._fence()
        return self.rsp_cons != self._indices[RSP_PROD]

    def release(self) -> None:
        """Let go of the pages."""
        self._indices.release()
        for page in self._pages:
            page.release()
        self._pages.clear()
