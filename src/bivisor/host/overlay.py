"""A disk whose writes are thrown away: they go to a file without a name, and reads find them there.

Which sectors are there is told by a map with a byte for each sector, in memory that the host gives as it is touched; so
a request is split by searching bytes, and no sector is ever copied.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from bivisor.errors import HostError
from bivisor.host.falloc import punch_hole

SECTOR = 512
_MAP_NORESERVE = 0x4000
_BELOW, _ABOVE = b"\0", b"\1"
_RUN_MAX = 1 << 16
_MARKS = _ABOVE * _RUN_MAX
_TEMPORARY = ("/var/tmp", "/tmp")


class Base(Protocol):
    """What lies below."""

    path: Path
    size: int
    physical_block: int

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill `views` from `offset` on."""

    def close(self) -> None:
        """Let go of it."""


class Overlay:
    """`base` as a disk that can be written to; it is read only, and closed with this. `folder` is where the writes are
    kept ($TMPDIR, or /var/tmp, as they may be many). HostError where there is no room for the file or the map."""

    def __init__(self, base: Base, folder: Path | None = None) -> None:
        self.base = base
        self.path = base.path
        self.size = base.size
        self.read_only = False
        self.physical_block = base.physical_block
        try:
            self._fd = _unnamed(folder)
            os.ftruncate(self._fd, self.size)
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            self._map = mmap.mmap(-1, -(-self.size // SECTOR), flags=flags)
        except (OSError, ValueError) as error:
            raise HostError(f"disk {self.path}: no room for what is written to it: {error} (set TMPDIR)") from None

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill `views` with the bytes from `offset` on, whole sectors; how many there were."""
        first, end = offset // SECTOR, (offset + sum(map(len, views))) // SECTOR
        runs = self._runs(first, end)
        start, stop, above = next(runs)
        if stop == end:
            return os.preadv(self._fd, views, offset) if above else self.base.readv(views, offset)
        total, rest = 0, list(views)
        while True:
            part, rest = _split(rest, (stop - start) * SECTOR)
            at = start * SECTOR
            total += os.preadv(self._fd, part, at) if above else self.base.readv(part, at)
            if stop == end:
                return total
            start, stop, above = next(runs)

    def _runs(self, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The sectors from `first` to `end` as (start, stop, whether they are above)."""
        while first < end:
            above = self._map[first] != 0
            stop = self._map.find(_BELOW if above else _ABOVE, first, end)
            stop = end if stop < 0 else stop
            yield first, stop, above
            first = stop

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        """Write `views`, whole sectors, to `offset` on; how many bytes were written."""
        written = os.pwritev(self._fd, views, offset)
        self._mark(offset, written)
        return written

    def _mark(self, offset: int, length: int) -> None:
        first, end = offset // SECTOR, (offset + length) // SECTOR
        while first < end:
            count = min(end - first, _RUN_MAX)
            self._map[first : first + count] = _MARKS[:count]
            first += count

    def flush(self) -> None:
        """Nothing of this outlives the machine."""

    def discard(self, offset: int, length: int) -> None:
        """The bytes read as zero, and take no room."""
        self.zero(offset, length, True)

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Make `length` bytes at `offset` read as zero."""
        punch_hole(self._fd, offset, length)
        self._mark(offset, length)

    def close(self) -> None:
        """Throw the writes away, and close what lies below."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._map.close()
            self.base.close()


def _unnamed(folder: Path | None) -> int:
    if folder is None:
        places = (os.environ.get("TMPDIR"), *_TEMPORARY)
        folder = next((Path(place) for place in places if place and os.access(place, os.W_OK | os.X_OK)), None)
    with tempfile.TemporaryFile(dir=folder, prefix="bivisor-") as file:
        return os.dup(file.fileno())


def _split(views: list[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first `size` bytes of `views`, and the rest."""
    for index, view in enumerate(views):
        if size < len(view):
            head = [*views[:index], view[:size]] if size else views[:index]
            return head, [view[size:], *views[index + 1 :]]
        size -= len(view)
    return views, []
