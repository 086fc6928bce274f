"""The user-space interface of Linux KVM on x86-64: request numbers, capabilities, structures.

linux/kvm.h and asm/kvm.h; what the calls mean is in Documentation/virt/kvm/api.rst. Names are the header's, less the
prefix `KVM_`. Structures are `struct.Struct` objects, little-endian and with the header's padding.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

KVM_API_VERSION = 12
DEVICE = "/dev/kvm"

# ── structures ──────────────────────────────────────────────────────────────────────────────────────────────────────

USERSPACE_MEMORY_REGION = Struct("<IIQQQ")  # slot, flags, guest_phys_addr, memory_size, userspace_addr
IRQ_LEVEL = Struct("<II")  # irq, level
IRQCHIP = Struct("<II512s")  # chip_id, pad, chip
PIT_CONFIG = Struct("<I60x")  # flags
REGS = Struct("<18Q")  # in the order of registers.Regs
SEGMENT = Struct("<QIH9Bx")  # base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable
DTABLE = Struct("<QH6x")  # base, limit
SREGS = Struct("<" + "QIH9Bx" * 8 + "QH6x" * 2 + "7Q" + "32x")  # 8 segments, gdt, idt, cr0 2 3 4 8, efer, apic_base
# The legacy region at the start of struct kvm_xsave, which is FXSAVE's (SDM 1 10.5.1): fcw, fsw, ftw, fop, fip, fdp,
# mxcsr, mxcsr_mask, 8 ST registers, 16 XMM registers
FXSAVE = Struct("<HHBxHQQII" + "16s" * 8 + "16s" * 16)
MSRS = Struct("<I4x")  # nmsrs, then MSR_ENTRY
MSR_ENTRY = Struct("<I4xQ")  # index, data
CPUID2 = Struct("<I4x")  # nent, then CPUID_ENTRY2
CPUID_ENTRY2 = Struct("<7I12x")  # function, index, flags, eax, ebx, ecx, edx
DIRTY_LOG = Struct("<I4xQ")  # slot, address of the bitmap
TRANSLATION = Struct("<QQBBB5x")  # linear_address; physical_address, valid, writeable, usermode
INTERRUPT = Struct("<I")  # irq
GUEST_DEBUG = Struct("<I4x8Q")  # control, debugreg
# exception: injected, nr, has_error_code, pending, error_code; interrupt: injected, nr, soft, shadow; nmi: injected,
# pending, masked; sipi_vector; flags; smi: 4 bytes; triple_fault pending; exception_has_payload; exception_payload
VCPU_EVENTS = Struct("<4BI4B3BxII4BB26xBQ")
MP_STATE = Struct("<I")
ENABLE_CAP = Struct("<II4Q64x")  # cap, flags, args
IOEVENTFD = Struct("<QQIiI36x")  # datamatch, addr, len, fd, flags
IRQFD = Struct("<IIII16x")  # fd, gsi, flags, resamplefd
MSI = Struct("<IIII4x12x")  # address_lo, address_hi, data, flags
MSR_FILTER = Struct("<I4x")  # flags, then MSR_FILTER_MAX_RANGES of MSR_FILTER_RANGE
MSR_FILTER_RANGE = Struct("<IIIxxxxQ")  # flags, nmsrs, base, address of the bitmap
XEN_HVM_CONFIG = Struct("<IIQQBB30x")  # flags, msr, blob_addr_32, blob_addr_64, blob_size_32, blob_size_64
STATS_HEADER = Struct("<6I")  # flags, name_size, num_desc, id_offset, desc_offset, data_offset
STATS_DESC = Struct("<IhHII")  # flags, exponent, size, offset, bucket_size; then the name

LAPIC_STATE_SIZE = 0x400
XSAVE_SIZE = 0x1000
XCRS_SIZE = 392
XCRS = Struct("<IIIIQ")  # nr_xcrs, flags; of the first: xcr, reserved, value
XSAVE_MXCSR_MASK = 28  # byte offsets in struct kvm_xsave (SDM 1 13.4)
XSAVE_XSTATE_BV = 512
XSTATE_X87_AND_SSE = 3
MSR_FILTER_MAX_RANGES = 16
MSR_FILTER_MAX_BITMAP_SIZE = 0x600
MAX_MSR_ENTRIES = 256
MAX_CPUID_ENTRIES = 256

# ── request numbers (include/uapi/asm-generic/ioctl.h: direction, size, type, number) ────────────────────────────────


def _io(nr: int) -> int:
    return 0xAE << 8 | nr


def _ior(nr: int, size: int) -> int:
    return 2 << 30 | size << 16 | 0xAE << 8 | nr


def _iow(nr: int, size: int) -> int:
    return 1 << 30 | size << 16 | 0xAE << 8 | nr


def _iowr(nr: int, size: int) -> int:
    return 3 << 30 | size << 16 | 0xAE << 8 | nr


class Ioctl(IntEnum):
    """Requests on the device, a VM and a vCPU."""

    GET_API_VERSION = _io(0x00)
    CREATE_VM = _io(0x01)
    CHECK_EXTENSION = _io(0x03)
    GET_VCPU_MMAP_SIZE = _io(0x04)
    GET_SUPPORTED_CPUID = _iowr(0x05, CPUID2.size)

    CREATE_VCPU = _io(0x41)
    GET_DIRTY_LOG = _iow(0x42, DIRTY_LOG.size)
    SET_USER_MEMORY_REGION = _iow(0x46, USERSPACE_MEMORY_REGION.size)
    SET_TSS_ADDR = _io(0x47)
    SET_IDENTITY_MAP_ADDR = _iow(0x48, 8)
    CREATE_IRQCHIP = _io(0x60)
    IRQ_LINE = _iow(0x61, IRQ_LEVEL.size)
    GET_IRQCHIP = _iowr(0x62, IRQCHIP.size)
    SET_IRQCHIP = _ior(0x63, IRQCHIP.size)
    IRQFD = _iow(0x76, IRQFD.size)
    CREATE_PIT2 = _iow(0x77, PIT_CONFIG.size)
    IOEVENTFD = _iow(0x79, IOEVENTFD.size)
    XEN_HVM_CONFIG = _iow(0x7A, XEN_HVM_CONFIG.size)
    SIGNAL_MSI = _iow(0xA5, MSI.size)
    ENABLE_CAP = _iow(0xA3, ENABLE_CAP.size)
    X86_SET_MSR_FILTER = _iow(0xC6, MSR_FILTER.size + MSR_FILTER_MAX_RANGES * MSR_FILTER_RANGE.size)
    GET_STATS_FD = _io(0xCE)

    RUN = _io(0x80)
    GET_REGS = _ior(0x81, REGS.size)
    SET_REGS = _iow(0x82, REGS.size)
    GET_SREGS = _ior(0x83, SREGS.size)
    SET_SREGS = _iow(0x84, SREGS.size)
    TRANSLATE = _iowr(0x85, TRANSLATION.size)
    INTERRUPT = _iow(0x86, INTERRUPT.size)
    GET_MSRS = _iowr(0x88, MSRS.size)
    SET_MSRS = _iow(0x89, MSRS.size)
    GET_LAPIC = _ior(0x8E, LAPIC_STATE_SIZE)
    SET_LAPIC = _iow(0x8F, LAPIC_STATE_SIZE)
    SET_CPUID2 = _iow(0x90, CPUID2.size)
    GET_CPUID2 = _iowr(0x91, CPUID2.size)
    GET_XSAVE = _ior(0xA4, XSAVE_SIZE)
    SET_XSAVE = _iow(0xA5, XSAVE_SIZE)
    SET_XCRS = _iow(0xA7, XCRS_SIZE)
    GET_MP_STATE = _ior(0x98, MP_STATE.size)
    SET_MP_STATE = _iow(0x99, MP_STATE.size)
    NMI = _io(0x9A)
    SET_GUEST_DEBUG = _iow(0x9B, GUEST_DEBUG.size)
    GET_VCPU_EVENTS = _ior(0x9F, VCPU_EVENTS.size)
    SET_VCPU_EVENTS = _iow(0xA0, VCPU_EVENTS.size)
    SET_TSC_KHZ = _io(0xA2)
    GET_TSC_KHZ = _io(0xA3)


class Cap(IntEnum):
    """Capabilities, as KVM_CHECK_EXTENSION knows them."""

    IRQCHIP = 0
    HLT = 1
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    USER_NMI = 22
    SET_GUEST_DEBUG = 23
    IRQ_ROUTING = 25
    IRQFD = 32
    PIT2 = 33
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    XEN_HVM = 38
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    DEBUGREGS = 50
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    TSC_DEADLINE_TIMER = 72
    SYNC_REGS = 74
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    IOEVENTFD_NO_LENGTH = 100
    SPLIT_IRQCHIP = 121
    X2APIC_API = 129
    IMMEDIATE_EXIT = 136
    NESTED_STATE = 157
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    DIRTY_LOG_RING = 192
    BINARY_STATS_FD = 203


class MemoryFlag(IntFlag):
    """`flags` of struct kvm_userspace_memory_region."""

    LOG_DIRTY_PAGES = 1 << 0
    READONLY = 1 << 1


class IoeventfdFlag(IntFlag):
    """`flags` of struct kvm_ioeventfd."""

    DATAMATCH = 1 << 0
    PIO = 1 << 1
    DEASSIGN = 1 << 2


IRQFD_FLAG_DEASSIGN = 1 << 0
PIT_SPEAKER_DUMMY = 1
CPUID_FLAG_SIGNIFCANT_INDEX = 1
MSR_FILTER_READ = 1 << 0
MSR_FILTER_WRITE = 1 << 1
MSR_FILTER_DEFAULT_ALLOW = 0
MSR_EXIT_REASON_INVAL = 1 << 0
MSR_EXIT_REASON_UNKNOWN = 1 << 1
MSR_EXIT_REASON_FILTER = 1 << 2
XEN_HVM_CONFIG_HYPERCALL_MSR = 1 << 0
XEN_HVM_CONFIG_INTERCEPT_HCALL = 1 << 1
STATS_TYPE_MASK = 0xF
SYNC_X86_REGS = 1 << 0
SYNC_X86_SREGS = 1 << 1
SYNC_X86_EVENTS = 1 << 2


class GuestDbg(IntFlag):
    """`control` of struct kvm_guest_debug."""

    ENABLE = 1 << 0
    SINGLESTEP = 1 << 1
    USE_SW_BP = 1 << 16
    USE_HW_BP = 1 << 17


class EventFlag(IntFlag):
    """`flags` of struct kvm_vcpu_events."""

    VALID_NMI_PENDING = 1 << 0
    VALID_SIPI_VECTOR = 1 << 1
    VALID_SHADOW = 1 << 2


SHADOW_INT_MOV_SS = 1
SHADOW_INT_STI = 2


class MpState(IntEnum):
    """struct kvm_mp_state."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4


class ExitReason(IntEnum):
    """`exit_reason` of struct kvm_run."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37
    MEMORY_FAULT = 39


class InternalSuberror(IntEnum):
    """`internal.suberror` of struct kvm_run."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0
EXIT_IO_IN = 0
EXIT_IO_OUT = 1
EXIT_XEN_HCALL = 1


class Run:
    """Byte offsets in struct kvm_run, which the vCPU's descriptor maps."""

    REQUEST_INTERRUPT_WINDOW = 0
    IMMEDIATE_EXIT = 1
    EXIT_REASON = 8
    READY_FOR_INTERRUPT_INJECTION = 12
    IF_FLAG = 13
    FLAGS = 14
    CR8 = 16
    APIC_BASE = 24
    EXIT = 32
    MMIO_DATA = 40
    MSR_ERROR = 32
    MSR_DATA = 48
    HYPERCALL_RET = 88
    XEN_RESULT = 56
    VALID_REGS = 288
    DIRTY_REGS = 296
    SYNC_REGS = 304
    SYNC_SREGS = 448
    SYNC_EVENTS = 760


# What stands at Run.EXIT for each reason.
EXIT_IO = Struct("<BBHIQ")  # direction, size, port, count, data_offset
EXIT_MMIO = Struct("<Q8xIB")  # phys_addr, len, is_write
EXIT_DEBUG = Struct("<I4xQQQ")  # exception, pc, dr6, dr7
EXIT_HYPERCALL = Struct("<Q6Q8xI")  # nr, args, longmode
EXIT_MSR = Struct("<8xIIQ")  # reason, index, data
EXIT_XEN = Struct("<I4xIIQ8x6Q")  # type, longmode, cpl, input, params
EXIT_FAIL_ENTRY = Struct("<QI")  # hardware_entry_failure_reason, cpu
EXIT_INTERNAL = Struct("<II16Q")  # suberror, ndata, data
EXIT_EMULATION = Struct("<IIQB15s")  # suberror, ndata, flags, insn_size, insn_bytes
EXIT_SYSTEM_EVENT = Struct("<II16Q")  # type, ndata, data
EXIT_UNKNOWN = Struct("<Q")  # hardware_exit_reason
