"""What a domain has mapped of others (Xen's "maptrack"): a handle for each mapping.

A handle is given again only when its mapping is gone, and then as late as possible, so that a stale one is more likely
refused than taken for another's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from bivisor.abi.xen.grant_table import GrantStatus
from bivisor.xen.errors import GrantError

MAX_MAPTRACK_FRAMES = 1024
ENTRIES_PER_FRAME = 256
MAX_HANDLES = MAX_MAPTRACK_FRAMES * ENTRIES_PER_FRAME
"""Xen's default: 1024 frames of 16-byte entries."""


class Mapping:
    """A grant that is mapped. `view` is the granter's own frame, and unusable once the mapping is gone.

    A slice of the view outlives it: whoever takes one has to let go of it before unmapping.
    `gfn` is where a guest has the frame mapped; None for a mapper that uses `view`.
    """

    __slots__ = ("domid", "gfn", "handle", "readonly", "ref", "view")

    def __init__(self, domid: int, ref: int, view: memoryview, *, readonly: bool, gfn: int | None) -> None:
        self.handle = -1
        self.domid = domid
        self.ref = ref
        self.view = view
        self.readonly = readonly
        self.gfn = gfn


class Active:
    """An entry that is mapped: by whom, how often for reading and for writing, and the frame agreed on at the first."""

    __slots__ = ("domid", "gfn", "readers", "settled", "view", "writers")

    def __init__(self, domid: int, gfn: int, view: memoryview) -> None:
        self.domid = domid
        self.gfn = gfn
        self.view = view
        self.readers = 0
        self.writers = 0
        self.settled = False


class MapTrack:
    """The mappings of one domain by handle; never more than `limit`."""

    def __init__(self, limit: int = MAX_HANDLES) -> None:
        self.limit = limit
        self._mappings: list[Mapping | None] = []
        self._free: deque[int] = deque()

    def __len__(self) -> int:
        """How many mappings there are."""
        return len(self._mappings) - len(self._free)

    def __iter__(self) -> Iterator[Mapping]:
        """All mappings, in the order of their handles; some may go during the walk."""
        return (mapping for mapping in list(self._mappings) if mapping is not None)

    def check_room(self) -> None:
        """GrantError(NO_SPACE) if `add` would find no handle."""
        if not self._free and len(self._mappings) >= self.limit:
            raise GrantError(GrantStatus.NO_SPACE)

    def add(self, mapping: Mapping) -> int:
        """Track `mapping` under a handle that no other has, which it is told."""
        # New handles first, until a frame of free ones has gathered: a stale handle stays unknown for that long.
        if self._free and (len(self._free) >= ENTRIES_PER_FRAME or len(self._mappings) >= self.limit):
            handle = self._free.popleft()
            self._mappings[handle] = mapping
        else:
            self.check_room()
            handle = len(self._mappings)
            self._mappings.append(mapping)
        mapping.handle = handle
        return handle

    def get(self, handle: int) -> Mapping:
        """The mapping with this handle. GrantError(BAD_HANDLE)."""
        mapping = self._mappings[handle] if 0 <= handle < len(self._mappings) else None
        if mapping is None:
            raise GrantError(GrantStatus.BAD_HANDLE)
        return mapping

    def remove(self, mapping: Mapping) -> None:
        """The mapping is gone; its handle is free."""
        self._mappings[mapping.handle] = None
        self._free.append(mapping.handle)
