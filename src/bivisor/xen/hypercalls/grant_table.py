"""grant_table_op (grant_table.h): arrays of operations, each with its own status, and questions about one table.

The operations themselves are in `grant_ops.py` and `grant_table.py`; here is what a guest's structures say.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.grant_table import GrantStatus, GrantTableOp
from bivisor.abi.xen.xen import DOMID_SELF, PAGE_SHIFT
from bivisor.memory import PAGE
from bivisor.xen.call import Call, Preempted
from bivisor.xen.domain import Domain
from bivisor.xen.errors import GrantError, XenError
from bivisor.xen.grant_ops import FrameEnd, GrantEnd, copy, map_grant_ref, unmap_grant_ref

COUNT_LIMIT: Final = (1 << 31) - 1
"""Operations of one hypercall: Xen takes the count for a number with a sign."""

BATCH: Final = 64
"""Operations between which other processors get the hypervisor's lock."""

Fields = tuple[Any, ...]


def _map(call: Call, fields: Fields) -> Fields:
    host_addr, flags, ref, domid, _, _, _ = fields
    if not flags & (abi.GNTMAP_DEVICE_MAP | abi.GNTMAP_HOST_MAP):
        raise GrantError(GrantStatus.BAD_GNTREF)
    if flags & ~abi.GNTMAP_READONLY != abi.GNTMAP_HOST_MAP:  # a guest has neither devices nor page tables of the host
        raise GrantError(GrantStatus.GENERAL_ERROR)
    readonly = bool(flags & abi.GNTMAP_READONLY)
    mapping = map_grant_ref(call.domain, domid, ref, readonly=readonly, gfn=host_addr >> PAGE_SHIFT)
    return host_addr, flags, ref, domid, GrantStatus.OKAY, mapping.handle, 0


def _unmap(call: Call, fields: Fields) -> None:
    host_addr, dev_bus_addr, handle, _ = fields
    mapping = call.domain.grants.maptrack.get(handle)
    if dev_bus_addr or (host_addr and mapping.gfn != host_addr >> PAGE_SHIFT):
        raise GrantError(GrantStatus.GENERAL_ERROR)
    if host_addr:  # zero: leave the host's mapping alone, and there is no other
        unmap_grant_ref(call.domain, handle)


def _unmap_and_replace(call: Call, fields: Fields) -> None:
    host_addr, new_addr, handle, _ = fields
    if new_addr:  # the address of a page-table entry, which only a PV guest has
        call.domain.grants.maptrack.get(handle)
        raise GrantError(GrantStatus.GENERAL_ERROR)
    _unmap(call, (host_addr, 0, handle, 0))


def _copy(call: Call, fields: Fields) -> None:
    source, source_domid, source_offset, dest, dest_domid, dest_offset, length, flags, _ = fields
    # A page boundary comes before the rights, as in Xen.
    if source_offset + length > PAGE or dest_offset + length > PAGE:
        raise GrantError(GrantStatus.BAD_COPY_ARG)
    copy(
        call.domain,
        _end(call, source, source_domid, source_offset, flags & abi.GNTCOPY_SOURCE_GREF),
        _end(call, dest, dest_domid, dest_offset, flags & abi.GNTCOPY_DEST_GREF),
        length,
    )


def _end(call: Call, name: int, domid: int, offset: int, is_ref: int) -> GrantEnd | FrameEnd:
    if is_ref:
        return GrantEnd(domid, name & 0xFFFF_FFFF, offset)
    if domid != DOMID_SELF:
        _find(call, domid)
        raise GrantError(GrantStatus.PERMISSION_DENIED)
    return FrameEnd(name, offset)


def _transfer(call: Call, fields: Fields) -> None:
    raise GrantError(GrantStatus.BAD_PAGE)  # frames of translated guests cannot change hands; Xen says the same


def _swap_grant_ref(call: Call, fields: Fields) -> None:
    ref_a, ref_b, _ = fields
    call.domain.grants.swap(ref_a, ref_b)


def _target(call: Call, domid: int) -> Domain:
    """The domain whose table is asked about. GrantError(BAD_DOMAIN), and PERMISSION_DENIED for a foreign one."""
    if domid in (DOMID_SELF, call.domain.domid):
        return call.domain
    domain = _find(call, domid)
    if not call.domain.privileged:
        raise GrantError(GrantStatus.PERMISSION_DENIED)
    return domain


def _find(call: Call, domid: int) -> Domain:
    try:
        return call.hypervisor.find(domid)
    except XenError:
        raise GrantError(GrantStatus.BAD_DOMAIN) from None


def _write_list(call: Call, address: int, gfns: list[int], count: int) -> None:
    try:
        call.write(address, struct.pack(f"<{count}Q", *gfns[:count]))
    except XenError:
        raise GrantError(GrantStatus.BAD_VIRT_ADDR) from None


def _setup_table(call: Call, fields: Fields) -> None:
    domid, nr_frames, _, frame_list = fields
    table = _target(call, domid).grants
    try:
        table.grow(nr_frames)
    except XenError:
        raise GrantError(GrantStatus.GENERAL_ERROR) from None
    _write_list(call, frame_list, table.gfns(), nr_frames)


def _get_status_frames(call: Call, fields: Fields) -> None:
    nr_frames, domid, _, frame_list = fields
    gfns = _target(call, domid).grants.status_gfns()
    if nr_frames > len(gfns):
        raise GrantError(GrantStatus.GENERAL_ERROR)
    _write_list(call, frame_list, gfns, nr_frames)


def _query_size(call: Call, fields: Fields) -> Fields:
    domid, _, _, _ = fields
    table = _target(call, domid).grants
    return domid, table.nr_frames, table.max_frames, GrantStatus.OKAY


def _set_version(call: Call, _: int, uop: int, __: int) -> int:
    (version,) = abi.SET_VERSION.unpack(call.read(uop, abi.SET_VERSION.size))
    table = call.domain.grants
    try:
        table.set_version(version)
    finally:
        call.write(uop, abi.SET_VERSION.pack(table.version))  # the guest learns which it has, also from a refusal
    return 0


def _get_version(call: Call, _: int, uop: int, __: int) -> int:
    domid, _ = abi.GET_VERSION.unpack(call.read(uop, abi.GET_VERSION.size))
    table = call.target(domid).grants
    call.write(uop + 4, table.version.to_bytes(4, "little"))
    return 0


def _cache_flush(call: Call, cmd: int, uop: int, count: int) -> int:
    some = min(BATCH, count)
    for at in range(uop, uop + abi.CACHE_FLUSH.size * some, abi.CACHE_FLUSH.size):
        address, offset, length, op = abi.CACHE_FLUSH.unpack(call.read(at, abi.CACHE_FLUSH.size))
        if offset + length > PAGE or offset >= PAGE:
            raise XenError(Errno.EINVAL)
        if not length or not op:
            continue
        if op & abi.CACHE_SOURCE_GREF:
            raise XenError(Errno.EOPNOTSUPP)
        if op & ~(abi.CACHE_CLEAN | abi.CACHE_INVAL):
            raise XenError(Errno.EINVAL)
        call.domain.frame(address >> PAGE_SHIFT)  # the caches of x86 are coherent: a frame that exists needs nothing
    if some < count:
        raise Preempted(cmd, uop + some * abi.CACHE_FLUSH.size, count - some)
    return 0


def array_of(
    layout: struct.Struct, status_at: int, operation: Callable[[Any, Fields], Fields | None], *, one: bool = False
) -> Command:
    """The command that does `operation` for each structure of an array, or, if `one`, of exactly one. `operation` gives
    the fields that go back with status GNTST_okay, or None for the status alone."""
    size = layout.size
    put_status = abi.STATUS.pack_into

    def command(call: Call, cmd: int, uop: int, count: int) -> int:
        if one and count != 1:
            raise XenError(Errno.EINVAL)
        some = min(BATCH, count)
        batch(call, uop, some)
        if some < count:
            raise Preempted(cmd, uop + some * size, count - some)
        return 0

    def batch(call: Call, at: int, count: int) -> None:
        data = bytearray(call.read(at, size * count))
        call.write(at, data)  # where the answers cannot be written, nothing may be done
        for offset in range(0, len(data), size):
            try:
                answer = operation(call, layout.unpack_from(data, offset))
            except GrantError as error:
                put_status(data, offset + status_at, error.status)
            else:
                if answer is None:
                    put_status(data, offset + status_at, GrantStatus.OKAY)
                else:
                    layout.pack_into(data, offset, *answer)
        call.write(at, data)

    return command


Command = Callable[[Call, int, int, int], int]
"""(call, command, address of the structures, their number)."""

COMMANDS: dict[int, Command] = {
    GrantTableOp.MAP_GRANT_REF: array_of(abi.MAP_GRANT_REF, 18, _map),
    GrantTableOp.UNMAP_GRANT_REF: array_of(abi.UNMAP_GRANT_REF, 20, _unmap),
    GrantTableOp.SETUP_TABLE: array_of(abi.SETUP_TABLE, 8, _setup_table, one=True),
    GrantTableOp.TRANSFER: array_of(abi.TRANSFER, 16, _transfer),
    GrantTableOp.COPY: array_of(abi.COPY, 36, _copy),
    GrantTableOp.QUERY_SIZE: array_of(abi.QUERY_SIZE, 12, _query_size, one=True),
    GrantTableOp.UNMAP_AND_REPLACE: array_of(abi.UNMAP_AND_REPLACE, 20, _unmap_and_replace),
    GrantTableOp.SET_VERSION: _set_version,
    GrantTableOp.GET_STATUS_FRAMES: array_of(abi.GET_STATUS_FRAMES, 6, _get_status_frames, one=True),
    GrantTableOp.GET_VERSION: _get_version,
    GrantTableOp.SWAP_GRANT_REF: array_of(abi.SWAP_GRANT_REF, 8, _swap_grant_ref),
    GrantTableOp.CACHE_FLUSH: _cache_flush,
}
"""GNTTABOP_dump_table is not among them: it does not exist in Xen 4.17 either."""

_HVM_COMMANDS = frozenset(
    {
        GrantTableOp.MAP_GRANT_REF,
        GrantTableOp.UNMAP_GRANT_REF,
        GrantTableOp.SETUP_TABLE,
        GrantTableOp.COPY,
        GrantTableOp.QUERY_SIZE,
        GrantTableOp.SET_VERSION,
        GrantTableOp.GET_VERSION,
        GrantTableOp.SWAP_GRANT_REF,
    }
)
"""What a domain with paging of its own may ask: the others are about page tables, or about pages of the machine."""


def grant_table_op(
    call: Call, cmd: int, uop: int, count: int, *_: int, commands: Mapping[int, Command] = COMMANDS
) -> int:
    """HYPERVISOR_grant_table_op(cmd, uop, count). XenError(ENOSYS, EINVAL, EFAULT)."""
    command = commands.get(cmd & 0xFFFF_FFFF)
    if command is None or (call.domain.is_hvm and cmd & 0xFFFF_FFFF not in _HVM_COMMANDS):
        raise XenError(Errno.ENOSYS)
    count &= 0xFFFF_FFFF
    if count > COUNT_LIMIT:
        raise XenError(Errno.EINVAL)
    return command(call, cmd & 0xFFFF_FFFF, uop, count)
