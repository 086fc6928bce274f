"""memory_op (memory.h): a domain's reservation, and what is where in its physical address space."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import MemoryOp
from bivisor.xen.call import Call
from bivisor.xen.domain import Domain
from bivisor.xen.errors import XenError

_EXTENT_ORDER_LIMIT = 9  # 2 MiB: what Xen lets an unprivileged domain ask for at once
_BATCH = 4096


def _extents(call: Call, arg: int, start: int) -> tuple[Domain, list[int], int, int]:
    """(domain, first frames, order, address of the list) of a reservation, from extent `start` on."""
    at, count, order, _, domid = abi.MEMORY_RESERVATION.unpack(call.read(arg, abi.MEMORY_RESERVATION.size))
    domain = call.target(domid)
    if order > _EXTENT_ORDER_LIMIT and not call.domain.privileged:
        raise XenError(Errno.EPERM)
    if count < start:
        raise XenError(Errno.EINVAL)
    count = min(count, start + _BATCH)
    frames = (
        struct.unpack(f"<{count - start}Q", call.read(at + 8 * start, 8 * (count - start))) if count > start else ()
    )
    return domain, list(frames), order, at


def _populate(call: Call, arg: int, start: int) -> int:
    domain, frames, order, _ = _extents(call, arg, start)
    done = start
    for gfn in frames:
        if not domain.populate(gfn, 1 << order):
            break
        done += 1
    return done


def _decrease(call: Call, arg: int, start: int) -> int:
    domain, frames, order, _ = _extents(call, arg, start)
    done = start
    for gfn in frames:
        if not domain.release(gfn, 1 << order):
            break
        done += 1
    return done


def _add_to_physmap(call: Call, arg: int, _: int) -> int:
    domid, _, space, index, gfn = abi.ADD_TO_PHYSMAP.unpack(call.read(arg, abi.ADD_TO_PHYSMAP.size))
    _add(call.target(domid), space, index, gfn)
    return 0


def _add(domain: Domain, space: int, index: int, gfn: int) -> None:
    match space:
        case abi.MAPSPACE_SHARED_INFO:
            if index:
                raise XenError(Errno.EINVAL)
            domain.move_shared_info(domain.frame_for(gfn), gfn)
        case abi.MAPSPACE_GRANT_TABLE:
            page = domain.frame_for(gfn)
            if index & abi.MAPIDX_GRANT_TABLE_STATUS:
                domain.grants.move_status_frame(index & ~abi.MAPIDX_GRANT_TABLE_STATUS, page, gfn)
            else:
                domain.grants.move_frame(index, page, gfn)
        case _:
            raise XenError(Errno.ENOSYS)


def _add_batch(call: Call, arg: int, start: int) -> int:
    domid, space, size, _, indices, frames, errors = abi.ADD_TO_PHYSMAP_BATCH.unpack(
        call.read(arg, abi.ADD_TO_PHYSMAP_BATCH.size)
    )
    domain = call.target(domid)
    for i in range(start, size):
        (index,) = struct.unpack("<Q", call.read(indices + 8 * i, 8))
        (gfn,) = struct.unpack("<Q", call.read(frames + 8 * i, 8))
        result = 0
        try:
            _add(domain, space, index, gfn)
        except XenError as error:
            result = -error.errno
        call.write(errors + 4 * i, struct.pack("<i", result))
    return 0


def _memory_map(call: Call, arg: int, _: int) -> int:
    room, buffer = abi.MEMORY_MAP.unpack(call.read(arg, abi.MEMORY_MAP.size))
    entries = call.domain.memory_map
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


_OPS: dict[int, Callable[[Call, int, int], int]] = {
    MemoryOp.DECREASE_RESERVATION: _decrease,
    MemoryOp.POPULATE_PHYSMAP: _populate,
    MemoryOp.MAXIMUM_RAM_PAGE: lambda call, _, __: max(d.max_pages for d in call.hypervisor.domains.values()),
    MemoryOp.CURRENT_RESERVATION: _of_domain(lambda domain: domain.pages),
    MemoryOp.MAXIMUM_RESERVATION: _of_domain(lambda domain: domain.max_pages),
    MemoryOp.MAXIMUM_GPFN: _of_domain(lambda domain: domain.maximum_gpfn),
    MemoryOp.ADD_TO_PHYSMAP: _add_to_physmap,
    MemoryOp.ADD_TO_PHYSMAP_BATCH: _add_batch,
    MemoryOp.MEMORY_MAP: _memory_map,
}


def memory_op(call: Call, cmd: int, arg: int, *_: int) -> int:
    """HYPERVISOR_memory_op(cmd, arg); the upper bits of `cmd` are the extent to go on from."""
    op = _OPS.get(cmd & abi.MEMOP_CMD_MASK)
    if op is None:
        raise XenError(Errno.ENOSYS)
    return op(call, arg, cmd >> abi.MEMOP_EXTENT_SHIFT)
