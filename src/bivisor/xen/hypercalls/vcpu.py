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

_SHORTEST_PERIOD_NS = 1_000_000
_LONGEST_PERIOD_NS = 1 << 62


def _register_vcpu_info(call: Call, index: int, arg: int) -> int:
    gfn, offset = abi.REGISTER_VCPU_INFO.unpack(call.read(arg, abi.REGISTER_VCPU_INFO.size))
    # inside one page, aligned: the structure is written by the hypervisor at any time
    if offset > PAGE - abi.SHARED_VCPU_INFO_SIZE or offset % 8:
        raise XenError(Errno.ENXIO)
    if call.domain.vcpus[index].is_registered:
        raise XenError(Errno.EINVAL)
    page = call.domain.frame(gfn)
    call.domain.register_vcpu_info(index, page[offset : offset + abi.SHARED_VCPU_INFO_SIZE])
    return 0


def _own(call: Call, index: int) -> None:
    """Timers are set by the processor that they ring on."""
    if index != call.vcpu:
        raise XenError(Errno.EINVAL)


def _set_singleshot(call: Call, index: int, arg: int) -> int:
    _own(call, index)
    # A deadline that has passed rings at once, VCPU_SSHOTTMR_future or not: so does Xen since 4.15.
    deadline, _ = abi.SINGLESHOT_TIMER.unpack(call.read(arg, abi.SINGLESHOT_TIMER.size))
    call.domain.set_timer(index, deadline)
    return 0


def _stop_singleshot(call: Call, index: int, _: int) -> int:
    _own(call, index)
    call.domain.set_timer(index, None)
    return 0


def _is_up(call: Call, index: int, _: int) -> int:
    return int(index in call.domain.online)


def _state(call: Call) -> bytes:
    return abi.RUNSTATE_INFO.pack(abi.RUNSTATE_RUNNING, call.hypervisor.system_time(), 0, 0, 0, 0)


def _get_runstate(call: Call, index: int, arg: int) -> int:
    call.write(arg, _state(call))
    return 0


def _register_runstate(call: Call, index: int, arg: int) -> int:
    (address,) = struct.unpack("<Q", call.read(arg, 8))
    if address:
        call.write(address, _state(call))
    return 0


def _register_time(call: Call, index: int, arg: int) -> int:
    """A second place for vcpu_time_info, for user programs to see. What it says holds for the life of the domain."""
    (address,) = struct.unpack("<Q", call.read(arg, 8))
    if address:
        info = call.domain.vcpus[index].info
        call.write(address, info[abi.VCPU_TIME : abi.VCPU_TIME + abi.VCPU_TIME_INFO.size])
    return 0


def _set_periodic(call: Call, index: int, arg: int) -> int:
    """VCPUOP_set_periodic_timer: EINVAL below a millisecond, as in Xen, and above what system time can count."""
    (period,) = struct.unpack("<Q", call.read(arg, 8))
    if not _SHORTEST_PERIOD_NS <= period <= _LONGEST_PERIOD_NS:
        raise XenError(Errno.EINVAL)
    call.domain.set_periodic_timer(index, period)
    return 0


def _stop_periodic(call: Call, index: int, _: int) -> int:
    call.domain.set_periodic_timer(index, None)
    return 0


def _send_nmi(call: Call, index: int, _: int) -> int:
    if call.domain.send_nmi is None:
        raise XenError(Errno.ENOSYS)
    call.domain.send_nmi(index)
    return 0


def _initialise(call: Call, index: int, arg: int) -> int:
    """VCPUOP_initialise: a PVH guest starts its processors by INIT and SIPI here."""
    call.read(arg, 8)
    raise XenError(Errno.EEXIST if index in call.domain.online else Errno.ENOSYS)


def _refuse(errno: Errno) -> Callable[[Call, int, int], int]:
    def op(call: Call, index: int, arg: int) -> int:
        raise XenError(errno)

    return op


_OPS: dict[int, Callable[[Call, int, int], int]] = {
    VcpuOp.INITIALISE: _initialise,
    VcpuOp.IS_UP: _is_up,
    VcpuOp.GET_RUNSTATE_INFO: _get_runstate,
    VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA: _register_runstate,
    VcpuOp.SET_PERIODIC_TIMER: _set_periodic,
    VcpuOp.STOP_PERIODIC_TIMER: _stop_periodic,
    VcpuOp.SET_SINGLESHOT_TIMER: _set_singleshot,
    VcpuOp.STOP_SINGLESHOT_TIMER: _stop_singleshot,
    VcpuOp.REGISTER_VCPU_INFO: _register_vcpu_info,
    VcpuOp.SEND_NMI: _send_nmi,
    VcpuOp.GET_PHYSID: _refuse(Errno.EINVAL),
    VcpuOp.REGISTER_VCPU_TIME_MEMORY_AREA: _register_time,
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
