"""The pages of a grant table: the hypervisor's own until the guest puts them into its address space.

XENMEM_add_to_physmap *moves* a page's memory into the guest's: from then on the guest and the hypervisor share it, and
everything in it may change at any time.
"""

from __future__ import annotations

from typing import Final

from bivisor.memory import PAGE
from bivisor.memory.atomics import address_of

INVALID_GFN: Final = (1 << 64) - 1
"""What setup_table answers for a frame that is nowhere in the guest."""


class TableFrame:
    """One page: `words`, `quads` and `halves` are its 32-, 64- and 16-bit fields in place, `address` is the host's."""

    __slots__ = ("address", "gfn", "halves", "quads", "view", "words")

    def __init__(self, view: memoryview, gfn: int = INVALID_GFN) -> None:
        self.view = view
        self.gfn = gfn
        # Casts read and write a field in one access, which fields that a guest changes meanwhile need.
        self.halves = view.cast("H")
        self.words = view.cast("I")
        self.quads = view.cast("Q")
        self.address = address_of(view)

    def release(self) -> None:
        """Let go of the page."""
        for view in (self.halves, self.words, self.quads, self.view):
            view.release()


class TableFrames(list[TableFrame]):
    """The frames of one kind, shared or status, in order."""

    def grow(self, count: int) -> None:
        """Have at least `count` frames; new ones are zero. The caller has checked `count` against the limit."""
        while len(self) < count:
            self.append(TableFrame(memoryview(bytearray(PAGE))))

    def move(self, index: int, page: memoryview, gfn: int) -> None:
        """Frame `index` lives in `page` (4096 bytes, writable), the guest's `gfn`, from now on, with what it held."""
        page[:] = self[index].view
        # The old frame is not released: whoever acquired it as a resource may still look at it.
        self[index] = TableFrame(page[:], gfn)

    def reclaim(self, index: int) -> None:
        """Frame `index` is the hypervisor's own again, with what it held."""
        self[index] = TableFrame(memoryview(bytearray(self[index].view)))

    def drop(self) -> None:
        """Let go of all frames."""
        for frame in self:
            frame.release()
        self.clear()
