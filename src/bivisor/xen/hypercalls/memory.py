"""memory_op (memory.h): a domain's reservation, and what is where in its physical address space."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import MemoryOp
from bivisor.xen.call import Call, Preempted
from bivisor.xen.domain import Domain
from bivisor.xen.errors import XenError

_EXTENT_ORDER_LIMIT = 9  # 2 MiB: what Xen lets an unprivileged domain ask for at once
_PRIVILEGED_ORDER_LIMIT = 18
_COUNT_LIMIT = (1 << 64 - abi.MEMOP_EXTENT_SHIFT) - 1
_BATCH = 512
"""Pages between which other processors get the hypervisor's lock; the upper bits of `cmd` say where to go on."""
_E820_MAX = 128
_GFN_LIMIT = 1 << 40 - abi.PAGE_SHIFT

Extent = Callable[[Domain, int, int], bool]


class _Again(Exception):
    """There is more to do, from extent `start` on."""

    def __init__(self, start: int) -> None:
        self.start = start


def _reservation(change: Extent) -> Callable[[Call, int, int], int]:
    """An operation on a list of extents. Whatever is wrong, the answer is how many of them are done, as in Xen."""

    def op(call: Call, arg: int, start: int) -> int:
        try:
            at, count, order, _, domid = abi.MEMORY_RESERVATION.unpack(call.read(arg, abi.MEMORY_RESERVATION.size))
            domain = call.target(domid)
            limit = _PRIVILEGED_ORDER_LIMIT if call.domain.privileged else _EXTENT_ORDER_LIMIT
            if start >= count or count > _COUNT_LIMIT or order > limit:
                return start
            wanted = min(count - start, max(1, _BATCH >> order))
            frames = struct.unpack(f"<{wanted}Q", call.read(at + 8 * start, 8 * wanted))
        except XenError:
            return start
        for index, gfn in enumerate(frames, start):
            if not change(domain, gfn, 1 << order):
                return index
        end: int = start + wanted
        if end < count:
            raise _Again(end)
        return end

    return op


def _nothing(domain: Domain, gfn: int, count: int) -> bool:
    """XENMEM_increase_reservation: pages that are nowhere in the guest would be of no use to it."""
    return False


def _add_to_physmap(call: Call, arg: int, _: int) -> int:
    domid, size, space, index, gfn = abi.ADD_TO_PHYSMAP.unpack(call.read(arg, abi.ADD_TO_PHYSMAP.size))
    domain = _translated(call, domid)
    if space == abi.MAPSPACE_GMFN_RANGE and not size:
        return 0
    if space == abi.MAPSPACE_GMFN_FOREIGN:  # in batches only
        raise XenError(Errno.ENOSYS)
    _add(domain, space, index, gfn)
    return 0


def _translated(call: Call, domid: int) -> Domain:
    """The domain whose physmap is to change. ESRCH; EACCES where it has none; EPERM."""
    domain = call.hypervisor.find_any(call.domain, domid)
    if not domain.is_hvm:
        raise XenError(Errno.EACCES)
    call.hypervisor.check_target(call.domain, domain)
    return domain


def _add(domain: Domain, space: int, index: int, gfn: int) -> None:
    match space:
        case abi.MAPSPACE_SHARED_INFO:
            if index:
                raise XenError(Errno.EINVAL)
            domain.move_shared_info(_page_for(domain, gfn), gfn)
        case abi.MAPSPACE_GRANT_TABLE:
            _add_grant_frame(domain, index, gfn)
        case abi.MAPSPACE_GMFN | abi.MAPSPACE_GMFN_RANGE:
            if not domain.has_frame(index):
                raise XenError(Errno.EINVAL)
            raise XenError(Errno.EOPNOTSUPP)  # memory stays where it is in this hypervisor
        case abi.MAPSPACE_DEV_MMIO:
            raise XenError(Errno.EACCES)
        case _:
            raise XenError(Errno.EINVAL)


def _page_for(domain: Domain, gfn: int) -> memoryview:
    if gfn >= _GFN_LIMIT:
        raise XenError(Errno.ENOENT)
    return domain.frame_for(gfn)


def _add_grant_frame(domain: Domain, index: int, gfn: int) -> None:
    grants = domain.grants
    if index & abi.MAPIDX_GRANT_TABLE_STATUS:
        index &= ~abi.MAPIDX_GRANT_TABLE_STATUS
        grants.status_frame(index).release()  # EINVAL before a page is made for one that there cannot be
        grants.move_status_frame(index, _page_for(domain, gfn), gfn)
    else:
        grants.frame(index).release()
        grants.move_frame(index, _page_for(domain, gfn), gfn)


def _add_batch(call: Call, arg: int, start: int) -> int:
    domid, space, size, _, indices, frames, errors = abi.ADD_TO_PHYSMAP_BATCH.unpack(
        call.read(arg, abi.ADD_TO_PHYSMAP_BATCH.size)
    )
    if space == abi.MAPSPACE_GMFN_RANGE:
        raise XenError(Errno.EOPNOTSUPP)
    domain = _translated(call, domid)
    if space == abi.MAPSPACE_DEV_MMIO:
        raise XenError(Errno.EACCES)
    end = min(size, start + _BATCH)
    for i in range(start, end):
        (index,) = struct.unpack("<Q", call.read(indices + 8 * i, 8))
        (gfn,) = struct.unpack("<Q", call.read(frames + 8 * i, 8))
        result = 0
        try:
            _add(domain, space, index, gfn)
        except XenError as error:
            result = -error.errno
        call.write(errors + 4 * i, struct.pack("<i", result))
    if end < size:
        raise _Again(end)
    return 0


def _remove_from_physmap(call: Call, arg: int, _: int) -> int:
    domid, gfn = abi.REMOVE_FROM_PHYSMAP.unpack(call.read(arg, abi.REMOVE_FROM_PHYSMAP.size))
    domain = _translated(call, domid)
    if not domain.remove(gfn):
        raise XenError(Errno.ENOENT)
    return 0


def _exchange(call: Call, arg: int, _: int) -> int:
    """Pages for others of the machine: no domain with a physmap sees which of the machine's pages it has."""
    fields = abi.MEMORY_EXCHANGE.unpack(call.read(arg, abi.MEMORY_EXCHANGE.size))
    _, count_in, order_in, _, domid, _, count_out, order_out, _, domid_out, done = fields
    if max(order_in, order_out) > _EXTENT_ORDER_LIMIT and not call.domain.privileged:
        raise XenError(Errno.EPERM)
    if done > count_in or domid != domid_out or max(order_in, order_out) > 63:
        raise XenError(Errno.EINVAL)
    if count_in << order_in != count_out << order_out:
        raise XenError(Errno.EINVAL)
    if not count_in:
        return 0
    call.target(domid)
    raise XenError(Errno.EOPNOTSUPP)


def _claim_pages(call: Call, arg: int, start: int) -> int:
    at, count, order, flags, domid = abi.MEMORY_RESERVATION.unpack(call.read(arg, abi.MEMORY_RESERVATION.size))
    if start or at or order or flags or domid not in call.hypervisor.domains:
        raise XenError(Errno.EINVAL)
    domain = call.target(domid)
    if count > domain.max_pages:
        raise XenError(Errno.EINVAL)
    if count and count > call.hypervisor.free_pages:
        raise XenError(Errno.ENOMEM)
    domain.claimed = count
    return 0


def _acquire_resource(call: Call, arg: int, _: int) -> int:
    """The size of a resource. What is in it is for `Xen.acquire_resource`: Dom0 has no page tables to map it with.

    EACCES to a domain with a physmap, whatever it asks: Xen does not count references from there.
    """
    if call.domain.is_hvm:
        raise XenError(Errno.EACCES)
    domid, kind, number, count, pad, _, frame_list = abi.ACQUIRE_RESOURCE.unpack(
        call.read(arg, abi.ACQUIRE_RESOURCE.size)
    )
    if pad or (not frame_list and count):
        raise XenError(Errno.EINVAL)
    domain = call.hypervisor.find(domid)
    if domain is call.domain or not call.domain.privileged:
        raise XenError(Errno.EPERM)
    size = call.hypervisor.resource_size(domain, kind, number)
    if frame_list:
        raise XenError(Errno.EOPNOTSUPP)
    call.write(arg + 8, struct.pack("<I", size))
    return 0


def _set_memory_map(call: Call, arg: int, _: int) -> int:
    """What XENMEM_memory_map tells the domain: no more than words, so that a guest may change its own."""
    domid, count, buffer = abi.FOREIGN_MEMORY_MAP.unpack(call.read(arg, abi.FOREIGN_MEMORY_MAP.size))
    if count > _E820_MAX:
        raise XenError(Errno.EINVAL)
    domain = call.target(domid)
    entries = call.read(buffer, count * abi.E820_ENTRY.size) if count else b""
    domain.memory_map = tuple(abi.E820_ENTRY.iter_unpack(entries))
    return 0


def _memory_map(call: Call, arg: int, _: int) -> int:
    entries = call.domain.memory_map
    if not entries:
        raise XenError(Errno.ENOSYS)
    room, buffer = abi.MEMORY_MAP.unpack(call.read(arg, abi.MEMORY_MAP.size))
    if room < len(entries):
        raise XenError(Errno.EINVAL)
    call.write(buffer, b"".join(abi.E820_ENTRY.pack(*entry) for entry in entries))
    call.write(arg, struct.pack("<I", len(entries)))
    return 0


def _of_domain(answer: Callable[[Domain], int]) -> Callable[[Call, int, int], int]:
    def op(call: Call, arg: int, _: int) -> int:
        (domid,) = struct.unpack("<H", call.read(arg, 2))
        return answer(call.target(domid))

    return op


def _of_hvm(call: Call, arg: int, _: int) -> int:
    """Operations on memory that a domain has been promised and does not have: no domain here has any."""
    (domid,) = struct.unpack("<H", call.read(arg, 2))
    domain = call.hypervisor.find_any(call.domain, domid)
    if not domain.is_hvm:
        raise XenError(Errno.EINVAL)
    if not call.domain.privileged:
        raise XenError(Errno.EPERM)
    raise XenError(Errno.ENOSYS)


def _vnuma(call: Call, arg: int, _: int) -> int:
    (domid,) = struct.unpack("<H", call.read(arg, 2))
    call.target(domid)
    raise XenError(Errno.EOPNOTSUPP)


def _refuse(errno: Errno, size: int = 0) -> Callable[[Call, int, int], int]:
    def op(call: Call, arg: int, _: int) -> int:
        call.read(arg, size)
        raise XenError(errno)

    return op


def _zero(call: Call, arg: int, _: int) -> int:
    return 0


_OPS: dict[int, Callable[[Call, int, int], int]] = {
    MemoryOp.INCREASE_RESERVATION: _reservation(_nothing),
    MemoryOp.DECREASE_RESERVATION: _reservation(Domain.release),
    MemoryOp.POPULATE_PHYSMAP: _reservation(Domain.populate),
    MemoryOp.MAXIMUM_RAM_PAGE: lambda call, _, __: call.hypervisor.physical.pages,
    MemoryOp.CURRENT_RESERVATION: _of_domain(lambda domain: domain.pages),
    MemoryOp.MAXIMUM_RESERVATION: _of_domain(lambda domain: domain.max_pages),
    MemoryOp.MAXIMUM_GPFN: _of_domain(lambda domain: domain.maximum_gpfn),
    MemoryOp.MACHPHYS_MFN_LIST: _refuse(Errno.ENOSYS, 24),
    MemoryOp.ADD_TO_PHYSMAP: _add_to_physmap,
    MemoryOp.ADD_TO_PHYSMAP_BATCH: _add_batch,
    MemoryOp.REMOVE_FROM_PHYSMAP: _remove_from_physmap,
    MemoryOp.MEMORY_MAP: _memory_map,
    MemoryOp.SET_MEMORY_MAP: _set_memory_map,
    MemoryOp.EXCHANGE: _exchange,
    MemoryOp.SET_POD_TARGET: _of_hvm,
    MemoryOp.GET_POD_TARGET: _of_hvm,
    MemoryOp.GET_SHARING_FREED_PAGES: _zero,
    MemoryOp.GET_SHARING_SHARED_PAGES: _zero,
    MemoryOp.ACCESS_OP: _refuse(Errno.EINVAL),
    MemoryOp.CLAIM_PAGES: _claim_pages,
    MemoryOp.MACHPHYS_COMPAT_MFN_LIST: _refuse(Errno.EOPNOTSUPP),
    MemoryOp.GET_VNUMAINFO: _vnuma,
    MemoryOp.RESERVED_DEVICE_MEMORY_MAP: _zero,
    MemoryOp.ACQUIRE_RESOURCE: _acquire_resource,
}


def memory_op(call: Call, cmd: int, arg: int, *_: int) -> int:
    """HYPERVISOR_memory_op(cmd, arg); the upper bits of `cmd` are the extent to go on from."""
    op = _OPS.get(cmd & abi.MEMOP_CMD_MASK)
    if op is None:
        raise XenError(Errno.ENOSYS)
    try:
        return op(call, arg, cmd >> abi.MEMOP_EXTENT_SHIFT)
    except _Again as more:
        raise Preempted(cmd & abi.MEMOP_CMD_MASK | more.start << abi.MEMOP_EXTENT_SHIFT, arg) from None
