"""hvm_op (hvm/hvm_op.h): parameters of a domain without PV page tables, and how events interrupt it."""

from __future__ import annotations

from collections.abc import Callable

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import HvmOp, HvmParam
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError

_TOOLSTACK_SETS = frozenset(
    {HvmParam.STORE_PFN, HvmParam.STORE_EVTCHN, HvmParam.CONSOLE_PFN, HvmParam.CONSOLE_EVTCHN, HvmParam.PAE_ENABLED}
)


def _set_param(call: Call, arg: int) -> int:
    domid, index, value = abi.HVM_PARAM.unpack(call.read(arg, abi.HVM_PARAM.size))
    domain = call.target(domid)
    if index in _TOOLSTACK_SETS and not call.domain.privileged:
        raise XenError(Errno.EPERM)
    if index == HvmParam.CALLBACK_IRQ:
        # By line or by PCI pin: taken, as Linux asks for line 1 before it registers vectors; nothing is wired to them.
        via = value >> 56
        by_vector = via == abi.CALLBACK_VIA_VECTOR
        if via > abi.CALLBACK_VIA_VECTOR or (by_vector and value & 0xFF < 0x10):
            raise XenError(Errno.EINVAL)
        for vcpu in domain.vcpus:
            vcpu.callback_vector = value & 0xFF if by_vector else 0
            if by_vector and vcpu.info[abi.VCPU_UPCALL_PENDING]:
                domain.upcall.event(vcpu.index)
    domain.params[index] = value
    return 0


def _get_param(call: Call, arg: int) -> int:
    domid, index, _ = abi.HVM_PARAM.unpack(call.read(arg, abi.HVM_PARAM.size))
    value = call.target(domid).params.get(index)
    if value is None:
        raise XenError(Errno.EINVAL)
    call.write(arg + 8, value.to_bytes(8, "little"))
    return 0


def _set_upcall_vector(call: Call, arg: int) -> int:
    index, vector = abi.EVTCHN_UPCALL_VECTOR.unpack(call.read(arg, abi.EVTCHN_UPCALL_VECTOR.size))
    if vector < 0x10:
        raise XenError(Errno.EINVAL)
    if index >= len(call.domain.vcpus):
        raise XenError(Errno.ENOENT)
    vcpu = call.domain.vcpus[index]
    vcpu.upcall_vector = vector
    if vcpu.info[abi.VCPU_UPCALL_PENDING]:
        call.domain.upcall.event(index)  # what became pending before there was a vector would never be told again
    return 0


_OPS: dict[int, Callable[[Call, int], int]] = {
    HvmOp.SET_PARAM: _set_param,
    HvmOp.GET_PARAM: _get_param,
    HvmOp.SET_EVTCHN_UPCALL_VECTOR: _set_upcall_vector,
}


def hvm_op(call: Call, cmd: int, arg: int, *_: int) -> int:
    """HYPERVISOR_hvm_op(cmd, arg)."""
    op = _OPS.get(cmd)
    if op is None:
        raise XenError(Errno.ENOSYS)
    return op(call, arg)
