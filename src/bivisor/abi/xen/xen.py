"""xen/include/public/xen.h, version.h, sched.h, vcpu.h, memory.h, hvm/*.h, arch-x86: what hypercalls are made of.

Structures are `struct.Struct` of the 64-bit ABI, named as in the headers.
"""

from __future__ import annotations

import struct
from enum import IntEnum

PAGE_SHIFT = 12
DOMID_SELF = 0x7FF0
DOMID_IO = 0x7FF1
DOMID_XEN = 0x7FF2
DOMID_FIRST_RESERVED = 0x7FF0


class Hypercall(IntEnum):
    """__HYPERVISOR_* (xen.h)."""

    SET_TRAP_TABLE = 0
    MMU_UPDATE = 1
    SET_GDT = 2
    STACK_SWITCH = 3
    SET_CALLBACKS = 4
    FPU_TASKSWITCH = 5
    PLATFORM_OP = 7
    SET_DEBUGREG = 8
    GET_DEBUGREG = 9
    UPDATE_DESCRIPTOR = 10
    MEMORY_OP = 12
    MULTICALL = 13
    UPDATE_VA_MAPPING = 14
    SET_TIMER_OP = 15
    XEN_VERSION = 17
    CONSOLE_IO = 18
    GRANT_TABLE_OP = 20
    VM_ASSIST = 21
    UPDATE_VA_MAPPING_OTHERDOMAIN = 22
    IRET = 23
    VCPU_OP = 24
    SET_SEGMENT_BASE = 25
    MMUEXT_OP = 26
    XSM_OP = 27
    NMI_OP = 28
    SCHED_OP = 29
    CALLBACK_OP = 30
    EVENT_CHANNEL_OP = 32
    PHYSDEV_OP = 33
    HVM_OP = 34
    SYSCTL = 35
    DOMCTL = 36
    KEXEC_OP = 37
    ARGO_OP = 39
    XENPMU_OP = 40
    DM_OP = 41
    HYPFS_OP = 42
    ARCH_1 = 49


class Virq(IntEnum):
    """VIRQ_* (xen.h)."""

    TIMER = 0
    DEBUG = 1
    CONSOLE = 2
    DOM_EXC = 3
    TBUF = 4
    DEBUGGER = 6
    XENOPROF = 7
    CON_RING = 8
    PCPU_STATE = 9
    MEM_EVENT = 10
    ARGO = 11
    ENOMEM = 12
    XENPMU = 13


NR_VIRQS = 24
PER_VCPU_VIRQS = frozenset({Virq.TIMER, Virq.DEBUG, Virq.XENOPROF, Virq.XENPMU})

# struct shared_info (xen.h, arch-x86/xen.h)
SHARED_VCPU_INFO_SIZE = 64
SHARED_VCPUS = 32
SHARED_EVTCHN_PENDING = 2048
SHARED_EVTCHN_MASK = 2560
SHARED_WC_VERSION = 3072
WALL_CLOCK = struct.Struct("<III")
SHARED_WC_SEC_HI = 3084
# struct vcpu_info
VCPU_UPCALL_PENDING = 0
VCPU_UPCALL_MASK = 1
VCPU_PENDING_SEL = 8
VCPU_TIME = 32
VCPU_TIME_INFO = struct.Struct("<IIQQIbB2x")

XEN_VERSION = 4 << 16 | 17
EXTRAVERSION = b".7\0"


class VersionOp(IntEnum):
    """XENVER_* (version.h)."""

    VERSION = 0
    EXTRAVERSION = 1
    COMPILE_INFO = 2
    CAPABILITIES = 3
    CHANGESET = 4
    PLATFORM_PARAMETERS = 5
    GET_FEATURES = 6
    PAGESIZE = 7
    GUEST_HANDLE = 8
    COMMANDLINE = 9
    BUILD_ID = 10


class Feature(IntEnum):
    """XENFEAT_* (features.h): bit numbers of submap 0."""

    WRITABLE_PAGE_TABLES = 0
    WRITABLE_DESCRIPTOR_TABLES = 1
    AUTO_TRANSLATED_PHYSMAP = 2
    SUPERVISOR_MODE_KERNEL = 3
    PAE_PGDIR_ABOVE_4GB = 4
    MMU_PT_UPDATE_PRESERVE_AD = 5
    HIGHMEM_ASSIST = 6
    GNTTAB_MAP_AVAIL_BITS = 7
    HVM_CALLBACK_VECTOR = 8
    HVM_SAFE_PVCLOCK = 9
    HVM_PIRQS = 10
    DOM0 = 11
    MEMORY_OP_VNODE_SUPPORTED = 13
    ARM_SMCCC_SUPPORTED = 14
    LINUX_RSDP_UNRESTRICTED = 15
    NOT_DIRECT_MAPPED = 16
    DIRECT_MAPPED = 17


class SchedOp(IntEnum):
    """SCHEDOP_* (sched.h)."""

    YIELD = 0
    BLOCK = 1
    SHUTDOWN = 2
    POLL = 3
    REMOTE_SHUTDOWN = 4
    SHUTDOWN_CODE = 5
    WATCHDOG = 6
    PIN_OVERRIDE = 7


class ShutdownReason(IntEnum):
    """SHUTDOWN_* (sched.h)."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


SCHED_POLL = struct.Struct("<QI4xQ")  # ports, nr_ports, timeout
SCHED_POLL_LIMIT = 128
SCHED_REMOTE_SHUTDOWN = struct.Struct("<H2xI")  # domain_id, reason
SCHED_WATCHDOG = struct.Struct("<II")  # id, timeout in seconds


class VcpuOp(IntEnum):
    """VCPUOP_* (vcpu.h)."""

    INITIALISE = 0
    UP = 1
    DOWN = 2
    IS_UP = 3
    GET_RUNSTATE_INFO = 4
    REGISTER_RUNSTATE_MEMORY_AREA = 5
    SET_PERIODIC_TIMER = 6
    STOP_PERIODIC_TIMER = 7
    SET_SINGLESHOT_TIMER = 8
    STOP_SINGLESHOT_TIMER = 9
    REGISTER_VCPU_INFO = 10
    SEND_NMI = 11
    GET_PHYSID = 12
    REGISTER_VCPU_TIME_MEMORY_AREA = 13


RUNSTATE_INFO = struct.Struct("<i4xQ4Q")  # state, state_entry_time, time[4]
RUNSTATE_RUNNING, RUNSTATE_RUNNABLE, RUNSTATE_BLOCKED, RUNSTATE_OFFLINE = range(4)
SINGLESHOT_TIMER = struct.Struct("<QI")
SINGLESHOT_FUTURE = 1
REGISTER_VCPU_INFO = struct.Struct("<QI")


class MemoryOp(IntEnum):
    """XENMEM_* (memory.h)."""

    INCREASE_RESERVATION = 0
    DECREASE_RESERVATION = 1
    MAXIMUM_RAM_PAGE = 2
    CURRENT_RESERVATION = 3
    MAXIMUM_RESERVATION = 4
    MACHPHYS_MFN_LIST = 5
    POPULATE_PHYSMAP = 6
    ADD_TO_PHYSMAP = 7
    MEMORY_MAP = 9
    MACHINE_MEMORY_MAP = 10
    EXCHANGE = 11
    MACHPHYS_MAPPING = 12
    SET_MEMORY_MAP = 13
    MAXIMUM_GPFN = 14
    REMOVE_FROM_PHYSMAP = 15
    SET_POD_TARGET = 16
    GET_POD_TARGET = 17
    GET_SHARING_FREED_PAGES = 18
    GET_SHARING_SHARED_PAGES = 19
    ACCESS_OP = 21
    ADD_TO_PHYSMAP_BATCH = 23
    CLAIM_PAGES = 24
    MACHPHYS_COMPAT_MFN_LIST = 25
    GET_VNUMAINFO = 26
    RESERVED_DEVICE_MEMORY_MAP = 27
    ACQUIRE_RESOURCE = 28


MEMOP_CMD_MASK = 0x3F
MEMOP_EXTENT_SHIFT = 6
MEMORY_RESERVATION = struct.Struct("<QQIIH6x")  # extent_start, nr_extents, extent_order, mem_flags, domid
ADD_TO_PHYSMAP = struct.Struct("<HHI QQ".replace(" ", ""))  # domid, size, space, idx, gpfn
ADD_TO_PHYSMAP_BATCH = struct.Struct("<HHHHQQQ")  # domid, space, size, extra, idxs, gpfns, errs
REMOVE_FROM_PHYSMAP = struct.Struct("<H6xQ")  # domid, gpfn
MEMORY_MAP = struct.Struct("<I4xQ")  # nr_entries, buffer
FOREIGN_MEMORY_MAP = struct.Struct("<H6xI4xQ")  # domid, nr_entries, buffer
MEMORY_EXCHANGE = struct.Struct("<QQIIH6xQQIIH6xQ")  # in and out (memory_reservation each), nr_exchanged
ACQUIRE_RESOURCE = struct.Struct("<HHIIIQQ")  # domid, type, id, nr_frames, pad, frame, frame_list
RESOURCE_IOREQ_SERVER, RESOURCE_GRANT_TABLE, RESOURCE_VMTRACE_BUF = range(3)
RESOURCE_GRANT_TABLE_SHARED, RESOURCE_GRANT_TABLE_STATUS = range(2)
E820_ENTRY = struct.Struct("<QQI")
MAPSPACE_SHARED_INFO, MAPSPACE_GRANT_TABLE, MAPSPACE_GMFN, MAPSPACE_GMFN_RANGE = range(4)
MAPSPACE_GMFN_FOREIGN, MAPSPACE_DEV_MMIO = 4, 5
MAPIDX_GRANT_TABLE_STATUS = 1 << 31


class HvmOp(IntEnum):
    """HVMOP_* (hvm/hvm_op.h)."""

    SET_PARAM = 0
    GET_PARAM = 1
    FLUSH_TLBS = 5
    PAGETABLE_DYING = 9
    GET_TIME = 10
    XENTRACE = 11
    GET_MEM_TYPE = 15
    SET_EVTCHN_UPCALL_VECTOR = 23
    GUEST_REQUEST_VM_EVENT = 24
    ALTP2M = 25


HVM_PARAM = struct.Struct("<H2xIQ")
EVTCHN_UPCALL_VECTOR = struct.Struct("<IB")
GET_MEM_TYPE = struct.Struct("<HH4xQ")  # domid, mem_type, pfn
HVMMEM_RAM_RW, HVMMEM_RAM_RO, HVMMEM_MMIO_DM = range(3)
HVM_XENTRACE = struct.Struct("<HH60s")  # event, extra_bytes, extra


class HvmParam(IntEnum):
    """HVM_PARAM_* (hvm/params.h)."""

    CALLBACK_IRQ = 0
    STORE_PFN = 1
    STORE_EVTCHN = 2
    PAE_ENABLED = 4
    IOREQ_PFN = 5
    BUFIOREQ_PFN = 6
    VIRIDIAN = 9
    TIMER_MODE = 10
    HPET_ENABLED = 11
    IDENT_PT = 12
    ACPI_S_STATE = 14
    VM86_TSS = 15
    VPT_ALIGN = 16
    CONSOLE_PFN = 17
    CONSOLE_EVTCHN = 18
    ACPI_IOPORTS_LOCATION = 19
    PAGING_RING_PFN = 27
    MONITOR_RING_PFN = 28
    SHARING_RING_PFN = 29
    TRIPLE_FAULT_REASON = 31
    IOREQ_SERVER_PFN = 32
    NR_IOREQ_SERVER_PAGES = 33
    VM_GENERATION_ID_ADDR = 34
    ALTP2M = 35
    X87_FIP_WIDTH = 36
    VM86_TSS_SIZED = 37
    MCA_CAP = 38


CALLBACK_VIA_GSI, CALLBACK_VIA_PCI_INTX, CALLBACK_VIA_VECTOR = range(3)

VMASST_CMD_ENABLE, VMASST_CMD_DISABLE = range(2)
VMASST_TYPE_RUNSTATE_UPDATE_FLAG = 5

CONSOLEIO_WRITE, CONSOLEIO_READ = range(2)

MULTICALL_ENTRY = struct.Struct("<QQ6Q")  # op, result, args

HYPERCALL_PAGE_MSR = 0x4000_0000
CPUID_BASE = 0x4000_0000
