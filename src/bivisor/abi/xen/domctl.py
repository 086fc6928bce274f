"""xen/include/public/domctl.h: what the toolstack asks of a domain, in the version of the interface that Xen 4.17 has.

Structures are `struct.Struct` of the 64-bit ABI, named as in the header; a comment gives their fields in order.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

INTERFACE_VERSION = 0x15

HEADER = struct.Struct("<IIH6x")  # cmd, interface_version, domain
UNION_SIZE = 128
SIZE = HEADER.size + UNION_SIZE


class Domctl(IntEnum):
    """XEN_DOMCTL_*."""

    CREATEDOMAIN = 1
    DESTROYDOMAIN = 2
    PAUSEDOMAIN = 3
    UNPAUSEDOMAIN = 4
    GETDOMAININFO = 5
    SETVCPUAFFINITY = 9
    MAX_MEM = 11
    SETVCPUCONTEXT = 12
    GETVCPUCONTEXT = 13
    GETVCPUINFO = 14
    MAX_VCPUS = 15
    SCHEDULER_OP = 16
    SETDOMAINHANDLE = 17
    IOPORT_PERMISSION = 21
    HYPERCALL_INIT = 22
    GETVCPUAFFINITY = 25
    RESUMEDOMAIN = 27
    SENDTRIGGER = 28
    SET_ADDRESS_SIZE = 35
    GET_ADDRESS_SIZE = 36
    BIND_PT_IRQ = 38
    MEMORY_MAPPING = 39
    IOPORT_MAPPING = 40
    SET_TARGET = 46
    UNBIND_PT_IRQ = 48
    GET_DEVICE_GROUP = 50


class Cdf(IntFlag):
    """XEN_DOMCTL_CDF_*: what kind of domain is created."""

    HVM = 1 << 0
    HAP = 1 << 1
    S3_INTEGRITY = 1 << 2
    OOS_OFF = 1 << 3
    XS_DOMAIN = 1 << 4
    IOMMU = 1 << 5
    NESTED_VIRT = 1 << 6
    VPMU = 1 << 7


CDF_ALL = sum(Cdf)

# struct xen_domctl_createdomain: ssidref, handle, flags, iommu_opts, max_vcpus, max_evtchn_port, max_grant_frames,
# max_maptrack_frames, grant_opts, vmtrace_size, cpupool_id, emulation_flags, misc_flags
CREATEDOMAIN = struct.Struct("<I16sIIIIiiIIIII")
GRANT_VERSION_MASK = 0xF
X86_EMU_LAPIC = 1 << 0
"""The only device that the hypervisor emulates for a PVH domain."""
X86_EMU_HVM = 0x37F
"""XEN_X86_EMU_ALL without the devices that a guest with direct access to hardware has (vPCI)."""
MSR_RELAXED = 1 << 0


class Dominf(IntFlag):
    """XEN_DOMINF_*: flags of `struct xen_domctl_getdomaininfo`."""

    DYING = 1 << 0
    HVM_GUEST = 1 << 1
    SHUTDOWN = 1 << 2
    PAUSED = 1 << 3
    BLOCKED = 1 << 4
    RUNNING = 1 << 5
    DEBUGGED = 1 << 6
    XS_DOMAIN = 1 << 7
    HAP = 1 << 8


DOMINF_SHUTDOWN_SHIFT = 16
DOMINF_SHUTDOWN_MASK = 255

# struct xen_domctl_getdomaininfo: domain, flags, tot_pages, max_pages, outstanding_pages, shr_pages, paged_pages,
# shared_info_frame, cpu_time, nr_online_vcpus, max_vcpu_id, ssidref, handle, cpupool, gpaddr_bits, emulation_flags,
# misc_flags
GETDOMAININFO = struct.Struct("<H2xI7QIII16sIB7xII")

MAX_MEM = struct.Struct("<Q")  # max_memkb
VCPUCONTEXT = struct.Struct("<I4xQ")  # vcpu, ctxt
GETVCPUINFO = struct.Struct("<IBBBxQI4x")  # vcpu, online, blocked, running, cpu_time, cpu
MAX_VCPUS = struct.Struct("<I")
SETDOMAINHANDLE = struct.Struct("<16s")
ADDRESS_SIZE = struct.Struct("<I")
SENDTRIGGER = struct.Struct("<II")  # trigger, vcpu
VCPUAFFINITY = struct.Struct("<IIQI4xQI4x")  # vcpu, flags, cpumap_hard (bitmap, nr_bits), cpumap_soft (the same)
AFFINITY_HARD, AFFINITY_SOFT, AFFINITY_FORCE = 1, 2, 4


class Trigger(IntEnum):
    """XEN_DOMCTL_SENDTRIGGER_*."""

    NMI = 0
    RESET = 1
    INIT = 2
    POWER = 3
    SLEEP = 4
