"""The table of hypercalls: number to function. It reads like the list in xen.h."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import MULTICALL_ENTRY, Hypercall
from bivisor.xen.call import Call, Preempted
from bivisor.xen.domain import State
from bivisor.xen.errors import XenError
from bivisor.xen.hypercalls.console import console_io
from bivisor.xen.hypercalls.dm import dm_op
from bivisor.xen.hypercalls.domctl import domctl
from bivisor.xen.hypercalls.event_channel import event_channel_op
from bivisor.xen.hypercalls.grant_table import grant_table_op
from bivisor.xen.hypercalls.hvm import hvm_op
from bivisor.xen.hypercalls.memory import memory_op
from bivisor.xen.hypercalls.others import hypfs_op, mmuext_op, platform_op, refused, vm_assist
from bivisor.xen.hypercalls.sched import sched_op
from bivisor.xen.hypercalls.sysctl import sysctl
from bivisor.xen.hypercalls.vcpu import set_timer_op, vcpu_op
from bivisor.xen.hypercalls.version import xen_version

_MULTICALL_BATCH = 16
"""Calls of a multicall between which other processors get the hypervisor's lock."""

_ENDED = (State.DYING, State.GONE)
_MASK = (1 << 64) - 1
_ARGUMENTS = struct.Struct("<6Q")


def _multicall(call: Call, list_: int, count: int, *_: int) -> int:
    """A list of hypercalls; each result is written back. A multicall inside a multicall is -EINVAL, as in Xen."""
    count &= 0xFFFF_FFFF
    size = MULTICALL_ENTRY.size
    for done in range(count):
        at = list_ + done * size
        if done == _MULTICALL_BATCH:
            raise Preempted(at, count - done)
        op, _, *arguments = MULTICALL_ENTRY.unpack(call.read(at, size))
        try:
            result = -Errno.EINVAL if op == Hypercall.MULTICALL else _step(call, op, arguments)
        except Preempted as more:
            call.write(at + 16, _ARGUMENTS.pack(*(*more.arguments, *arguments)[:6]))
            raise Preempted(at, count - done, pause=more.pause) from None
        call.write(at + 8, (result & _MASK).to_bytes(8, "little"))
    return 0


TABLE: dict[int, Callable[..., int]] = {
    Hypercall.PLATFORM_OP: platform_op,
    Hypercall.MEMORY_OP: memory_op,
    Hypercall.MULTICALL: _multicall,
    Hypercall.SET_TIMER_OP: set_timer_op,
    Hypercall.XEN_VERSION: xen_version,
    Hypercall.CONSOLE_IO: console_io,
    Hypercall.GRANT_TABLE_OP: grant_table_op,
    Hypercall.VM_ASSIST: vm_assist,
    Hypercall.VCPU_OP: vcpu_op,
    Hypercall.MMUEXT_OP: mmuext_op,
    Hypercall.SCHED_OP: sched_op,
    Hypercall.EVENT_CHANNEL_OP: event_channel_op,
    Hypercall.HVM_OP: hvm_op,
    Hypercall.SYSCTL: sysctl,
    Hypercall.DOMCTL: domctl,
    Hypercall.XENPMU_OP: refused(Errno.EOPNOTSUPP),
    Hypercall.DM_OP: dm_op,
    Hypercall.HYPFS_OP: hypfs_op,
    Hypercall.ARCH_1: refused(Errno.EOPNOTSUPP),
}


def _step(call: Call, nr: int, arguments: Sequence[int]) -> int:
    function = (TABLE if call.watched is None else call.watched).get(nr)
    if function is None:
        return -Errno.ENOSYS
    try:
        return function(call, *arguments)
    except XenError as error:
        return -error.errno


def hypercall(call: Call, nr: int, arguments: Sequence[int]) -> int:
    """Carry out hypercall `nr`: its result, or a negative error number. Unknown ones are -ENOSYS.

    It takes the hypervisor's lock, and lets go of it now and then in a long one. The caller should not hold it.
    """
    lock = call.hypervisor.lock
    while True:
        with lock:
            if call.domain.state in _ENDED:  # by another processor, or by Dom0
                return -Errno.EINTR
            try:
                return _step(call, nr, arguments)
            except Preempted as more:
                arguments, pause = more.arguments, more.pause
        time.sleep(pause)  # whoever waits for the lock is let in
        if not call.give_way():
            return -Errno.EINTR
