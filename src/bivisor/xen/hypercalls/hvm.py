"""hvm_op (hvm/hvm_op.h): parameters of a domain without PV page tables, and how events interrupt it."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import HvmOp, HvmParam
from bivisor.xen.call import Call
from bivisor.xen.domain import Domain
from bivisor.xen.errors import XenError

_FIRST_VECTOR = 0x10
"""Vectors below belong to exceptions, and a guest that asks for one gets no upcalls."""

_KNOWN = frozenset(HvmParam) - {HvmParam.PAE_ENABLED} | {3, 7, 8, 29}
"""Parameters that Xen 4.17 has; those of earlier versions are -EINVAL."""

_GUEST_GETS = frozenset(
    {
        HvmParam.CALLBACK_IRQ,
        HvmParam.STORE_PFN,
        HvmParam.STORE_EVTCHN,
        HvmParam.CONSOLE_PFN,
        HvmParam.CONSOLE_EVTCHN,
        HvmParam.VM86_TSS,
        HvmParam.VM86_TSS_SIZED,
        HvmParam.ACPI_IOPORTS_LOCATION,
        HvmParam.VM_GENERATION_ID_ADDR,
        HvmParam.ALTP2M,
        HvmParam.X87_FIP_WIDTH,
    }
)
_GUEST_SETS = _GUEST_GETS - {HvmParam.STORE_PFN, HvmParam.CONSOLE_PFN, HvmParam.ALTP2M}


def _owner(call: Call, domid: int, index: int, allowed: frozenset[HvmParam]) -> Domain:
    """The domain whose parameter is asked about. ESRCH; EINVAL where it can have none; EPERM."""
    domain = call.hypervisor.find_any(call.domain, domid)
    if not domain.is_hvm:
        raise XenError(Errno.EINVAL)
    call.hypervisor.check_target(call.domain, domain)
    if index not in _KNOWN:
        raise XenError(Errno.EINVAL)
    if index not in allowed and not call.domain.privileged:
        raise XenError(Errno.EPERM)
    return domain


def _set_param(call: Call, arg: int) -> int:
    domid, index, value = abi.HVM_PARAM.unpack(call.read(arg, abi.HVM_PARAM.size))
    domain = _owner(call, domid, index, _GUEST_SETS)
    match index:
        case HvmParam.CALLBACK_IRQ:
            _set_callback(domain, value)
        case HvmParam.ACPI_IOPORTS_LOCATION:
            if domain.hvm is None:
                raise XenError(Errno.ENODEV)  # of the device of power management, which a PVH domain has not
            if value != 1:
                raise XenError(Errno.EINVAL)  # the registers are where today's firmware wants them
        case _:
            pass
    domain.params[index] = value
    return 0


def _set_callback(domain: Domain, value: int) -> None:
    if domain.hvm is not None:
        domain.hvm.set_callback(value)
    # By line or PCI pin to a PVH domain: taken, as Linux asks for line 1 before it registers vectors; it has no lines.
    vector = value & 0xFF if value >> 56 == abi.CALLBACK_VIA_VECTOR else 0
    for vcpu in domain.vcpus:
        vcpu.callback_vector = vector if vector >= _FIRST_VECTOR else 0
        if vcpu.callback_vector and vcpu.info[abi.VCPU_UPCALL_PENDING]:
            domain.upcall.event(vcpu.index)


def _get_param(call: Call, arg: int) -> int:
    domid, index, _ = abi.HVM_PARAM.unpack(call.read(arg, abi.HVM_PARAM.size))
    domain = _owner(call, domid, index, _GUEST_GETS)
    call.write(arg + 8, domain.params.get(index, 0).to_bytes(8, "little"))
    return 0


def _set_upcall_vector(call: Call, arg: int) -> int:
    index, vector = abi.EVTCHN_UPCALL_VECTOR.unpack(call.read(arg, abi.EVTCHN_UPCALL_VECTOR.size))
    if vector < _FIRST_VECTOR:
        raise XenError(Errno.EINVAL)
    if index >= len(call.domain.vcpus):
        raise XenError(Errno.ENOENT)
    vcpu = call.domain.vcpus[index]
    vcpu.upcall_vector = vector
    if vcpu.info[abi.VCPU_UPCALL_PENDING]:
        call.domain.upcall.event(index)  # what became pending before there was a vector would never be told again
    return 0


def _flush_tlbs(_: Call, arg: int) -> int:
    """Processors see a change of their page tables by themselves here."""
    if arg:
        raise XenError(Errno.EINVAL)
    return 0


def _get_time(call: Call, arg: int) -> int:
    call.write(arg, struct.pack("<Q", call.hypervisor.system_time()))
    return 0


def _xentrace(call: Call, arg: int) -> int:
    """There is no trace buffer, which a guest cannot tell from one that nobody reads."""
    call.read(arg, abi.HVM_XENTRACE.size)
    return 0


def _get_mem_type(call: Call, arg: int) -> int:
    domid, _, gfn = abi.GET_MEM_TYPE.unpack(call.read(arg, abi.GET_MEM_TYPE.size))
    domain = call.target(domid)
    if not domain.is_hvm:
        raise XenError(Errno.EINVAL)
    kind = abi.HVMMEM_RAM_RW if domain.has_frame(gfn) else abi.HVMMEM_MMIO_DM
    call.write(arg + 2, struct.pack("<H", kind))
    return 0


def _pagetable_dying(call: Call, arg: int) -> int:
    call.read(arg, 16)
    raise XenError(Errno.EOPNOTSUPP)  # a hint for shadow page tables


def _refuse(errno: Errno) -> Callable[[Call, int], int]:
    def op(call: Call, arg: int) -> int:
        raise XenError(errno)

    return op


_OPS: dict[int, Callable[[Call, int], int]] = {
    HvmOp.SET_PARAM: _set_param,
    HvmOp.GET_PARAM: _get_param,
    HvmOp.FLUSH_TLBS: _flush_tlbs,
    HvmOp.PAGETABLE_DYING: _pagetable_dying,
    HvmOp.GET_TIME: _get_time,
    HvmOp.XENTRACE: _xentrace,
    HvmOp.GET_MEM_TYPE: _get_mem_type,
    HvmOp.SET_EVTCHN_UPCALL_VECTOR: _set_upcall_vector,
    HvmOp.GUEST_REQUEST_VM_EVENT: _refuse(Errno.EINVAL),
    HvmOp.ALTP2M: _refuse(Errno.EOPNOTSUPP),
}


def hvm_op(call: Call, cmd: int, arg: int, *_: int) -> int:
    """HYPERVISOR_hvm_op(cmd, arg)."""
    op = _OPS.get(cmd)
    if op is None:
        raise XenError(Errno.ENOSYS)
    return op(call, arg)
