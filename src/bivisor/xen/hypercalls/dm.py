"""dm_op (hvm/dm_op.h): what a device model asks Xen for on behalf of the domain that it emulates devices of."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen import dm_op as abi
from bivisor.abi.xen.dm_op import DmOp
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import PAGE_SHIFT, ShutdownReason
from bivisor.errors import GuestAddressError
from bivisor.xen.call import Call
from bivisor.xen.domain import Domain
from bivisor.xen.errors import XenError
from bivisor.xen.hvm.state import HvmState

_BUFS_MAX = 2
_EXTENTS_MAX = 1024
_EXTENT_PAGES = 1 << 20
_AT = abi.HEADER.size

_Buffers = list[tuple[int, int]]
_Op = Callable[[Call, Domain, HvmState, bytearray, _Buffers], None]


def _create(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
    bufioreq, _id = abi.CREATE_IOREQ_SERVER.unpack_from(op, _AT)
    abi.CREATE_IOREQ_SERVER.pack_into(op, _AT, bufioreq, hvm.servers.create(call.domain, bufioreq))


def _info(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
    """The pages of a server are resources here; it has none in the guest's own physical address space."""
    number, flags, *_rest = abi.GET_IOREQ_SERVER_INFO.unpack_from(op, _AT)
    server = hvm.servers.find(call.domain, number)
    if flags & ~abi.NO_GFNS:
        raise XenError(Errno.EINVAL)
    if not flags & abi.NO_GFNS:
        raise XenError(Errno.EOPNOTSUPP)
    abi.GET_IOREQ_SERVER_INFO.pack_into(op, _AT, number, flags, server.buffer_port, 0, 0)


def _range(add: bool) -> _Op:
    def change(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
        number, kind, start, end = abi.IO_RANGE.unpack_from(op, _AT)
        server = hvm.servers.find(call.domain, number)
        ranges = server.ranges.get(kind)
        if ranges is None:
            raise XenError(Errno.EINVAL)
        (ranges.add if add else ranges.remove)(start, end)

    return change


def _state(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
    number, enabled = abi.SET_IOREQ_SERVER_STATE.unpack_from(op, _AT)
    hvm.servers.enable(hvm.servers.find(call.domain, number), bool(enabled))


def _destroy(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
    (number,) = abi.DESTROY_IOREQ_SERVER.unpack_from(op, _AT)
    hvm.servers.destroy(hvm.servers.find(call.domain, number))


def _intx(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
    segment, bus, slot, pin, level = abi.SET_PCI_INTX_LEVEL.unpack_from(op, _AT)
    if segment or bus or level > 1:
        raise XenError(Errno.EINVAL)
    hvm.lines.set_pin(slot, pin, bool(level))


def _isa(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
    irq, level = abi.SET_ISA_IRQ_LEVEL.unpack_from(op, _AT)
    if level > 1:
        raise XenError(Errno.EINVAL)
    hvm.lines.set_isa(irq, bool(level))


def _link(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
    hvm.lines.route(*abi.SET_PCI_LINK_ROUTE.unpack_from(op, _AT))


def _modified(call: Call, domain: Domain, hvm: HvmState, op: bytearray, buffers: _Buffers) -> None:
    """The device model has written pages of the guest: an engine may have translated code from them."""
    count, opaque = abi.MODIFIED_MEMORY.unpack_from(op, _AT)
    if opaque or count > _EXTENTS_MAX or len(buffers) < 2:
        raise XenError(Errno.EINVAL)
    size = abi.MODIFIED_MEMORY_EXTENT.size
    address, room = buffers[1]
    if count * size > room:
        raise XenError(Errno.EINVAL)
    for pages, first in abi.MODIFIED_MEMORY_EXTENT.iter_unpack(call.read(address, count * size)):
        if pages > _EXTENT_PAGES:
            raise XenError(Errno.EINVAL)
        try:
            domain.memory.view(first << PAGE_SHIFT, pages << PAGE_SHIFT).release()
        except GuestAddressError:
            raise XenError(Errno.EINVAL) from None
        domain.memory.written(first << PAGE_SHIFT, pages << PAGE_SHIFT)


def _msi(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
    data, address = abi.INJECT_MSI.unpack_from(op, _AT)
    if address >> 20 != 0xFEE:
        raise XenError(Errno.EINVAL)
    hvm.signal_msi(address, data)


def _shutdown(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
    (reason,) = abi.REMOTE_SHUTDOWN.unpack_from(op, _AT)
    try:
        call.hypervisor.shutdown(domain, ShutdownReason(reason))
    except ValueError:
        raise XenError(Errno.EINVAL) from None


def _vcpus(call: Call, domain: Domain, hvm: HvmState, op: bytearray, _: _Buffers) -> None:
    abi.NR_VCPUS.pack_into(op, _AT, len(domain.vcpus))


_OPS: dict[int, tuple[_Op, bool]] = {
    DmOp.CREATE_IOREQ_SERVER: (_create, True),
    DmOp.GET_IOREQ_SERVER_INFO: (_info, True),
    DmOp.MAP_IO_RANGE_TO_IOREQ_SERVER: (_range(add=True), False),
    DmOp.UNMAP_IO_RANGE_FROM_IOREQ_SERVER: (_range(add=False), False),
    DmOp.SET_IOREQ_SERVER_STATE: (_state, False),
    DmOp.DESTROY_IOREQ_SERVER: (_destroy, False),
    DmOp.SET_PCI_INTX_LEVEL: (_intx, False),
    DmOp.SET_ISA_IRQ_LEVEL: (_isa, False),
    DmOp.SET_PCI_LINK_ROUTE: (_link, False),
    DmOp.MODIFIED_MEMORY: (_modified, False),
    DmOp.INJECT_MSI: (_msi, False),
    DmOp.REMOTE_SHUTDOWN: (_shutdown, False),
    DmOp.NR_VCPUS: (_vcpus, True),
}
"""Each operation, and whether it answers in the structure."""


def dm_op(call: Call, domid: int, count: int, bufs: int, *_: int) -> int:
    """HYPERVISOR_dm_op(domid, nr_bufs, bufs). XenError: ESRCH, EPERM, EINVAL, EFAULT, EOPNOTSUPP, what each says."""
    domain = call.hypervisor.find(domid & 0xFFFF)
    if domain is call.domain:
        raise XenError(Errno.EPERM)
    if not domain.is_hvm:
        raise XenError(Errno.EINVAL)
    call.hypervisor.check_target(call.domain, domain)
    if domain.hvm is None:  # a PVH domain
        raise XenError(Errno.EOPNOTSUPP)
    if not 1 <= count <= _BUFS_MAX:
        raise XenError(Errno.EINVAL if not count else Errno.E2BIG)
    raw = call.read(bufs, count * abi.BUF.size)
    buffers = [struct.unpack_from("<QQ", raw, index * abi.BUF.size) for index in range(count)]
    address, size = buffers[0]
    op = bytearray(call.read(address, min(size, abi.SIZE)).ljust(abi.SIZE, b"\0"))
    carry_out, answers = _OPS.get(abi.HEADER.unpack_from(op)[0], (None, False))
    if carry_out is None:
        raise XenError(Errno.EOPNOTSUPP)
    carry_out(call, domain, domain.hvm, op, buffers)
    if answers:
        call.write(address, op[: min(size, abi.SIZE)])
    return 0
