"""Everything that the engine knows of the inside of one build of Unicorn, and nothing else knows.

Unicorn 2.1.4 (QEMU's TCG as a library) has no public way to deliver an exception, to see RDMSR, to raise an interrupt
or to stop between two instructions without harm. Its private fields and exported internal functions do; they stand
here by name. `selftest.py` proves each of them on a tiny guest at start-up; `library.py` finds the functions, and
refuses any other version.

Names follow QEMU 5.0 (`CPUState`, `CPUX86State`), from which that release of Unicorn was made.
"""

from __future__ import annotations

import ctypes as C

from bivisor.cpu.soft.library import VERSION, Library
from bivisor.errors import HostError

# struct uc_struct
UC_CPU = 440
UC_STOP_INTERRUPT = 0xE0
UC_INVALID_ERROR = 0x590
UC_NO_EXIT_REQUEST = 2034
UC_NESTED_LEVEL = 0x39F8
# CPUState
CPU_EXIT_REQUEST = 0x15
CPU_INTERRUPT_REQUEST = 0x1C
CPU_SINGLESTEP = 0x20
CPU_ENV = 296
CPU_ICOUNT_PTR = 304
CPU_HALTED = 0x8198
CPU_EXCEPTION_INDEX = 0x81A0
CPU_CLASS = 0x81B0
ENV_IN_CPU = 0x8A50
# CPUClass
CLASS_EXEC_INTERRUPT = 0x90
# CPUX86State
ENV_EIP = 128
ENV_EFLAGS = 136
ENV_CC_SRC = 0x98
ENV_CC_OP = 0xA8
ENV_DF = 0xAC
ENV_HFLAGS = 176
ENV_HFLAGS2 = 180
ENV_SEGS = 184
ENV_LDT = 184 + 6 * 24
ENV_TR = 184 + 7 * 24
ENV_GDT = 184 + 8 * 24
ENV_IDT = 184 + 9 * 24
ENV_CR = 424
ENV_EFER = 592
ENV_STAR = 4824
ENV_KERNEL_GS_BASE = 4864
ENV_ERROR_CODE = 5384
ENV_IS_INT = 5388
ENV_NEXT_EIP = 5392
ENV_DR = 0x1518
ENV_OLD_EXCEPTION = 5496
ENV_CONTEXT = 5504
ENV_TSC_OFFSET = 0x1588

# what cpu_exec returns, and what cpu->exception_index can ask for
EXCP_INTERRUPT = 0x10000
EXCP_HLT = 0x10001
EXCP_DEBUG = 0x10002
# cpu->interrupt_request
INTERRUPT_HARD = 0x2
INTERRUPT_NMI = 0x200
# env->hflags
HF_CPL = 3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_PE = 1 << 7
HF_MP_SHIFT = 9
HF_LMA = 1 << 14
HF_CS64 = 1 << 15
HF_OSFXSR = 1 << 22
HF_SMAP = 1 << 23
HF2_NMI_MASK = 1 << 2

WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})

OUT = C.CFUNCTYPE(None, C.c_uint32, C.c_uint32, C.c_uint32)
IN = C.CFUNCTYPE(C.c_uint64, C.c_uint32, C.c_uint32)
RDMSR = C.CFUNCTYPE(C.c_int, C.c_uint32)
WRMSR = C.CFUNCTYPE(C.c_int, C.c_uint32, C.c_uint64)
CPUID = C.CFUNCTYPE(None)
TRAP = C.CFUNCTYPE(C.c_int, C.c_uint32)
INTA = C.CFUNCTYPE(C.c_int)
BREAK = C.CFUNCTYPE(C.c_int, C.c_uint64)
SYSCALL = C.CFUNCTYPE(None)
READ_CR = C.CFUNCTYPE(C.c_uint64, C.c_uint32)
WRITE_CR = C.CFUNCTYPE(None, C.c_uint32, C.c_uint64)
READ_CR8 = C.CFUNCTYPE(C.c_uint64)
WRITE_CR8 = C.CFUNCTYPE(None, C.c_uint64)
MMIO_READ = C.CFUNCTYPE(C.c_uint64, C.c_uint64, C.c_uint32)
MMIO_WRITE = C.CFUNCTYPE(None, C.c_uint64, C.c_uint32, C.c_uint64)


class Context(C.Structure):
    """What thunks.S finds of one processor: its callbacks, and the state of an interrupt on its way."""

    _fields_ = (
        ("out", OUT),
        ("in_", IN),
        ("rdmsr", RDMSR),
        ("wrmsr", WRMSR),
        ("cpuid", CPUID),
        ("trap", TRAP),
        ("inta", INTA),
        ("read_cr8", READ_CR8),
        ("write_cr8", WRITE_CR8),
        ("mmio_read", MMIO_READ),
        ("mmio_write", MMIO_WRITE),
        ("trap_mask", C.c_uint32),
        ("more", C.c_uint32),
        ("inflight", C.c_int32),
        ("_pad", C.c_uint32),
        ("return_address", C.c_uint64),
        ("vectors", C.c_uint64 * 32),
        ("break_", BREAK),
        ("ram", C.c_uint64 * 6),
        ("code_map", C.c_void_p),
        ("code_pages", C.c_uint64),
        ("next_mmio", C.c_uint64),
        ("syscall", SYSCALL),
        ("read_cr", READ_CR),
        ("write_cr", WRITE_CR),
        ("page_fault_mask", C.c_uint32),
        ("page_fault_match", C.c_uint32),
        ("shortcut_number", C.c_uint64),
        ("shortcut_rip", C.c_uint64),
        ("fast_port", C.c_uint64),
        ("fast_at", C.c_uint64),
        ("fast_end", C.c_uint64),
        ("uc", C.c_uint64),
        ("native", C.c_uint64),
        ("native_state", C.c_uint64),
        ("code_bit", C.c_uint64),
        ("peers", C.c_uint64),
    )


class SegmentCache(C.Structure):
    """env->segs[i]: `flags` is the second word of the descriptor."""

    _fields_ = (
        ("selector", C.c_uint32),
        ("_pad", C.c_uint32),
        ("base", C.c_uint64),
        ("limit", C.c_uint32),
        ("flags", C.c_uint32),
    )


class Cpu:
    """The private face of one Unicorn processor: its fields as ctypes views that cost one attribute access.

    `uc` is the address of its `uc_struct`. Fields are live: to read or write one is to read or write the library's.
    """

    def __init__(self, library: Library, uc: int, context: Context) -> None:
        self.library = library
        self.uc = uc
        self.cpu = C.c_uint64.from_address(uc + UC_CPU).value
        self.env = C.c_uint64.from_address(self.cpu + CPU_ENV).value
        if self.env != self.cpu + ENV_IN_CPU:
            raise HostError(
                f"this build of Unicorn {VERSION} lays out its processor differently; "
                f"install the wheel from the package index: pip install --force-reinstall unicorn=={VERSION}"
            )
        u8, u16, u32, u64, i32 = C.c_uint8, C.c_int16, C.c_uint32, C.c_uint64, C.c_int32
        cpu, env = self.cpu, self.env
        self.regs = (u64 * 16).from_address(env)
        self.eip = u64.from_address(env + ENV_EIP)
        self.eflags = u64.from_address(env + ENV_EFLAGS)
        self.hflags = u32.from_address(env + ENV_HFLAGS)
        self.hflags2 = u32.from_address(env + ENV_HFLAGS2)
        self.segs = tuple(SegmentCache.from_address(env + ENV_SEGS + 24 * i) for i in range(6))
        self.ldt = SegmentCache.from_address(env + ENV_LDT)
        self.tr = SegmentCache.from_address(env + ENV_TR)
        self.gdt = SegmentCache.from_address(env + ENV_GDT)
        self.idt = SegmentCache.from_address(env + ENV_IDT)
        self.cr = (u64 * 5).from_address(env + ENV_CR)
        self.kernel_gs_base = u64.from_address(env + ENV_KERNEL_GS_BASE)
        self.efer = u64.from_address(env + ENV_EFER)
        self.dr = (u64 * 8).from_address(env + ENV_DR)
        self.error_code = u32.from_address(env + ENV_ERROR_CODE)
        self.is_int = u32.from_address(env + ENV_IS_INT)
        self.next_eip = u64.from_address(env + ENV_NEXT_EIP)
        self.old_exception = i32.from_address(env + ENV_OLD_EXCEPTION)
        self.tsc_offset = u64.from_address(env + ENV_TSC_OFFSET)
        self.interrupt_request = u32.from_address(cpu + CPU_INTERRUPT_REQUEST)
        self.exception_index = i32.from_address(cpu + CPU_EXCEPTION_INDEX)
        self.halted = u32.from_address(cpu + CPU_HALTED)
        self.exit_request = u8.from_address(cpu + CPU_EXIT_REQUEST)
        self.singlestep = u32.from_address(cpu + CPU_SINGLESTEP)
        self.invalid_error = u32.from_address(uc + UC_INVALID_ERROR)
        icount = C.c_uint64.from_address(cpu + CPU_ICOUNT_PTR).value
        self.icount_high = u16.from_address(icount + 2)
        context.inflight = -1
        context.uc = uc
        u64.from_address(env + ENV_CONTEXT).value = C.addressof(context)
        # Without these an asynchronous stop rewinds into a completed store, and #UD never reaches UC_HOOK_INTR.
        u8.from_address(uc + UC_NO_EXIT_REQUEST).value = 1
        u64.from_address(uc + UC_STOP_INTERRUPT).value = 0
        u32.from_address(uc + UC_NESTED_LEVEL).value = 1
        class_ = C.c_uint64.from_address(cpu + CPU_CLASS).value
        u64.from_address(class_ + CLASS_EXEC_INTERRUPT).value = library.entries["exec_interrupt"]
        self.old_exception.value = -1
        self.exception_index.value = -1

    def interrupt(self) -> None:
        """Make a running `cpu_exec` come back before its next block. Two plain stores: safe from any thread."""
        self.exit_request.value = 1
        self.icount_high.value = -1

    def detach(self) -> None:
        """The library's memory is about to go: a thread that is about to poke the processor finds another place."""
        self.exit_request = C.c_uint8()
        self.icount_high = C.c_int16()

    def look(self) -> None:
        """Make a running `cpu_exec` look at `interrupt_request` before its next block, without coming back."""
        self.icount_high.value = -1

    def raise_fault(self, vector: int, error_code: int = 0) -> None:
        """Raise a fault at the instruction whose callback is running; takes effect when that callback returns."""
        self.error_code.value = error_code
        self.is_int.value = 0
        self.exception_index.value = vector
        if vector in (10, 11, 12, 13):
            self.old_exception.value = vector

    def leave(self) -> None:
        """Rewind to the start of the instruction whose callback is running, and come back from `cpu_exec`."""
        self.exception_index.value = EXCP_INTERRUPT
