"""The entries of a grant table in their two layouts (grant_table.h), and how the hypervisor pins one.

A guest writes its entries whenever it likes. So an entry's flags are looked at and GTF_reading or GTF_writing set in
one compare-and-exchange (version 1), or the flags are looked at again once the status is visible (version 2), and
everything else of an entry is read once, after that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Protocol

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.grant_table import GrantStatus
from bivisor.memory import PAGE
from bivisor.memory.atomics import Atomics
from bivisor.xen.errors import GrantError, XenError
from bivisor.xen.grant_frames import TableFrames

RETRIES: Final = 5
"""How often a guest that keeps changing an entry can make the hypervisor look again."""

_ACCESS = abi.GTF_PERMIT_ACCESS
_FULL_PAGE_MASK = abi.GTF_TYPE_MASK | abi.GTF_SUB_PAGE
_BOTH = abi.GTF_READING | abi.GTF_WRITING
_ALL_ONES = (1 << 64) - 1
_RESERVED_V1 = abi.RESERVED_ENTRIES * abi.GRANT_ENTRY_V1.size
_SIZE_V2 = abi.GRANT_ENTRY_V2_FULL_PAGE.size


@dataclass(frozen=True, slots=True)
class SubPage:
    """What a sub-page grant gives: `length` bytes from `offset` on of frame `gfn`."""

    gfn: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Transitive:
    """What a transitive grant gives: whatever grant `ref` of domain `domid` gives to the granter."""

    domid: int
    ref: int


class Reserved(NamedTuple):
    """An entry that outlives a change of version: its flags with the hypervisor's, the grantee, and the frame."""

    flags: int
    domid: int
    gfn: int


class Entries(Protocol):
    """One layout over the frames of one table. `ref` has been checked against the table's size."""

    version: int
    per_frame: ClassVar[int]

    def pin(self, ref: int, domid: int, *, readonly: bool, pinned: bool, mapping: bool) -> None:
        """Set GTF_reading, and GTF_writing if not `readonly`, if the entry grants `domid` that.

        An entry that is `pinned` already is not asked again to whom it grants what: its guest must not change that, and
        what was agreed holds. `mapping` admits grants of whole frames only. GrantError(GENERAL_ERROR).
        """

    def stands(self, ref: int, *, readonly: bool) -> bool:
        """Whether a pinned entry grants anything still: its guest has not taken it back while it was being pinned."""

    def unpin(self, ref: int, bits: int) -> None:
        """Clear `bits` of GTF_reading and GTF_writing."""

    def gfn(self, ref: int) -> int:
        """The frame of a grant of a whole frame."""

    def source(self, ref: int) -> int | SubPage | Transitive:
        """What a pinned entry gives to copy from or to: a whole frame (its gfn), a part of one, or another's grant."""

    def swap(self, a: int, b: int) -> None:
        """Exchange two entries."""

    def save_reserved(self) -> list[Reserved]:
        """The first RESERVED_ENTRIES entries. XenError(ERANGE) where version 1 has no word for one."""

    def restore_reserved(self, entries: list[Reserved]) -> None:
        """Write what `save_reserved` of the other layout gave."""


def _unfit(flags_domid: int, domid: int, mask: int) -> bool:
    return flags_domid & mask != _ACCESS or flags_domid >> 16 != domid


class EntriesV1:
    """struct grant_entry_v1: 8 bytes, with the hypervisor's flags among the guest's."""

    version = 1
    per_frame: ClassVar[int] = PAGE // abi.GRANT_ENTRY_V1.size

    __slots__ = ("_and", "_cmpxchg", "_shared")

    def __init__(self, shared: TableFrames, atomics: Atomics) -> None:
        self._shared = shared
        self._and = atomics.and_u64
        self._cmpxchg = atomics.cmpxchg_u32

    def pin(self, ref: int, domid: int, *, readonly: bool, pinned: bool, mapping: bool) -> None:
        """See `Entries.pin`."""
        frame = self._shared[ref >> 9]
        at = ref & 511
        address = frame.address + 8 * at
        word = frame.words[2 * at]
        mask = _FULL_PAGE_MASK if mapping else abi.GTF_TYPE_MASK
        bits = abi.GTF_READING if readonly else _BOTH
        for _ in range(RETRIES):
            if not pinned and _unfit(word, domid, mask):
                raise GrantError(GrantStatus.GENERAL_ERROR)
            if not readonly and word & abi.GTF_READONLY:
                raise GrantError(GrantStatus.GENERAL_ERROR)
            found = self._cmpxchg(address, word, word | bits)
            if found == word:
                return
            word = found
        raise GrantError(GrantStatus.GENERAL_ERROR)

    def stands(self, ref: int, *, readonly: bool) -> bool:
        """See `Entries.stands`."""
        word = self._shared[ref >> 9].words[2 * (ref & 511)]
        bits = abi.GTF_READING if readonly else _BOTH
        return word & bits == bits and word & abi.GTF_TYPE_MASK == _ACCESS

    def unpin(self, ref: int, bits: int) -> None:
        """See `Entries.unpin`. Unconditional, so that a guest which keeps changing the entry cannot prevent it."""
        self._and(self._shared[ref >> 9].address + 8 * (ref & 511), _ALL_ONES ^ bits)

    def gfn(self, ref: int) -> int:
        """See `Entries.gfn`."""
        return self._shared[ref >> 9].words[2 * (ref & 511) + 1]

    source = gfn

    def swap(self, a: int, b: int) -> None:
        """See `Entries.swap`."""
        one, other = self._shared[a >> 9].quads, self._shared[b >> 9].quads
        one[a & 511], other[b & 511] = other[b & 511], one[a & 511]

    def save_reserved(self) -> list[Reserved]:
        """See `Entries.save_reserved`."""
        return [Reserved(*fields) for fields in abi.GRANT_ENTRY_V1.iter_unpack(self._shared[0].view[:_RESERVED_V1])]

    def restore_reserved(self, entries: list[Reserved]) -> None:
        """See `Entries.restore_reserved`."""
        for i, entry in enumerate(entries):
            abi.GRANT_ENTRY_V1.pack_into(self._shared[0].view, abi.GRANT_ENTRY_V1.size * i, *entry)


class EntriesV2:
    """union grant_entry_v2: 16 bytes that only the guest writes, and a status that only the hypervisor does."""

    version = 2
    per_frame: ClassVar[int] = PAGE // abi.GRANT_ENTRY_V2_FULL_PAGE.size

    __slots__ = ("_cmpxchg", "_shared", "_status")

    def __init__(self, shared: TableFrames, status: TableFrames, atomics: Atomics) -> None:
        self._shared = shared
        self._status = status
        self._cmpxchg = atomics.cmpxchg_u32

    def pin(self, ref: int, domid: int, *, readonly: bool, pinned: bool, mapping: bool) -> None:
        """See `Entries.pin`."""
        frame = self._shared[ref >> 8]
        at = ref & 255
        word = frame.words[4 * at]
        self._admit(word, domid, readonly=readonly, pinned=pinned, mapping=mapping)
        status = self._status[ref >> 11].halves
        before = status[ref & 2047]
        status[ref & 2047] = before | (abi.GTF_READING if readonly else _BOTH)
        # A guest that revokes writes its flags, then reads the status; here it is the other way round, and of the two
        # one must see the other's store. The exchange of a word for itself is the barrier and the second look in one.
        word = self._cmpxchg(frame.address + 16 * at, word, word)
        try:
            self._admit(word, domid, readonly=readonly, pinned=pinned, mapping=mapping)
        except GrantError:
            status[ref & 2047] = before if pinned else before & ~_BOTH
            raise

    @staticmethod
    def _admit(word: int, domid: int, *, readonly: bool, pinned: bool, mapping: bool) -> None:
        if not pinned and _unfit(word, domid, _FULL_PAGE_MASK if mapping else abi.GTF_TYPE_MASK):
            transitive = not mapping and word & abi.GTF_TYPE_MASK == abi.GTF_TRANSITIVE and word >> 16 == domid
            if not transitive:
                raise GrantError(GrantStatus.GENERAL_ERROR)
        if not readonly and word & abi.GTF_READONLY:
            raise GrantError(GrantStatus.GENERAL_ERROR)

    def stands(self, ref: int, *, readonly: bool) -> bool:
        """See `Entries.stands`."""
        word = self._shared[ref >> 8].words[4 * (ref & 255)]
        return word & abi.GTF_TYPE_MASK != abi.GTF_INVALID and (readonly or not word & abi.GTF_READONLY)

    def unpin(self, ref: int, bits: int) -> None:
        """See `Entries.unpin`."""
        status = self._status[ref >> 11].halves
        status[ref & 2047] &= ~bits

    def gfn(self, ref: int) -> int:
        """See `Entries.gfn`."""
        return self._shared[ref >> 8].quads[2 * (ref & 255) + 1]

    def source(self, ref: int) -> int | SubPage | Transitive:
        """See `Entries.source`."""
        words = self._shared[ref >> 8].words
        at = 4 * (ref & 255)
        flags = words[at]
        if flags & abi.GTF_TYPE_MASK == abi.GTF_TRANSITIVE:
            return Transitive(words[at + 1] & 0xFFFF, words[at + 2])
        if flags & abi.GTF_SUB_PAGE:
            extent = words[at + 1]
            return SubPage(self.gfn(ref), extent & 0xFFFF, extent >> 16)
        return self.gfn(ref)

    def swap(self, a: int, b: int) -> None:
        """See `Entries.swap`."""
        one, i = self._shared[a >> 8].view, (a & 255) * _SIZE_V2
        other, j = self._shared[b >> 8].view, (b & 255) * _SIZE_V2
        entry = bytes(one[i : i + _SIZE_V2])
        one[i : i + _SIZE_V2] = other[j : j + _SIZE_V2]
        other[j : j + _SIZE_V2] = entry
        one, other = self._status[a >> 11].halves, self._status[b >> 11].halves
        one[a & 2047], other[b & 2047] = other[b & 2047], one[a & 2047]

    def save_reserved(self) -> list[Reserved]:
        """See `Entries.save_reserved`."""
        shared = bytes(self._shared[0].view[: abi.RESERVED_ENTRIES * _SIZE_V2])
        saved = []
        for i, (flags, domid, gfn) in enumerate(abi.GRANT_ENTRY_V2_FULL_PAGE.iter_unpack(shared)):
            kind = flags & abi.GTF_TYPE_MASK
            if kind == abi.GTF_TRANSITIVE or (kind == _ACCESS and gfn >> 32):
                raise XenError(Errno.ERANGE)
            bits = self._status[0].halves[i] & _BOTH
            saved.append(Reserved(flags | bits, domid, gfn) if kind == _ACCESS else Reserved(0, 0, 0))
        return saved

    def restore_reserved(self, entries: list[Reserved]) -> None:
        """See `Entries.restore_reserved`."""
        for i, (flags, domid, gfn) in enumerate(entries):
            self._status[0].halves[i] = flags & _BOTH
            abi.GRANT_ENTRY_V2_FULL_PAGE.pack_into(self._shared[0].view, _SIZE_V2 * i, flags & ~_BOTH, domid, gfn)
