"""The hypercalls by which a PV kernel sets up its processor: traps, callbacks, stack, descriptors, segments."""

from __future__ import annotations

import struct

from bivisor.abi.x86 import Vector
from bivisor.abi.xen import pv as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.pv import CallbackType, SegmentBase
from bivisor.xen.errors import XenError
from bivisor.xen.pv.call import PvCall

_CANONICAL_TOP = (0, 0x1FFFF)
_DEBUG_ADDRESSES = range(4)
_DR4, _DR6, _DR7 = 4, 6, 7
_DR6_BITS, _DR6_ONES = 0xE00F, 0xFFFF_0FF0
_DR7_BITS, _DR7_ONES, _DR7_GENERAL_DETECT = 0xFFFF_03FF, 0x400, 1 << 13
_HYPERVISOR = range(0x1FF_FF00, 0x1FF_FF10)
"""Bits 39 and up of the hypervisor's addresses."""


def canonical(address: int) -> None:
    """XenError(EINVAL) for an address that no kernel can have."""
    if address >> 47 not in _CANONICAL_TOP:
        raise XenError(Errno.EINVAL)


def set_trap_table(call: PvCall, table: int, *_: int) -> int:
    """HYPERVISOR_set_trap_table(table): up to an entry without address; no table takes all handlers away."""
    private = call.machine.private
    if not table:
        for vector in range(256):
            private.set_trap(vector, 0, 0)
        return 0
    for at in range(table, table + 257 * abi.TRAP_INFO.size, abi.TRAP_INFO.size):
        vector, flags, _, address = abi.TRAP_INFO.unpack(call.read(at, abi.TRAP_INFO.size))
        if not address:
            break
        canonical(address)
        private.set_trap(vector, address, flags)
    return 0


def set_gdt(call: PvCall, frames: int, entries: int, *_: int) -> int:
    """HYPERVISOR_set_gdt(frames, entries)."""
    entries &= 0xFFFF_FFFF
    if entries > abi.FIRST_RESERVED_GDT_ENTRY:
        raise XenError(Errno.EINVAL)
    count = -(-entries // abi.GDT_PAGE_ENTRIES)
    call.machine.set_gdt(struct.unpack(f"<{count}Q", call.read(frames, 8 * count)) if count else ())
    return 0


def update_descriptor(call: PvCall, address: int, descriptor: int, *_: int) -> int:
    """HYPERVISOR_update_descriptor(machine address, descriptor)."""
    call.machine.pages.update_descriptor(address, descriptor)
    return 0


def stack_switch(call: PvCall, _: int, rsp: int, *__: int) -> int:
    """HYPERVISOR_stack_switch(ss, esp): where the kernel's stack is when a program is left. One that is nowhere is the
    end of the domain when it is used."""
    call.machine.private.set_stack(rsp)
    return 0


def set_callbacks(call: PvCall, event: int, failsafe: int, syscall: int, *_: int) -> int:
    """HYPERVISOR_set_callbacks(event, failsafe, syscall): what cannot be an address is passed over, as in Xen."""
    private = call.machine.private
    wanted = ((CallbackType.EVENT, event), (CallbackType.FAILSAFE, failsafe), (CallbackType.SYSCALL, syscall))
    for kind, address in wanted:
        if address >> 47 in _CANONICAL_TOP:
            private.set_callback(kind, address, masks_events=kind == CallbackType.EVENT)
    return 0


def callback_op(call: PvCall, cmd: int, arg: int, *_: int) -> int:
    """HYPERVISOR_callback_op(cmd, arg)."""
    private = call.machine.private
    if cmd == abi.CALLBACKOP_REGISTER:
        kind, flags, address = abi.CALLBACK_REGISTER.unpack(call.read(arg, abi.CALLBACK_REGISTER.size))
        canonical(address)
    elif cmd == abi.CALLBACKOP_UNREGISTER:
        (kind,) = abi.CALLBACK_UNREGISTER.unpack(call.read(arg, abi.CALLBACK_UNREGISTER.size))
        flags, address = 0, 0
        if kind in (CallbackType.EVENT, CallbackType.FAILSAFE, CallbackType.SYSCALL):
            raise XenError(Errno.EINVAL)
    else:
        raise XenError(Errno.ENOSYS)
    if kind not in list(CallbackType):
        raise XenError(Errno.ENOSYS)
    if kind == CallbackType.NMI:
        private.set_trap(Vector.NMI, address, 0)
    else:
        private.set_callback(kind, address, masks_events=bool(flags & abi.CALLBACKF_MASK_EVENTS))
    return 0


def fpu_taskswitch(call: PvCall, wanted: int, *_: int) -> int:
    """HYPERVISOR_fpu_taskswitch(set)."""
    call.machine.set_task_switched(bool(wanted))
    return 0


def set_segment_base(call: PvCall, which: int, base: int, *_: int) -> int:
    """HYPERVISOR_set_segment_base(which, base)."""
    cpu = call.machine.cpu
    match which:
        case SegmentBase.FS:
            canonical(base)
            cpu.set_base("fs", base)
        case SegmentBase.GS_USER:
            canonical(base)
            cpu.set_base("kernel_gs", base)
        case SegmentBase.GS_KERNEL:
            canonical(base)
            cpu.set_base("gs", base)
        case SegmentBase.GS_USER_SEL:
            cpu.set_base("kernel_gs", 0)
        case _:
            raise XenError(Errno.EINVAL)
    return 0


def set_debugreg(call: PvCall, number: int, value: int, *_: int) -> int:
    """HYPERVISOR_set_debugreg(number, value): what is set can be read back; the engine traps nothing by it."""
    number = _debug_register(number)
    if number in _DEBUG_ADDRESSES:
        if value >> 47 not in _CANONICAL_TOP or value >> 39 in _HYPERVISOR:
            raise XenError(Errno.EPERM)
    elif number == _DR6:
        value = value & _DR6_BITS | _DR6_ONES
    elif value & _DR7_GENERAL_DETECT:
        raise XenError(Errno.EPERM)
    else:
        value = value & _DR7_BITS | _DR7_ONES
    call.machine.debug[number] = value
    return 0


def _debug_register(number: int) -> int:
    """4 and 5 are other names of 6 and 7 (SDM volume 3, 18.2.2). XenError(ENODEV)."""
    if number not in _DEBUG_ADDRESSES and not _DR4 <= number <= _DR7:
        raise XenError(Errno.ENODEV)
    return number | 2 if _DR4 <= number < _DR6 else number


def get_debugreg(call: PvCall, number: int, *_: int) -> int:
    """HYPERVISOR_get_debugreg(number)."""
    return call.machine.debug[_debug_register(number)]


def physdev_op(call: PvCall, cmd: int, arg: int, *_: int) -> int:
    """HYPERVISOR_physdev_op(cmd, arg): a domain without devices can say who may try ports that are not there."""
    if cmd == abi.PHYSDEVOP_SET_IOPL:
        (iopl,) = struct.unpack("<I", call.read(arg, 4))
        if iopl > 3:
            raise XenError(Errno.EINVAL)
        call.machine.private.set_iopl(iopl)
        return 0
    if cmd == abi.PHYSDEVOP_SET_IOBITMAP:
        (_, ports) = struct.unpack("<QI", call.read(arg, 12))
        if ports > 65536:
            raise XenError(Errno.EINVAL)
        return 0
    raise XenError(Errno.ENOSYS)


def vm_assist(call: PvCall, cmd: int, kind: int, *_: int) -> int:
    """HYPERVISOR_vm_assist(cmd, type)."""
    if cmd not in (abi.VMASST_ENABLE, abi.VMASST_DISABLE):
        raise XenError(Errno.ENOSYS)
    if kind not in list(abi.VmAssist):
        raise XenError(Errno.EINVAL)
    return 0
