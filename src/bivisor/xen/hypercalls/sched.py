"""sched_op (sched.h): yield, block, shut down, poll."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import (
    SCHED_POLL,
    SCHED_POLL_LIMIT,
    SCHED_REMOTE_SHUTDOWN,
    SCHED_WATCHDOG,
    SchedOp,
    ShutdownReason,
)
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError


def _shutdown(call: Call, arg: int) -> int:
    (reason,) = struct.unpack("<I", call.read(arg, 4))
    call.hypervisor.shutdown(call.domain, _reason(reason))
    return 0


def _poll(call: Call, arg: int) -> int:
    ports_at, count, timeout = SCHED_POLL.unpack(call.read(arg, SCHED_POLL.size))
    if count > SCHED_POLL_LIMIT:
        raise XenError(Errno.EINVAL)
    ports = struct.unpack(f"<{count}I", call.read(ports_at, 4 * count)) if count else ()
    if not call.domain.events.any_pending(ports):  # which refuses a port that the domain cannot have
        call.domain.block(call.vcpu, ports, timeout or None)
    return 0


def _reason(value: int) -> ShutdownReason:
    """The lowest byte counts. A reason that nobody knows stops the domain all the same: it is taken for a crash."""
    try:
        return ShutdownReason(value & 0xFF)
    except ValueError:
        return ShutdownReason.CRASH


def _remote_shutdown(call: Call, arg: int) -> int:
    """Dom0 tells that a domain has shut down, for a device model for one. ESRCH, EPERM, also for oneself, as in Xen."""
    domid, reason = SCHED_REMOTE_SHUTDOWN.unpack(call.read(arg, SCHED_REMOTE_SHUTDOWN.size))
    domain = call.hypervisor.find(domid)
    if not call.domain.privileged or domain is call.domain:
        raise XenError(Errno.EPERM)
    call.hypervisor.shutdown(domain, _reason(reason))
    return 0


def _shutdown_code(call: Call, arg: int) -> int:
    """The reason that a later shutdown will have; nothing else tells it here than the shutdown itself."""
    call.read(arg, 4)
    return 0


def _watchdog(call: Call, arg: int) -> int:
    """Start a watchdog (id 0), set one again or stop it: the domain is shut down `timeout` seconds later."""
    number, timeout = SCHED_WATCHDOG.unpack(call.read(arg, SCHED_WATCHDOG.size))
    return call.hypervisor.set_watchdog(call.domain, number, timeout)


def _pin_override(call: Call, _: int) -> int:
    raise XenError(Errno.EPERM if not call.domain.privileged else Errno.ENOSYS)


def _block(call: Call, _: int) -> int:
    call.domain.block(call.vcpu, None, None)
    return 0


_OPS: dict[int, Callable[[Call, int], int]] = {
    SchedOp.YIELD: lambda _, __: 0,
    SchedOp.BLOCK: _block,
    SchedOp.SHUTDOWN: _shutdown,
    SchedOp.POLL: _poll,
    SchedOp.REMOTE_SHUTDOWN: _remote_shutdown,
    SchedOp.SHUTDOWN_CODE: _shutdown_code,
    SchedOp.WATCHDOG: _watchdog,
    SchedOp.PIN_OVERRIDE: _pin_override,
}


def sched_op(call: Call, cmd: int, arg: int, *_: int) -> int:
    """HYPERVISOR_sched_op(cmd, arg)."""
    op = _OPS.get(cmd)
    if op is None:
        raise XenError(Errno.ENOSYS)
    return op(call, arg)
