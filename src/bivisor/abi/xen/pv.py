"""What only PV domains have: xen.h, arch-x86/xen.h, arch-x86/xen-x86_64.h, callback.h, physdev.h, elfnote.h.

Structures are those of 64-bit guests, named as in the headers.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag


class ElfNote(IntEnum):
    """XEN_ELFNOTE_* (elfnote.h)."""

    ENTRY = 1
    HYPERCALL_PAGE = 2
    VIRT_BASE = 3
    PADDR_OFFSET = 4
    XEN_VERSION = 5
    GUEST_OS = 6
    GUEST_VERSION = 7
    LOADER = 8
    PAE_MODE = 9
    FEATURES = 10
    BSD_SYMTAB = 11
    HV_START_LOW = 12
    L1_MFN_VALID = 13
    SUSPEND_CANCEL = 14
    INIT_P2M = 15
    MOD_START_PFN = 16
    SUPPORTED_FEATURES = 17


FEATURE_NAMES = {
    "writable_page_tables": 0,
    "writable_descriptor_tables": 1,
    "auto_translated_physmap": 2,
    "supervisor_mode_kernel": 3,
    "pae_pgdir_above_4gb": 4,
    "mmu_pt_update_preserve_ad": 5,
    "highmem_assist": 6,
    "gnttab_map_avail_bits": 7,
    "hvm_callback_vector": 8,
    "hvm_safe_pvclock": 9,
    "hvm_pirqs": 10,
    "dom0": 11,
    "memory_op_vnode_supported": 13,
}
"""XENFEAT_* (features.h) by the names that XEN_ELFNOTE_FEATURES uses."""

HYPERVISOR_VIRT_START = 0xFFFF_8000_0000_0000
HYPERVISOR_SLOTS = range(256, 272)
"""The entries of a level-4 table that are the hypervisor's."""

START_INFO = struct.Struct("<32sQQI4xQI4xQI4x5Q1024s2Q")
"""magic, nr_pages, shared_info, flags, store_mfn, store_evtchn, console.domU.mfn, .evtchn, pt_base, nr_pt_frames,
mfn_list, mod_start, mod_len, cmd_line, first_p2m_pfn, nr_p2m_frames."""
START_MAGIC = b"xen-3.0-x86_64"
MAX_GUEST_CMDLINE = 1024
SIF_MOD_START_PFN, SIF_VIRT_P2M_4TOOLS = 1 << 3, 1 << 4

INVALID_M2P_ENTRY = (1 << 64) - 1

TRAP_INFO = struct.Struct("<BBH4xQ")  # vector, flags, cs, address
GUEST_CONTEXT = struct.Struct("<512xQ15Q8xQ8xQQ40x4096s2Q16QQ2Q8Q8Q7Q")
"""struct vcpu_guest_context: flags; r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, rip,
rflags, rsp; trap_ctxt, ldt_base, ldt_ents, gdt_frames, gdt_ents, kernel_ss, kernel_sp, ctrlreg, debugreg,
event_callback_eip, failsafe_callback_eip, syscall_callback_eip, vm_assist, fs_base, gs_base_kernel, gs_base_user."""
VGCF_I387_VALID, VGCF_IN_KERNEL, VGCF_SYSCALL_DISABLES_EVENTS = 1 << 0, 1 << 2, 1 << 4
GDT_PAGE_ENTRIES = 512
MAX_LDT_ENTRIES = 8192

TRAP_DPL, TRAP_MASKS_EVENTS = 3, 1 << 2

MMU_UPDATE = struct.Struct("<QQ")
MMU_NORMAL_PT_UPDATE, MMU_MACHPHYS_UPDATE, MMU_PT_UPDATE_PRESERVE_AD, MMU_PT_UPDATE_NO_TRANSLATE = range(4)
MMU_UPDATE_PREEMPTED = 1 << 31


class MmuExt(IntEnum):
    """MMUEXT_* (xen.h)."""

    PIN_L1_TABLE = 0
    PIN_L2_TABLE = 1
    PIN_L3_TABLE = 2
    PIN_L4_TABLE = 3
    UNPIN_TABLE = 4
    NEW_BASEPTR = 5
    TLB_FLUSH_LOCAL = 6
    INVLPG_LOCAL = 7
    TLB_FLUSH_MULTI = 8
    INVLPG_MULTI = 9
    TLB_FLUSH_ALL = 10
    INVLPG_ALL = 11
    FLUSH_CACHE = 12
    SET_LDT = 13
    NEW_USER_BASEPTR = 15
    CLEAR_PAGE = 16
    COPY_PAGE = 17
    FLUSH_CACHE_GLOBAL = 18
    MARK_SUPER = 19
    UNMARK_SUPER = 20


MMUEXT_OP = struct.Struct("<I4xQQ")  # cmd, arg1, arg2
UVMF_TLB_FLUSH, UVMF_INVLPG, UVMF_FLUSHTYPE_MASK = 1, 2, 3


class VmAssist(IntEnum):
    """VMASST_TYPE_* (xen.h)."""

    FOUR_GB_SEGMENTS = 0
    FOUR_GB_SEGMENTS_NOTIFY = 1
    WRITABLE_PAGETABLES = 2
    PAE_EXTENDED_CR3 = 3
    ARCHITECTURAL_IOPL = 4
    RUNSTATE_UPDATE_FLAG = 5
    M2P_STRICT = 32


VMASST_ENABLE, VMASST_DISABLE = range(2)


class SegmentBase(IntEnum):
    """SEGBASE_* (arch-x86/xen-x86_64.h)."""

    FS = 0
    GS_USER = 1
    GS_KERNEL = 2
    GS_USER_SEL = 3


class CallbackType(IntEnum):
    """CALLBACKTYPE_* (callback.h)."""

    EVENT = 0
    FAILSAFE = 1
    SYSCALL = 2
    NMI = 4
    SYSENTER = 5
    SYSCALL32 = 7


CALLBACKOP_REGISTER, CALLBACKOP_UNREGISTER = range(2)
CALLBACKF_MASK_EVENTS = 1
CALLBACK_REGISTER = struct.Struct("<HH4xQ")
CALLBACK_UNREGISTER = struct.Struct("<H")

PHYSDEVOP_SET_IOPL, PHYSDEVOP_SET_IOBITMAP = 6, 7

MACHPHYS_MAPPING = struct.Struct("<QQQ")  # v_start, v_end, max_mfn

FIRST_RESERVED_GDT_PAGE = 14
FIRST_RESERVED_GDT_ENTRY = FIRST_RESERVED_GDT_PAGE * 512


class Descriptor(IntFlag):
    """Bits of a segment descriptor (Intel SDM volume 3, 3.4.5)."""

    ACCESSED = 1 << 40
    S = 1 << 44
    DPL = 3 << 45
    P = 1 << 47


VCPU_CR2 = 16
"""Where vcpu_info has arch.cr2."""
