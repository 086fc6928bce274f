"""The hypercalls of a PV guest: what only such a guest has, and the rest as for any other."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen import grant_table as grants
from bivisor.abi.xen import pv as abi
from bivisor.abi.xen import xen
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.grant_table import GrantTableOp
from bivisor.abi.xen.xen import MULTICALL_ENTRY, Feature, Hypercall, MemoryOp, VersionOp
from bivisor.xen.call import Preempted
from bivisor.xen.errors import XenError
from bivisor.xen.hypercalls.grant_table import COMMANDS, array_of, grant_table_op
from bivisor.xen.hypercalls.memory import memory_op
from bivisor.xen.hypercalls.version import xen_version
from bivisor.xen.pv import cpu_ops, mmu
from bivisor.xen.pv.call import PvCall
from bivisor.xen.pv.exchange import exchange
from bivisor.xen.pv.grants import map_grant, unmap_and_replace, unmap_grant
from bivisor.xen.pv.vcpus import pv_vcpu_op
from bivisor.xen.table import TABLE as COMMON

_FEATURES = (
    1 << Feature.MMU_PT_UPDATE_PRESERVE_AD
    | 1 << Feature.HIGHMEM_ASSIST
    | 1 << Feature.GNTTAB_MAP_AVAIL_BITS
    | 1 << Feature.PAE_PGDIR_ABOVE_4GB
    | 1 << Feature.MEMORY_OP_VNODE_SUPPORTED
)
_GRANTS = COMMANDS | {
    GrantTableOp.MAP_GRANT_REF: array_of(grants.MAP_GRANT_REF, 18, map_grant),
    GrantTableOp.UNMAP_GRANT_REF: array_of(grants.UNMAP_GRANT_REF, 20, unmap_grant),
    GrantTableOp.UNMAP_AND_REPLACE: array_of(grants.UNMAP_AND_REPLACE, 20, unmap_and_replace),
}
_MASK = (1 << 64) - 1
_BATCH = 64
_ARGUMENTS = struct.Struct("<6Q")
_EXTENTS = 512

Function = Callable[..., int]


def _xen_version(call: PvCall, cmd: int, arg: int, *_: int) -> int:
    if cmd != VersionOp.GET_FEATURES:
        return xen_version(call, cmd, arg)
    (submap,) = struct.unpack("<I", call.read(arg, 4))
    if submap:
        raise XenError(Errno.EINVAL)
    call.write(arg + 4, struct.pack("<I", _FEATURES))
    return 0


def _grant_table_op(call: PvCall, cmd: int, arg: int, count: int, *_: int) -> int:
    """The frames of a PV guest's grant table are the hypervisor's, and have numbers by which the guest maps them."""
    if count and cmd == GrantTableOp.SETUP_TABLE:
        domid, frames, _, _ = grants.SETUP_TABLE.unpack(call.read(arg, grants.SETUP_TABLE.size))
        _share(call, domid, frames, status=False)
    elif count and cmd == GrantTableOp.GET_STATUS_FRAMES:
        frames, domid, _, _ = grants.GET_STATUS_FRAMES.unpack(call.read(arg, grants.GET_STATUS_FRAMES.size))
        _share(call, domid, frames, status=True)
    return grant_table_op(call, cmd, arg, count, commands=_GRANTS)


def _share(call: PvCall, domid: int, frames: int, *, status: bool) -> None:
    if domid in (xen.DOMID_SELF, call.domain.domid) and frames <= call.domain.grants.max_frames:
        call.machine.frames.share_grants(frames, status=status)


def _memory_op(call: PvCall, cmd: int, arg: int, *_: int) -> int:
    machine = call.machine
    match cmd & xen.MEMOP_CMD_MASK:
        case MemoryOp.MACHPHYS_MAPPING:
            private = machine.frames.private
            call.write(arg, abi.MACHPHYS_MAPPING.pack(private.m2p_start, private.m2p_end, machine.pages.frames - 1))
            return 0
        case MemoryOp.MAXIMUM_RAM_PAGE:
            return machine.pages.frames
        case MemoryOp.EXCHANGE:
            return exchange(call, arg)
        case MemoryOp.POPULATE_PHYSMAP | MemoryOp.DECREASE_RESERVATION as op:
            return _reservation(call, op, cmd >> xen.MEMOP_EXTENT_SHIFT, arg)
        case _:
            return memory_op(call, cmd, arg)


def _reservation(call: PvCall, op: int, start: int, arg: int) -> int:
    """Frames come and go one by one; whatever is wrong, the answer is how many extents are done, as in Xen."""
    machine = call.machine
    try:
        at, count, order, _, domid = xen.MEMORY_RESERVATION.unpack(call.read(arg, xen.MEMORY_RESERVATION.size))
        if domid not in (xen.DOMID_SELF, call.domain.domid) or order or start >= count:
            return start
        part = min(count - start, _EXTENTS)
        frames = struct.unpack(f"<{part}Q", call.read(at + 8 * start, 8 * part))
        for index, frame in enumerate(frames, start):
            if op == MemoryOp.DECREASE_RESERVATION:
                if not machine.frames.decrease(frame):
                    return index
                continue
            mfn = machine.frames.populate(frame)
            if mfn is None:
                return index
            call.write(at + 8 * index, mfn.to_bytes(8, "little"))
    except XenError:
        return start
    if start + part < count:
        raise Preempted(op | start + part << xen.MEMOP_EXTENT_SHIFT, arg)
    return int(start + part)


def step(call: PvCall, nr: int, arguments: tuple[int, ...] | list[int]) -> int:
    """Hypercall `nr`: its result, or a negative error number."""
    function = (TABLE if call.watched is None else call.watched).get(nr)
    if function is None:
        return -Errno.ENOSYS
    try:
        return function(call, *arguments)
    except XenError as error:
        return -error.errno


def _multicall(call: PvCall, list_: int, count: int, *_: int) -> int:
    count &= 0xFFFF_FFFF
    size = MULTICALL_ENTRY.size
    part = min(count, _BATCH)
    for done, entry in enumerate(MULTICALL_ENTRY.iter_unpack(call.read(list_, size * part))):
        at = list_ + done * size
        op, _, *arguments = entry
        try:
            result = -Errno.EINVAL if op == Hypercall.MULTICALL else step(call, op, arguments)
        except Preempted as more:
            call.write(at + 16, _ARGUMENTS.pack(*(*more.arguments, *arguments)[:6]))
            raise Preempted(at, count - done, pause=more.pause) from None
        call.write(at + 8, (result & _MASK).to_bytes(8, "little"))
    if part < count:
        raise Preempted(list_ + part * size, count - part)
    return 0


TABLE: dict[int, Function] = {
    **COMMON,
    Hypercall.SET_TRAP_TABLE: cpu_ops.set_trap_table,
    Hypercall.MMU_UPDATE: mmu.mmu_update,
    Hypercall.SET_GDT: cpu_ops.set_gdt,
    Hypercall.STACK_SWITCH: cpu_ops.stack_switch,
    Hypercall.SET_CALLBACKS: cpu_ops.set_callbacks,
    Hypercall.FPU_TASKSWITCH: cpu_ops.fpu_taskswitch,
    Hypercall.SET_DEBUGREG: cpu_ops.set_debugreg,
    Hypercall.GET_DEBUGREG: cpu_ops.get_debugreg,
    Hypercall.UPDATE_DESCRIPTOR: cpu_ops.update_descriptor,
    Hypercall.MEMORY_OP: _memory_op,
    Hypercall.MULTICALL: _multicall,
    Hypercall.UPDATE_VA_MAPPING: mmu.update_va_mapping,
    Hypercall.XEN_VERSION: _xen_version,
    Hypercall.GRANT_TABLE_OP: _grant_table_op,
    Hypercall.VM_ASSIST: cpu_ops.vm_assist,
    Hypercall.UPDATE_VA_MAPPING_OTHERDOMAIN: mmu.update_va_mapping_otherdomain,
    Hypercall.VCPU_OP: pv_vcpu_op,
    Hypercall.SET_SEGMENT_BASE: cpu_ops.set_segment_base,
    Hypercall.MMUEXT_OP: mmu.mmuext_op,
    Hypercall.CALLBACK_OP: cpu_ops.callback_op,
    Hypercall.PHYSDEV_OP: cpu_ops.physdev_op,
}
