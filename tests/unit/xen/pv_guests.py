"""Parts of a PV domain without an engine, for tests."""

from __future__ import annotations

from bivisor.memory import PAGE
from bivisor.xen.pv.pages import Pages

FRAMES = 64
P, RW, US, PS = 1, 2, 4, 0x80
SLOTS = (0x40_0000_0000 | P, 0x40_0000_1000 | P)


class Table:
    """`FRAMES` frames of memory with page types, and shared frame 1000."""

    def __init__(self) -> None:
        self.memory = bytearray(FRAMES * PAGE)
        self.words = memoryview(self.memory).cast("Q")
        self.absent: set[int] = set()
        self.flushes = 0
        self.pages = Pages(self.words, self.absent, lambda mfn: mfn == 1000, SLOTS, self._flush)

    def _flush(self) -> None:
        self.flushes += 1

    def put(self, mfn: int, slot: int, entry: int) -> None:
        """Write an entry as the guest could while the frame is no table."""
        self.words[mfn << 9 | slot] = entry

    def tree(self, first: int = 1, leaf: int = 40 << 12 | P | RW) -> int:
        """Tables of level 4 to 1 in frames `first` to `first` + 3, with one page mapped at 0. The level-4 frame."""
        for level in range(3):
            self.put(first + level, 0, first + level + 1 << 12 | P | RW | US)
        self.put(first + 3, 0, leaf)
        return first
