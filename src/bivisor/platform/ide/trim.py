"""TRIM: a guest lists sectors that it does not need any more, and the host gets their space back.

Specification: ATA/ATAPI Command Set 2 (T13 2015-D), 7.10 "DATA SET MANAGEMENT".
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.platform.ide.drive import PIECES, SECTOR

TRIM = 0x01
BLOCKS_MAX = 8
IDENTITY_WORDS = {105: BLOCKS_MAX, 169: 1}
"""What identification data say of it: how long a list may be, and that TRIM is there."""
_SECTOR_BITS = 48
_ENTRY = struct.Struct("<Q")


class TrimList:
    """A list of `blocks` blocks on its way from the guest, for a disk of `sectors` sectors."""

    def __init__(self, discard: Callable[[int, int], None], sectors: int, blocks: int) -> None:
        self._discard = discard
        self._sectors = sectors
        self._list = bytearray(blocks * SECTOR)

    def take(self, views: PIECES, offset: int) -> None:
        """The bytes at `offset` of the list; with the last of them it is carried out, all of it or nothing. OSError
        where a range leaves the disk: it would destroy what lies behind."""
        for view in views:
            self._list[offset : offset + len(view)] = view
            offset += len(view)
        if offset < len(self._list):
            return
        entries = [entry for (entry,) in _ENTRY.iter_unpack(self._list)]
        ranges = [(entry & (1 << _SECTOR_BITS) - 1, entry >> _SECTOR_BITS) for entry in entries]
        if any(first + count > self._sectors for first, count in ranges if count):
            raise OSError
        for first, count in ranges:
            if count:
                self._discard(first * SECTOR, count * SECTOR)
