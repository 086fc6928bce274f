"""Hypercalls that have little or no meaning for a domain with paging of its own, with what Xen 4.17 answers to them."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import DOMID_SELF
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError

_PLATFORM_OP_VERSION = 0x0300_0001
_PLATFORM_OP_SIZE = 136


def platform_op(call: Call, arg: int, *_: int) -> int:
    """HYPERVISOR_platform_op(arg): the machine, which is the host kernel's. EFAULT, EACCES, EPERM; ENOSYS to Dom0."""
    _, version = struct.unpack("<II", call.read(arg, _PLATFORM_OP_SIZE)[:8])
    if version != _PLATFORM_OP_VERSION:
        raise XenError(Errno.EACCES)
    if not call.domain.privileged:
        raise XenError(Errno.EPERM)
    raise XenError(Errno.ENOSYS)


def vm_assist(call: Call, cmd: int, type_: int, *_: int) -> int:
    """HYPERVISOR_vm_assist(cmd, type). The only assistance is that a runstate says when it is being updated, and that
    is seen by other processors only, which have no runstate of their own to look at here."""
    if type_ & 0xFFFF_FFFF != abi.VMASST_TYPE_RUNSTATE_UPDATE_FLAG:
        raise XenError(Errno.EINVAL)
    if cmd & 0xFFFF_FFFF not in (abi.VMASST_CMD_ENABLE, abi.VMASST_CMD_DISABLE):
        raise XenError(Errno.ENOSYS)
    return 0


def mmuext_op(call: Call, uops: int, count: int, done: int, foreign: int, *_: int) -> int:
    """HYPERVISOR_mmuext_op(uops, count, done, foreigndom): of PV page tables. ESRCH for any other domain."""
    if foreign & 0xFFFF_FFFF != DOMID_SELF:
        raise XenError(Errno.ESRCH)
    if count & 0xFFFF_FFFF:
        raise XenError(Errno.EOPNOTSUPP)
    return 0


def hypfs_op(call: Call, *_: int) -> int:
    """HYPERVISOR_hypfs_op: the hypervisor's parameters as files. EPERM; to Dom0 there are none."""
    raise XenError(Errno.ENOSYS if call.domain.privileged else Errno.EPERM)


def refused(errno: Errno) -> Callable[..., int]:
    """A hypercall that nobody may make, or that does nothing here."""

    def op(call: Call, *_: int) -> int:
        raise XenError(errno)

    return op
