"""The table of hypercalls: number to function. It reads like the list in xen.h."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import MULTICALL_ENTRY, Hypercall
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError
from bivisor.xen.hypercalls.console import console_io
from bivisor.xen.hypercalls.domctl import domctl
from bivisor.xen.hypercalls.event_channel import event_channel_op
from bivisor.xen.hypercalls.grant_table import grant_table_op
from bivisor.xen.hypercalls.hvm import hvm_op
from bivisor.xen.hypercalls.memory import memory_op
from bivisor.xen.hypercalls.sched import sched_op
from bivisor.xen.hypercalls.sysctl import sysctl
from bivisor.xen.hypercalls.vcpu import set_timer_op, vcpu_op
from bivisor.xen.hypercalls.version import xen_version

MULTICALL_LIMIT = 4096
_MASK = (1 << 64) - 1


def _multicall(call: Call, list_: int, count: int, *_: int) -> int:
    """A list of hypercalls; each result is written back. A multicall inside a multicall is -EINVAL, as in Xen."""
    if count > MULTICALL_LIMIT:
        raise XenError(Errno.EINVAL)
    size = MULTICALL_ENTRY.size
    for at in range(list_, list_ + size * count, size):
        op, _, *arguments = MULTICALL_ENTRY.unpack(call.read(at, size))
        result = -Errno.EINVAL if op == Hypercall.MULTICALL else hypercall(call, op, arguments)
        call.write(at + 8, (result & _MASK).to_bytes(8, "little"))
    return 0


TABLE: dict[int, Callable[..., int]] = {
    Hypercall.MEMORY_OP: memory_op,
    Hypercall.MULTICALL: _multicall,
    Hypercall.SET_TIMER_OP: set_timer_op,
    Hypercall.XEN_VERSION: xen_version,
    Hypercall.CONSOLE_IO: console_io,
    Hypercall.GRANT_TABLE_OP: grant_table_op,
    Hypercall.VCPU_OP: vcpu_op,
    Hypercall.SCHED_OP: sched_op,
    Hypercall.EVENT_CHANNEL_OP: event_channel_op,
    Hypercall.HVM_OP: hvm_op,
    Hypercall.SYSCTL: sysctl,
    Hypercall.DOMCTL: domctl,
}


def hypercall(call: Call, nr: int, arguments: Sequence[int]) -> int:
    """Carry out hypercall `nr`: its result, or a negative error number. Unknown ones are -ENOSYS."""
    function = TABLE.get(nr)
    if function is None:
        return -Errno.ENOSYS
    try:
        return function(call, *arguments)
    except XenError as error:
        return -error.errno
