"""sched_op (sched.h): yield, block, shut down, poll."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import SCHED_POLL, SCHED_POLL_LIMIT, SchedOp, ShutdownReason
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError


def _shutdown(call: Call, arg: int) -> int:
    (reason,) = struct.unpack("<I", call.read(arg, 4))
    try:
        known = ShutdownReason(reason)
    except ValueError:
        raise XenError(Errno.EINVAL) from None
    call.hypervisor.shutdown(call.domain, known)
    return 0


def _poll(call: Call, arg: int) -> int:
    ports_at, count, timeout = SCHED_POLL.unpack(call.read(arg, SCHED_POLL.size))
    if count > SCHED_POLL_LIMIT:
        raise XenError(Errno.EINVAL)
    ports = struct.unpack(f"<{count}I", call.read(ports_at, 4 * count)) if count else ()
    if not call.domain.events.any_pending(ports):  # which refuses a port that the domain cannot have
        call.domain.block(call.vcpu, ports, timeout or None)
    return 0


def _block(call: Call, _: int) -> int:
    call.domain.block(call.vcpu, None, None)
    return 0


_OPS: dict[int, Callable[[Call, int], int]] = {
    SchedOp.YIELD: lambda _, __: 0,
    SchedOp.BLOCK: _block,
    SchedOp.SHUTDOWN: _shutdown,
    SchedOp.SHUTDOWN_CODE: lambda _, __: 0,
    SchedOp.POLL: _poll,
}


def sched_op(call: Call, cmd: int, arg: int, *_: int) -> int:
    """HYPERVISOR_sched_op(cmd, arg)."""
    op = _OPS.get(cmd)
    if op is None:
        raise XenError(Errno.ENOSYS)
    return op(call, arg)
