"""XENMEM_exchange (memory.h): frames of a PV domain for others of the machine, in pieces of another size.

A kernel asks for it that wants memory in one piece, or below some address, for a device. What it gets comes out of what
the machine has beside the domain's memory (`boot/xenframes.py`), and out of what other exchanges and the balloon left.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.xen.call import Preempted
from bivisor.xen.errors import XenError
from bivisor.xen.pv.call import PvCall
from bivisor.xen.pv.frames import Frames
from bivisor.xen.pv.pages import NONE

_ORDER_LIMIT: Final = 9  # what Xen lets a domain without devices have in one piece
_LONG: Final = (1 << 64) - 1
_ADDRESS_BITS: Final = 0xFF  # XENMEMF_address_bits, of mem_flags
_BATCH: Final = 512
_EXCHANGED = abi.MEMORY_EXCHANGE.size - 8
_Q = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class _Lists:
    """The two lists, cut into chunks of as many frames as one extent of the larger kind has."""

    call: PvCall
    given_at: int
    given_order: int
    wanted_at: int
    wanted_order: int
    bits: int

    @property
    def order(self) -> int:
        """Frames of a chunk, as a power of 2."""
        return max(self.given_order, self.wanted_order)

    def given(self, chunk: int) -> list[int]:
        """The frames that are given up for it. XenError(EFAULT)."""
        count = 1 << self.order - self.given_order
        raw = self.call.read(self.given_at + 8 * count * chunk, 8 * count)
        return [mfn + n for (mfn,) in _Q.iter_unpack(raw) for n in range(1 << self.given_order)]

    def places(self, chunk: int) -> tuple[int, tuple[int, ...]]:
        """Where the extents that are wanted for it stand, and the pseudo-physical frames that they will be. EFAULT."""
        count = 1 << self.order - self.wanted_order
        at = self.wanted_at + 8 * count * chunk
        return at, struct.unpack(f"<{count}Q", self.call.read(at, 8 * count))


def exchange(call: PvCall, arg: int) -> int:
    """XENMEM_exchange. What is done stands in `nr_exchanged`, whatever the answer. XenError: EFAULT, EPERM for a piece
    that is too large, EINVAL for lists that do not fit or a frame that is not the guest's or is in use, ESRCH, ENOMEM
    where the machine has no such piece."""
    fields = abi.MEMORY_EXCHANGE.unpack(call.read(arg, abi.MEMORY_EXCHANGE.size))
    given_at, given, given_order, _, domid, wanted_at, wanted, wanted_order, flags, domid_out, done = fields
    if max(given_order, wanted_order) > _ORDER_LIMIT:
        raise XenError(Errno.EPERM)
    if done > given or domid != domid_out or given > _LONG >> given_order or wanted > _LONG >> wanted_order:
        raise XenError(Errno.EINVAL)
    if given << given_order != wanted << wanted_order:
        raise XenError(Errno.EINVAL)
    if done == given:
        return 0
    if call.target(domid) is not call.domain:
        raise XenError(Errno.EPERM)
    lists = _Lists(call, given_at, given_order, wanted_at, wanted_order, flags & _ADDRESS_BITS or 64)
    shift = lists.order - given_order
    chunk, frames = done >> shift, 0
    try:
        while chunk < given >> shift:
            if frames >= _BATCH:
                raise Preempted(abi.MemoryOp.EXCHANGE, arg)
            _exchange_chunk(lists, chunk)
            frames += 1 << lists.order
            chunk += 1
    finally:
        call.write(arg + _EXCHANGED, _Q.pack(chunk << shift))
    return 0


def _exchange_chunk(lists: _Lists, chunk: int) -> None:
    """All of a chunk, or nothing of it."""
    call = lists.call
    frames = call.machine.frames
    given = lists.given(chunk)
    if len(set(given)) != len(given) or not all(_is_idle(frames, mfn) for mfn in given):
        raise XenError(Errno.EINVAL)
    if not call.domain.grants.mapped_frames().isdisjoint(given):
        raise XenError(Errno.EINVAL)
    at, pfns = lists.places(chunk)
    found = find(frames, len(pfns), lists.wanted_order, lists.bits)
    call.write(at, struct.pack(f"<{len(found)}Q", *found))
    pages, m2p, domain = frames.pages, frames.private.m2p, call.domain
    for mfn in given:
        domain.release(mfn, 1)
        frames.lost(mfn)
    size = 1 << lists.wanted_order
    for mfn, pfn in zip(found, pfns, strict=True):
        domain.populate(mfn, size)
        for n in range(size):
            pages.kind[mfn + n] = NONE
            m2p[mfn + n] = pfn + n & _LONG


def _is_idle(frames: Frames, mfn: int) -> bool:
    """Whether the guest can give the frame up: its own, and of no type."""
    return frames.pages.has(mfn) and frames.pages.kind[mfn] == NONE


def find(frames: Frames, count: int, order: int, bits: int) -> list[int]:
    """`count` pieces of 2 ** `order` frames that the domain has not, below address 2 ** `bits`. XenError(ENOMEM)."""
    absent, size = frames.domain.absent, 1 << order
    limit = min(frames.pages.frames, 1 << max(0, bits - abi.PAGE_SHIFT))
    found = []
    for mfn in sorted(absent):
        if mfn + size > limit:
            break
        if mfn & size - 1 or mfn in frames.devices or not all(mfn + n in absent for n in range(1, size)):
            continue
        found.append(mfn)
        if len(found) == count:
            return found
    raise XenError(Errno.ENOMEM)
