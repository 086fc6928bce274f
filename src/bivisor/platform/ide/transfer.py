"""Moving the data of a command between a drive and the ranges of guest memory that a bus master was given.

Every address and length here is the guest's: what is no memory raises GuestAddressError before anything is touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from bivisor.platform.fwcfg import Memory
from bivisor.platform.ide.drive import Dma

PIECES_MAX = 512  # preadv takes 1,024
RANGE = tuple[int, int]


def add_range(ranges: list[RANGE], address: int, length: int) -> None:
    """Append a range; one that goes on where the last one ends becomes part of it."""
    if ranges and ranges[-1][0] + ranges[-1][1] == address:
        ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
    elif length:
        ranges.append((address, length))


def carry(memory: Memory, dma: Dma, ranges: Sequence[RANGE]) -> int:
    """Move the data of `dma`; the bytes that there was room for. GuestAddressError, OSError."""
    done = 0
    for at in range(0, len(ranges), PIECES_MAX):
        part = ranges[at : at + PIECES_MAX]
        views = [memory.view(gpa, length) for gpa, length in part]
        dma.move(views, done)
        done += sum(map(len, views))
        if dma.to_memory:
            for gpa, length in part:
                memory.written(gpa, length)
    return done
