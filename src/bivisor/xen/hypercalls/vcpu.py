"""vcpu_op (vcpu.h) and set_timer_op: where a processor's state lives, and its one-shot timer."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import VcpuOp
from bivisor.memory import PAGE
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError


def _register_vcpu_info(call: Call, index: int, arg: int) -> int:
    gfn, offset = abi.REGISTER_VCPU_INFO.unpack(call.read(arg, abi.REGISTER_VCPU_INFO.size))
    # inside one page, aligned: the structure is written by the hypervisor at any time
    if offset > PAGE - abi.SHARED_VCPU_INFO_SIZE or offset % 8:
        raise XenError(Errno.EINVAL)
    page = call.domain.frame(gfn)
    call.domain.register_vcpu_info(index, page[offset : offset + abi.SHARED_VCPU_INFO_SIZE])
    return 0


def _set_singleshot(call: Call, index: int, arg: int) -> int:
    deadline, flags = abi.SINGLESHOT_TIMER.unpack(call.read(arg, abi.SINGLESHOT_TIMER.size))
    if flags & abi.SINGLESHOT_FUTURE and deadline < call.hypervisor.system_time():
        raise XenError(Errno.ETIME)
    call.domain.set_timer(index, deadline)
    return 0


def _stop_singleshot(call: Call, index: int, _: int) -> int:
    call.domain.set_timer(index, None)
    return 0


def _is_up(call: Call, index: int, _: int) -> int:
    return int(index in call.domain.online)


def _runstate(call: Call, index: int, arg: int) -> int:
    (address,) = struct.unpack("<Q", call.read(arg, 8))
    state = abi.RUNSTATE_INFO.pack(abi.RUNSTATE_RUNNING, call.hypervisor.system_time(), 0, 0, 0, 0)
    call.write(address, state)
    return 0


_OPS: dict[int, Callable[[Call, int, int], int]] = {
    VcpuOp.IS_UP: _is_up,
    VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA: _runstate,
    VcpuOp.STOP_PERIODIC_TIMER: lambda _, __, ___: 0,
    VcpuOp.SET_SINGLESHOT_TIMER: _set_singleshot,
    VcpuOp.STOP_SINGLESHOT_TIMER: _stop_singleshot,
    VcpuOp.REGISTER_VCPU_INFO: _register_vcpu_info,
}


def vcpu_op(call: Call, cmd: int, index: int, arg: int, *_: int) -> int:
    """HYPERVISOR_vcpu_op(cmd, vcpuid, arg)."""
    if index >= len(call.domain.vcpus):
        raise XenError(Errno.ENOENT)
    op = _OPS.get(cmd)
    if op is None:
        raise XenError(Errno.ENOSYS)
    return op(call, index, arg)


def set_timer_op(call: Call, deadline: int, *_: int) -> int:
    """HYPERVISOR_set_timer_op(deadline): system time in nanoseconds, 0 to stop it."""
    call.domain.set_timer(call.vcpu, deadline or None)
    return 0
