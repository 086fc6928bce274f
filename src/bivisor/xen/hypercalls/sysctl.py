"""sysctl (sysctl.h): the hypervisor as a whole, by whoever has the privilege. Interface version 0x15, Xen 4.17's."""

from __future__ import annotations

from collections.abc import Callable

from bivisor.abi.xen import domctl
from bivisor.abi.xen import sysctl as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.sysctl import Physcap, Sysctl
from bivisor.memory import PAGE
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError
from bivisor.xen.hypercalls.domctl import domain_info

_CAPABILITIES = Physcap.HVM | Physcap.HAP | Physcap.GNTTAB_V1 | Physcap.GNTTAB_V2


def _read_console(call: Call, union: bytearray) -> None:
    clear, incremental, index, buffer, room = abi.READCONSOLE.unpack_from(union)
    log = call.hypervisor.log
    data, end = log.read(room, index if incremental else None)
    call.write(buffer, data)
    if clear:
        log.clear(len(data))
    abi.READCONSOLE.pack_into(union, 0, clear, incremental, end, buffer, len(data))


def _physinfo(call: Call, union: bytearray) -> None:
    host = call.hypervisor.physical
    fields = (1, host.cpus, host.cpus, host.cpus - 1, 1, 0, host.khz(), _CAPABILITIES, 0)
    pages = (host.pages, call.hypervisor.free_pages, 0, 0, host.pages - 1)
    abi.PHYSINFO.pack_into(union, 0, *fields, *pages, *([0] * 8))


def _sched_id(call: Call, union: bytearray) -> None:
    abi.SCHED_ID.pack_into(union, 0, abi.SCHEDULER_NULL)  # a processor is a thread, which the host's kernel schedules


def _info_list(call: Call, union: bytearray) -> None:
    first, room, buffer, _ = abi.GETDOMAININFOLIST.unpack_from(union)
    domains = call.hypervisor.domains
    found = [domains[domid] for domid in sorted(domains) if domid >= first][:room]
    for number, domain in enumerate(found):
        call.write(buffer + number * domctl.GETDOMAININFO.size, domain_info(domain))
    abi.GETDOMAININFOLIST.pack_into(union, 0, first, room, buffer, len(found))


def _avail_heap(call: Call, union: bytearray) -> None:
    low, high, node, _ = abi.AVAILHEAP.unpack_from(union)
    abi.AVAILHEAP.pack_into(union, 0, low, high, node, call.hypervisor.free_pages * PAGE)


def _topology(call: Call, union: bytearray) -> None:
    """One socket of so many cores: what a process can know of the processors that it is given."""
    room, buffer = abi.CPUTOPOINFO.unpack_from(union)
    cpus = call.hypervisor.physical.cpus
    if buffer:
        cores = b"".join(abi.CPUTOPO.pack(cpu, 0, 0) for cpu in range(min(room, cpus)))
        call.write(buffer, cores)
        cpus = min(room, cpus) if room >= cpus else cpus
    abi.CPUTOPOINFO.pack_into(union, 0, cpus, buffer)


def _numa(call: Call, union: bytearray) -> None:
    room, meminfo, distance = abi.NUMAINFO.unpack_from(union)
    if room and meminfo:
        call.write(meminfo, abi.MEMINFO.pack(call.hypervisor.physical.pages * PAGE, call.hypervisor.free_pages * PAGE))
    if room and distance:
        call.write(distance, abi.NUMA_DISTANCE_SELF.to_bytes(4, "little"))
    abi.NUMAINFO.pack_into(union, 0, 1, meminfo, distance)


_OPS: dict[int, Callable[[Call, bytearray], None]] = {
    Sysctl.READCONSOLE: _read_console,
    Sysctl.PHYSINFO: _physinfo,
    Sysctl.SCHED_ID: _sched_id,
    Sysctl.GETDOMAININFOLIST: _info_list,
    Sysctl.AVAILHEAP: _avail_heap,
    Sysctl.CPUTOPOINFO: _topology,
    Sysctl.NUMAINFO: _numa,
}


def sysctl(call: Call, arg: int, *_: int) -> int:
    """HYPERVISOR_sysctl(arg). XenError: EFAULT, EACCES, EPERM, ENOSYS."""
    data = bytearray(call.read(arg, abi.SIZE))
    cmd, version = abi.HEADER.unpack_from(data)
    if version != abi.INTERFACE_VERSION:
        raise XenError(Errno.EACCES)
    if not call.domain.privileged:
        raise XenError(Errno.EPERM)
    op = _OPS.get(cmd)
    if op is None:
        raise XenError(Errno.ENOSYS)
    union = data[abi.HEADER.size :]
    op(call, union)
    call.write(arg + abi.HEADER.size, union)
    return 0
