"""xen/include/public/sysctl.h: what the toolstack asks of the hypervisor as a whole, as Xen 4.17 has it.

Structures are `struct.Struct` of the 64-bit ABI, named as in the header; a comment gives their fields in order.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

INTERFACE_VERSION = 0x15

HEADER = struct.Struct("<II")  # cmd, interface_version
UNION_SIZE = 128
SIZE = HEADER.size + UNION_SIZE


class Sysctl(IntEnum):
    """XEN_SYSCTL_*."""

    READCONSOLE = 1
    PHYSINFO = 3
    SCHED_ID = 4
    GETDOMAININFOLIST = 6
    DEBUG_KEYS = 7
    GETCPUINFO = 8
    AVAILHEAP = 9
    CPUTOPOINFO = 16
    NUMAINFO = 17


class Physcap(IntFlag):
    """XEN_SYSCTL_PHYSCAP_*."""

    HVM = 1 << 0
    PV = 1 << 1
    DIRECTIO = 1 << 2
    HAP = 1 << 3
    SHADOW = 1 << 4
    GNTTAB_V1 = 1 << 8
    GNTTAB_V2 = 1 << 9


READCONSOLE = struct.Struct("<BBxxIQI4x")  # clear, incremental, index, buffer, count
# threads_per_core, cores_per_socket, nr_cpus, max_cpu_id, nr_nodes, max_node_id, cpu_khz, capabilities,
# arch_capabilities, total_pages, free_pages, scrub_pages, outstanding_pages, max_mfn, hw_cap[8]
PHYSINFO = struct.Struct("<9I4x5Q8I")
SCHED_ID = struct.Struct("<I")
SCHEDULER_CREDIT, SCHEDULER_CREDIT2, SCHEDULER_NULL = 5, 6, 9
GETDOMAININFOLIST = struct.Struct("<H2xIQI4x")  # first_domain, max_domains, buffer, num_domains
GETCPUINFO = struct.Struct("<I4xQI4x")  # max_cpus, info, nr_cpus
CPUINFO = struct.Struct("<Q")  # idletime
AVAILHEAP = struct.Struct("<IIi4xQ")  # min_bitwidth, max_bitwidth, node, avail_bytes
CPUTOPOINFO = struct.Struct("<I4xQ")  # num_cpus, cputopo
CPUTOPO = struct.Struct("<III")  # core, socket, node
NUMAINFO = struct.Struct("<I4xQQ")  # num_nodes, meminfo, distance
MEMINFO = struct.Struct("<QQ")  # memsize, memfree
NUMA_DISTANCE_SELF = 10
