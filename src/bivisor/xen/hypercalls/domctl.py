"""domctl (domctl.h): the life of domains, by whoever has the privilege. Interface version 0x15, that of Xen 4.17.

What is wrong is told in Xen's order: the handle (EFAULT), the version (EACCES), the domain (ESRCH), the right (EPERM).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen import domctl as abi
from bivisor.abi.xen.domctl import Cdf, Domctl, Dominf
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import DOMID_FIRST_RESERVED
from bivisor.memory import PAGE
from bivisor.xen.call import Call
from bivisor.xen.config import DomainConfig
from bivisor.xen.domain import Domain, State
from bivisor.xen.errors import XenError

GPADDR_BITS = 40
_NO_REASON = 0xFFFF << abi.DOMINF_SHUTDOWN_SHIFT
INVALID_GFN = (1 << 64) - 1
_KB_PER_PAGE = PAGE // 1024


def domain_flags(domain: Domain) -> int:
    """The XEN_DOMINF_* of a domain. As in Xen, one that is paused may be blocked too."""
    flags = 0
    if domain.config.flags & Cdf.HVM:
        flags |= Dominf.HVM_GUEST
    if domain.config.flags & Cdf.HAP:
        flags |= Dominf.HAP
    if domain.config.flags & Cdf.XS_DOMAIN:
        flags |= Dominf.XS_DOMAIN
    if not domain.alive:
        flags |= Dominf.DYING
    if domain.pauses:
        flags |= Dominf.PAUSED
    if domain.shutdown_reason is not None:
        flags |= Dominf.SHUTDOWN | domain.shutdown_reason << abi.DOMINF_SHUTDOWN_SHIFT
    elif not domain.privileged and all(map(domain.waits, domain.online)):
        flags |= Dominf.BLOCKED
    elif domain.state is State.RUNNING:
        flags |= Dominf.RUNNING
    return int(flags)


def domain_info(domain: Domain) -> bytes:
    """`struct xen_domctl_getdomaininfo`."""
    return abi.GETDOMAININFO.pack(
        domain.domid,
        domain_flags(domain) | (_NO_REASON if domain.shutdown_reason is None else 0),
        domain.pages,
        domain.max_pages,
        0,
        0,
        0,
        INVALID_GFN if domain.shared_info_gfn is None else domain.shared_info_gfn,
        sum(domain.cpu_time(vcpu.index) for vcpu in domain.vcpus),
        len(domain.online),
        len(domain.vcpus) - 1,
        domain.config.ssidref,
        domain.handle,
        0,
        GPADDR_BITS,
        domain.config.emulation_flags,
        domain.config.misc_flags,
    )


def _create(call: Call, wanted: int, union: bytearray) -> int:
    """XEN_DOMCTL_createdomain: the new domain's id, which is `wanted` if that can be an id. EEXIST, EINVAL, ENOMEM."""
    xen = call.hypervisor
    domid = wanted if 0 < wanted < DOMID_FIRST_RESERVED else None
    if domid in xen.domains:
        raise XenError(Errno.EEXIST)
    config = DomainConfig.unpack(union, xen.max_grant_frames)
    made_of = xen.take_offer(config.handle)
    try:
        if config.max_vcpus != made_of.vcpus:
            raise XenError(Errno.EINVAL)
        domain = xen.create_domain(
            made_of.memory,
            upcall=made_of.upcall,
            vcpus=config.max_vcpus,
            max_pages=made_of.max_pages,
            config=config,
            domid=domid,
        )
    except XenError:
        xen.offer(config.handle, made_of)
        raise
    return domain.domid


def _not_self(call: Call, domain: Domain) -> None:
    if domain is call.domain:
        raise XenError(Errno.EINVAL)


def _destroy(call: Call, domain: Domain, _: bytearray) -> None:
    _not_self(call, domain)
    call.hypervisor.destroy(domain)


def _pause(call: Call, domain: Domain, _: bytearray) -> None:
    _not_self(call, domain)
    domain.pause()


def _unpause(call: Call, domain: Domain, _: bytearray) -> None:
    domain.unpause()


def _resume(call: Call, domain: Domain, _: bytearray) -> None:
    _not_self(call, domain)
    domain.resume()


def _info(call: Call, domain: Domain, union: bytearray) -> None:
    union[: abi.GETDOMAININFO.size] = domain_info(domain)


def _max_mem(call: Call, domain: Domain, union: bytearray) -> None:
    (kb,) = abi.MAX_MEM.unpack_from(union)
    domain.max_pages = kb // _KB_PER_PAGE


def _max_vcpus(call: Call, domain: Domain, union: bytearray) -> None:
    """They are there since the domain was created; what is asked for has to be what was said then."""
    if abi.MAX_VCPUS.unpack_from(union)[0] != domain.config.max_vcpus:
        raise XenError(Errno.EINVAL)
    _not_self(call, domain)


def _set_handle(call: Call, domain: Domain, union: bytearray) -> None:
    (domain.handle,) = abi.SETDOMAINHANDLE.unpack_from(union)


def _check_vcpu(domain: Domain, vcpu: int) -> int:
    """XenError(EINVAL) for a processor that the domain does not have."""
    if vcpu >= len(domain.vcpus):
        raise XenError(Errno.EINVAL)
    return vcpu


def _vcpu_info(call: Call, domain: Domain, union: bytearray) -> None:
    index = _check_vcpu(domain, abi.GETVCPUINFO.unpack_from(union)[0])
    online = index in domain.online
    blocked = domain.waits(index)
    running = online and domain.state is State.RUNNING and not blocked
    abi.GETVCPUINFO.pack_into(
        union, 0, index, online, blocked, running, domain.cpu_time(index), index % call.hypervisor.physical.cpus
    )


def _affinity(call: Call, domain: Domain, union: bytearray) -> None:
    """Every processor of a domain may run on every one of the host: its kernel decides."""
    vcpu, flags, hard, hard_bits, soft, soft_bits = abi.VCPUAFFINITY.unpack_from(union)
    _check_vcpu(domain, vcpu)
    if flags & ~(abi.AFFINITY_HARD | abi.AFFINITY_SOFT) or not flags:
        raise XenError(Errno.EINVAL)
    for wanted, address, bits in (
        (abi.AFFINITY_HARD, hard, hard_bits),
        (abi.AFFINITY_SOFT, soft, soft_bits),
    ):
        if flags & wanted:
            cpus = min(call.hypervisor.physical.cpus, bits)
            call.write(address, ((1 << cpus) - 1).to_bytes((bits + 7) // 8, "little"))


def _trigger(call: Call, domain: Domain, union: bytearray) -> None:
    """XEN_DOMCTL_sendtrigger: an NMI, or the power button, which a PVH domain has not (ENODEV)."""
    trigger, vcpu = abi.SENDTRIGGER.unpack_from(union)
    match trigger:
        case abi.Trigger.NMI:
            if vcpu >= len(domain.vcpus):
                raise XenError(Errno.ESRCH)
            if domain.send_nmi is None:
                raise XenError(Errno.ENOSYS)
            domain.send_nmi(vcpu)
        case abi.Trigger.POWER if domain.hvm is not None:
            domain.hvm.press_power_button()
        case abi.Trigger.POWER | abi.Trigger.SLEEP:
            raise XenError(Errno.ENODEV)
        case _:
            raise XenError(Errno.ENOSYS)


def _address_size(call: Call, domain: Domain, union: bytearray) -> None:
    if domain.is_hvm:  # it has whatever size it turns on
        raise XenError(Errno.EOPNOTSUPP)
    abi.ADDRESS_SIZE.pack_into(union, 0, 64)


_Op = Callable[[Call, Domain, bytearray], None]

_OPS: dict[int, tuple[_Op, bool]] = {
    Domctl.DESTROYDOMAIN: (_destroy, False),
    Domctl.PAUSEDOMAIN: (_pause, False),
    Domctl.UNPAUSEDOMAIN: (_unpause, False),
    Domctl.GETDOMAININFO: (_info, True),
    Domctl.MAX_MEM: (_max_mem, False),
    Domctl.GETVCPUINFO: (_vcpu_info, True),
    Domctl.MAX_VCPUS: (_max_vcpus, False),
    Domctl.SETDOMAINHANDLE: (_set_handle, False),
    Domctl.GETVCPUAFFINITY: (_affinity, False),
    Domctl.RESUMEDOMAIN: (_resume, False),
    Domctl.SENDTRIGGER: (_trigger, False),
    Domctl.SET_ADDRESS_SIZE: (_address_size, False),
    Domctl.GET_ADDRESS_SIZE: (_address_size, True),
}
"""Each operation on a domain, and whether it answers in the structure."""


_NEVER = {
    Domctl.IOPORT_PERMISSION: Errno.EINVAL,
    Domctl.BIND_PT_IRQ: Errno.EINVAL,
    Domctl.MEMORY_MAPPING: Errno.EINVAL,
    Domctl.IOPORT_MAPPING: Errno.EOPNOTSUPP,
    Domctl.SET_TARGET: Errno.EINVAL,
    Domctl.UNBIND_PT_IRQ: Errno.EINVAL,
    Domctl.GET_DEVICE_GROUP: Errno.EOPNOTSUPP,
}
"""Operations on devices of the machine, which domains here do not get. In Xen too their arguments come before the right
to ask, which is why a domain without privilege is not told EPERM."""


def _domain(call: Call, cmd: int, domid: int) -> Domain:
    """The domain that is asked about: for getdomaininfo the first with this id or a higher one. ESRCH."""
    xen = call.hypervisor
    if cmd != Domctl.GETDOMAININFO:
        return xen.find(domid)
    if domid >= DOMID_FIRST_RESERVED:
        raise XenError(Errno.EINVAL)
    found = min((other for other in xen.domains if other >= domid), default=None)
    if found is None:
        raise XenError(Errno.ESRCH)
    return xen.domains[found]


def domctl(call: Call, arg: int, *_: int) -> int:
    """HYPERVISOR_domctl(arg). XenError: EFAULT, EACCES, ESRCH, EPERM, ENOSYS, and what each operation says."""
    data = bytearray(call.read(arg, abi.SIZE))
    cmd, version, domid = abi.HEADER.unpack_from(data)
    if version != abi.INTERFACE_VERSION:
        raise XenError(Errno.EACCES)
    domain = _domain(call, cmd, domid) if cmd != Domctl.CREATEDOMAIN else None
    if cmd in _NEVER:
        raise XenError(_NEVER[cmd])
    if not call.domain.privileged:
        raise XenError(Errno.EPERM)
    union = data[abi.HEADER.size :]
    if domain is None:
        call.write(arg + 8, struct.pack("<H", _create(call, domid, union)))
        return 0
    op, answers = _OPS.get(cmd, (None, False))
    if op is None:
        raise XenError(Errno.ENOSYS)
    op(call, domain, union)
    if answers:
        call.write(arg + 8, struct.pack("<H", domain.domid))
        call.write(arg + abi.HEADER.size, union)
    return 0
