"""The pages of requests: mapped for each request, or kept mapped where the front-end uses the same grants again.

A kept ("persistent") grant is mapped for writing whatever its first use, as blkif.h has it (feature-persistent). What
is kept is bounded; those not used for longest go first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from bivisor.dom0.control import Control
from bivisor.xen.maptrack import Mapping


class Pages(Protocol):
    """How a queue comes by the pages of its requests."""

    def map(self, refs: Sequence[int], *, readonly: bool) -> list[Mapping]:
        """The page of each of `refs`, in order. GrantError, and then none."""

    def done(self, mappings: Sequence[Mapping], *, readonly: bool) -> None:
        """The request is over; pages that were not mapped `readonly` have been written. No view of them is left."""

    def close(self) -> None:
        """Give back what is still mapped."""


class Transient:
    """Mapped for one request. Unmapping tells what was written."""

    def __init__(self, control: Control, domid: int) -> None:
        self._control = control
        self._domid = domid

    def map(self, refs: Sequence[int], *, readonly: bool) -> list[Mapping]:
        """See `Pages.map`."""
        return self._control.map_grants(self._domid, refs, readonly=readonly)

    def done(self, mappings: Sequence[Mapping], *, readonly: bool) -> None:
        """See `Pages.done`."""
        self._control.unmap_grants(mappings)

    def close(self) -> None:
        """See `Pages.close`: nothing outlives its request."""


class Persistent:
    """Kept mapped, `limit` of them at most between two requests."""

    def __init__(self, control: Control, domid: int, limit: int) -> None:
        self._control = control
        self._domid = domid
        self._limit = limit
        self._kept: OrderedDict[int, Mapping] = OrderedDict()

    def __len__(self) -> int:
        """How many grants are mapped."""
        return len(self._kept)

    def map(self, refs: Sequence[int], *, readonly: bool) -> list[Mapping]:
        """See `Pages.map`."""
        kept = self._kept
        missing = [ref for ref in dict.fromkeys(refs) if ref not in kept]
        if missing:
            for mapping in self._control.map_grants(self._domid, missing):
                kept[mapping.ref] = mapping
        for ref in refs:
            kept.move_to_end(ref)
        return [kept[ref] for ref in refs]

    def done(self, mappings: Sequence[Mapping], *, readonly: bool) -> None:
        """See `Pages.done`."""
        if not readonly:
            for mapping in mappings:
                self._control.written(mapping)
        if len(self._kept) > self._limit:
            excess = len(self._kept) - self._limit
            self._control.unmap_grants([self._kept.popitem(last=False)[1] for _ in range(excess)])

    def close(self) -> None:
        """See `Pages.close`."""
        self._control.unmap_grants(self._kept.values())
        self._kept.clear()
