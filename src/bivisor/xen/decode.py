"""What a hypercall asks for, by name: for who looks at hypercalls (`events.Hypercall`), not for carrying them out.

Names are those of the public headers. What is in the caller's memory is read with the caller's rights; where that
cannot be read the details are left out, for the hypercall itself will say what is wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

from bivisor.abi.xen import domctl, event_channel, grant_table, pv, sysctl, xen
from bivisor.abi.xen.event_channel import EvtchnOp
from bivisor.abi.xen.grant_table import GrantTableOp
from bivisor.abi.xen.xen import Hypercall, MemoryOp, SchedOp, VcpuOp
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError

_ARGUMENTS: dict[int, tuple[str, ...]] = {
    Hypercall.SET_TRAP_TABLE: ("traps",),
    Hypercall.MMU_UPDATE: ("req", "count", "done", "domid"),
    Hypercall.SET_GDT: ("frames", "entries"),
    Hypercall.STACK_SWITCH: ("ss", "esp"),
    Hypercall.FPU_TASKSWITCH: ("set",),
    Hypercall.PLATFORM_OP: ("op",),
    Hypercall.SET_DEBUGREG: ("reg", "value"),
    Hypercall.GET_DEBUGREG: ("reg",),
    Hypercall.UPDATE_DESCRIPTOR: ("ma", "descriptor"),
    Hypercall.MEMORY_OP: ("cmd", "arg"),
    Hypercall.MULTICALL: ("list", "calls"),
    Hypercall.UPDATE_VA_MAPPING: ("va", "val", "flags"),
    Hypercall.SET_TIMER_OP: ("timeout",),
    Hypercall.XEN_VERSION: ("cmd", "arg"),
    Hypercall.CONSOLE_IO: ("cmd", "count", "buffer"),
    Hypercall.GRANT_TABLE_OP: ("cmd", "uop", "count"),
    Hypercall.VM_ASSIST: ("cmd", "type"),
    Hypercall.UPDATE_VA_MAPPING_OTHERDOMAIN: ("va", "val", "flags", "domid"),
    Hypercall.VCPU_OP: ("cmd", "vcpuid", "extra_args"),
    Hypercall.SET_SEGMENT_BASE: ("which", "base"),
    Hypercall.MMUEXT_OP: ("uops", "count", "done", "domid"),
    Hypercall.SCHED_OP: ("cmd", "arg"),
    Hypercall.CALLBACK_OP: ("cmd", "arg"),
    Hypercall.EVENT_CHANNEL_OP: ("cmd", "arg"),
    Hypercall.PHYSDEV_OP: ("cmd", "arg"),
    Hypercall.HVM_OP: ("op", "arg"),
    Hypercall.SYSCTL: ("u_sysctl",),
    Hypercall.DOMCTL: ("u_domctl",),
    Hypercall.XENPMU_OP: ("op", "arg"),
    Hypercall.DM_OP: ("domid", "nr_bufs", "bufs"),
    Hypercall.HYPFS_OP: ("cmd", "arg1", "arg2", "arg3", "arg4"),
}

_COMMANDS: dict[int, type[IntEnum]] = {
    Hypercall.MEMORY_OP: MemoryOp,
    Hypercall.XEN_VERSION: xen.VersionOp,
    Hypercall.GRANT_TABLE_OP: GrantTableOp,
    Hypercall.VCPU_OP: VcpuOp,
    Hypercall.SCHED_OP: SchedOp,
    Hypercall.EVENT_CHANNEL_OP: EvtchnOp,
    Hypercall.HVM_OP: xen.HvmOp,
    Hypercall.SET_SEGMENT_BASE: pv.SegmentBase,
}
"""Whose first argument says what is asked for."""

_IN_MEMORY: dict[int, tuple[struct.Struct, type[IntEnum]]] = {
    Hypercall.MMUEXT_OP: (pv.MMUEXT_OP, pv.MmuExt),
    Hypercall.DOMCTL: (domctl.HEADER, domctl.Domctl),
    Hypercall.SYSCTL: (sysctl.HEADER, sysctl.Sysctl),
}
"""Whose first argument points to a structure that begins with what is asked for."""

_EVTCHN = Hypercall.EVENT_CHANNEL_OP
_GRANT = Hypercall.GRANT_TABLE_OP
_SCHED = Hypercall.SCHED_OP
_MEMORY = Hypercall.MEMORY_OP
_STRUCTURES: dict[tuple[int, int], tuple[struct.Struct, str]] = {
    (_EVTCHN, EvtchnOp.ALLOC_UNBOUND): (event_channel.ALLOC_UNBOUND, "dom remote_dom"),
    (_EVTCHN, EvtchnOp.BIND_INTERDOMAIN): (event_channel.BIND_INTERDOMAIN, "remote_dom remote_port"),
    (_EVTCHN, EvtchnOp.BIND_VIRQ): (event_channel.BIND_VIRQ, "virq vcpu"),
    (_EVTCHN, EvtchnOp.BIND_PIRQ): (event_channel.BIND_PIRQ, "pirq flags"),
    (_EVTCHN, EvtchnOp.BIND_IPI): (event_channel.BIND_IPI, "vcpu"),
    (_EVTCHN, EvtchnOp.CLOSE): (event_channel.CLOSE, "port"),
    (_EVTCHN, EvtchnOp.SEND): (event_channel.SEND, "port"),
    (_EVTCHN, EvtchnOp.STATUS): (event_channel.STATUS, "dom port"),
    (_EVTCHN, EvtchnOp.BIND_VCPU): (event_channel.BIND_VCPU, "port vcpu"),
    (_EVTCHN, EvtchnOp.UNMASK): (event_channel.UNMASK, "port"),
    (_EVTCHN, EvtchnOp.RESET): (event_channel.RESET, "dom"),
    (_EVTCHN, EvtchnOp.INIT_CONTROL): (event_channel.INIT_CONTROL, "control_gfn offset vcpu"),
    (_EVTCHN, EvtchnOp.EXPAND_ARRAY): (event_channel.EXPAND_ARRAY, "array_gfn"),
    (_EVTCHN, EvtchnOp.SET_PRIORITY): (event_channel.SET_PRIORITY, "port priority"),
    (_GRANT, GrantTableOp.MAP_GRANT_REF): (grant_table.MAP_GRANT_REF, "host_addr flags ref dom"),
    (_GRANT, GrantTableOp.UNMAP_GRANT_REF): (grant_table.UNMAP_GRANT_REF, "host_addr dev_bus_addr handle"),
    (_GRANT, GrantTableOp.SETUP_TABLE): (grant_table.SETUP_TABLE, "dom nr_frames"),
    (_GRANT, GrantTableOp.QUERY_SIZE): (grant_table.QUERY_SIZE, "dom"),
    (_GRANT, GrantTableOp.SET_VERSION): (grant_table.SET_VERSION, "version"),
    (_SCHED, SchedOp.POLL): (xen.SCHED_POLL, "ports nr_ports poll_timeout"),
    (_SCHED, SchedOp.SHUTDOWN): (struct.Struct("<I"), "reason"),
    (_MEMORY, MemoryOp.ADD_TO_PHYSMAP): (xen.ADD_TO_PHYSMAP, "domid size space idx gpfn"),
    (_MEMORY, MemoryOp.REMOVE_FROM_PHYSMAP): (xen.REMOVE_FROM_PHYSMAP, "domid gpfn"),
    (_MEMORY, MemoryOp.POPULATE_PHYSMAP): (xen.MEMORY_RESERVATION, "extent_start nr_extents extent_order"),
    (_MEMORY, MemoryOp.DECREASE_RESERVATION): (xen.MEMORY_RESERVATION, "extent_start nr_extents extent_order"),
}
"""The structure that an operation's second argument points to, and its first fields."""

NAMES: dict[int, str] = {number: Hypercall(number).name.lower() for number in Hypercall}


def name_of(nr: int) -> str:
    """The name of hypercall `nr` as in xen.h, without its prefix."""
    return NAMES.get(nr, f"hypercall_{nr}")


def decode(call: Call, nr: int, arguments: Sequence[int]) -> tuple[str, dict[str, int]]:
    """What hypercall `nr` asks for, "" where there is but one thing; and its arguments by name."""
    details = dict(zip(_ARGUMENTS.get(nr, ()), arguments, strict=False))
    if not arguments:
        return "", details
    commands = _COMMANDS.get(nr)
    if commands is not None:
        cmd = arguments[0] & 0xFFFF_FFFF
        if nr == _MEMORY:
            cmd &= xen.MEMOP_CMD_MASK
        details.pop("cmd", None)
        known = _STRUCTURES.get((nr, cmd))
        if known is not None and len(arguments) > 1:
            layout, names = known
            details.update(zip(names.split(), _fields(call, arguments[1], layout), strict=False))
        return _name(commands, cmd), details
    in_memory = _IN_MEMORY.get(nr)
    if in_memory is not None:
        layout, commands = in_memory
        fields = _fields(call, arguments[0], layout)
        return (_name(commands, fields[0]) if fields else ""), details
    return "", details


def _fields(call: Call, address: int, layout: struct.Struct) -> tuple[int, ...]:
    try:
        return layout.unpack(call.read(address, layout.size))
    except XenError:
        return ()


def _name(commands: type[IntEnum], number: int) -> str:
    try:
        return commands(number).name.lower()
    except ValueError:
        return str(number)
