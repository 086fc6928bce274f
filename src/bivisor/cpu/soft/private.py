"""Everything that the engine knows of the inside of one build of Unicorn, and nothing else knows.

Unicorn 2.1.4 (QEMU's TCG as a library) has no public way to deliver an exception, to see RDMSR, to raise an interrupt
or to stop between two instructions without harm. Its private fields and exported internal functions do; they stand
here by name. `selftest.py` proves each of them on a tiny guest at start-up; any other version is refused by `load()`.

Names follow QEMU 5.0 (`CPUState`, `CPUX86State`), from which that release of Unicorn was made.
"""

from __future__ import annotations

import ctypes as C
import mmap
import struct
from typing import Any

from bivisor.cpu.soft.thunks import CODE
from bivisor.errors import HostError

VERSION = "2.1.4"

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

_LIBRARY_SLOTS = (
    "cpu_loop_exit_restore_x86_64",
    "cpu_loop_exit_x86_64",
    "x86_cpu_do_interrupt_x86_64",
    "do_interrupt_x86_hardirq_x86_64",
    "x86_cpu_exec_interrupt_x86_64",
    "raise_exception_err_ra_x86_64",
    "cpu_cc_compute_all_x86_64",
    "qemu_map_ram_ptr_x86_64",
    "tlb_reset_dirty_x86_64",
    "tb_invalidate_phys_range_x86_64",
    "cpu_x86_update_cr3_x86_64",
)
_HELPERS = (
    "helper_outb_x86_64",
    "helper_outw_x86_64",
    "helper_outl_x86_64",
    "helper_inb_x86_64",
    "helper_inw_x86_64",
    "helper_inl_x86_64",
    "helper_rdmsr_x86_64",
    "helper_wrmsr_x86_64",
    "helper_cpuid_x86_64",
    "helper_syscall_x86_64",
    "helper_read_crN_x86_64",
    "helper_write_crN_x86_64",
    "find_memory_mapping_x86_64",
    "tlb_protect_code_x86_64",
    "tlb_reset_dirty_by_vaddr_x86_64",
    "tb_invalidate_phys_page_fast_x86_64",
    "cpu_abort_x86_64",
    "helper_check_exit_request_x86_64",
)
_ENTRIES = (*_HELPERS, "exception", "exec_interrupt", "mmio_read", "mmio_write", "rdtsc", "stored", "code", "fetch")
_PAGE = 2 * mmap.PAGESIZE
_ENTRY_TABLE = 8 * (len(_LIBRARY_SLOTS) + len(_HELPERS))

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


class Library:
    """The loaded library with its helper table pointing at our thunks. One for the process: see `load()`."""

    def __init__(self) -> None:
        self.proved = False  # by selftest.py
        self.binding = binding = _binding()
        self.lib: Any = binding.uclib
        self._native: dict[bytes, C.c_char] = {}
        self._page = mmap.mmap(-1, _PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._page[: len(CODE)] = CODE
        anchor = C.c_char.from_buffer(self._page)
        base = C.addressof(anchor)
        offsets = struct.unpack_from(f"<{len(_ENTRIES)}I", CODE, _ENTRY_TABLE)
        self.entries = {name: base + offset for name, offset in zip(_ENTRIES, offsets, strict=True)}
        names = (*_LIBRARY_SLOTS, *_HELPERS)
        addresses = [self.address(name) for name in names]
        struct.pack_into(f"<{len(names)}Q", self._page, 0, *addresses)
        self._libc = C.CDLL(None, use_errno=True)
        self._protect(base, _PAGE, mmap.PROT_READ | mmap.PROT_EXEC)
        self._anchor = anchor
        self._patch_helpers()
        self.exec_ = self._function("cpu_exec_x86_64", C.c_int, C.c_void_p, C.c_void_p)
        self.restore_state = self._function("cpu_restore_state_x86_64", C.c_int, C.c_void_p, C.c_uint64, C.c_int)
        self.cc_compute_all = self._function("cpu_cc_compute_all_x86_64", C.c_uint32, C.c_void_p, C.c_int)
        self.rdtsc = C.CFUNCTYPE(C.c_uint64)(self.entries["rdtsc"])
        self.tlb_flush = self._function("tlb_flush_x86_64", None, C.c_void_p)
        self.tlb_flush_page = self._function("tlb_flush_page_x86_64", None, C.c_void_p, C.c_uint64)
        self.update_cr3 = self._function("cpu_x86_update_cr3_x86_64", None, C.c_void_p, C.c_uint64)
        self.tb_flush = self._function("tb_flush_x86_64", None, C.c_void_p)
        self.invalidate = self._function("tb_invalidate_phys_range_x86_64", None, C.c_void_p, C.c_uint64, C.c_uint64)
        self.find_mapping = self._function("find_memory_mapping_x86_64", C.c_void_p, C.c_void_p, C.c_uint64)
        self.ram_address = self._function("memory_region_get_ram_addr_x86_64", C.c_uint64, C.c_void_p)
        self.set_a20 = self._function("x86_cpu_set_a20_x86_64", None, C.c_void_p, C.c_int)
        self.update_dr7 = self._function("cpu_x86_update_dr7_x86_64", None, C.c_void_p, C.c_uint32)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        prototype = C.CFUNCTYPE(result, *arguments)
        return prototype(self.address(name))

    def address(self, name: str) -> int:
        """Where the library has the function `name`. HostError if this build does not export it."""
        try:
            return C.cast(getattr(self.lib, name), C.c_void_p).value or 0
        except AttributeError:
            raise HostError(
                f"this build of Unicorn {VERSION} lacks {name}; install the wheel: pip install unicorn=={VERSION}"
            ) from None

    def _protect(self, address: int, length: int, protection: int) -> None:
        start = address & ~(mmap.PAGESIZE - 1)
        end = -(-(address + length) // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._libc.mprotect(C.c_void_p(start), C.c_size_t(end - start), protection):
            raise HostError("this host does not let a process make memory executable; the engine `soft` needs that")

    def executable(self, code: bytes) -> int:
        """The address of `code`, which is put into executable memory once for the process."""
        if code not in self._native:
            page = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE)
            page[:] = code
            anchor = C.c_char.from_buffer(page)
            self._protect(C.addressof(anchor), len(code), mmap.PROT_READ | mmap.PROT_EXEC)
            self._native[code] = anchor
        return C.addressof(self._native[code])

    def _patch_helpers(self) -> None:
        """Point the table of helpers at the thunks. Processors that are not ours fall through to the originals."""
        patterns = {struct.pack("<Q", self.address(name)): name for name in _HELPERS}
        found = dict.fromkeys(_HELPERS, 0)
        for start, end in _relocated():
            raw = (C.c_char * (end - start)).from_address(start).raw
            for pattern, name in patterns.items():
                part = pattern[:6]  # twice as fast to find as one that ends with zeroes
                at = raw.find(part)
                while at >= 0:
                    if at % 8 == 0 and raw.startswith(pattern, at):
                        self._protect(start + at, 8, mmap.PROT_READ | mmap.PROT_WRITE)
                        C.c_uint64.from_address(start + at).value = self.entries[name]
                        found[name] += 1
                    at = raw.find(part, at + 1)
        missing = [name for name, count in found.items() if not count]
        if missing:
            raise HostError(
                f"this build of Unicorn {VERSION} has another table of helpers (no {', '.join(missing)}); "
                f"install the wheel from the package index: pip install --force-reinstall unicorn=={VERSION}"
            )


def _binding() -> Any:
    """The module with Unicorn's C functions, if its library is the release that this module knows."""
    try:
        import unicorn.unicorn_py3.unicorn as binding
    except ImportError:  # none, or one so old that it is built otherwise
        raise HostError(f"the engine `soft` needs Unicorn {VERSION}: pip install unicorn=={VERSION}") from None
    packed = binding.uc_version()[2]  # the library's own word: a byte each of major, minor, patch
    found = f"{packed >> 24}.{packed >> 16 & 0xFF}.{packed >> 8 & 0xFF}"
    if found != VERSION:
        raise HostError(
            f"the engine `soft` needs Unicorn {VERSION}, and {found} is installed: pip install unicorn=={VERSION}"
        )
    return binding


def _relocated() -> list[tuple[int, int]]:
    """Where the dynamic linker put addresses into the library: its writable mappings, and the one right before them,
    which it made read-only again (RELRO)."""
    found: list[tuple[int, int]] = []
    before = (0, 0)
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if "libunicorn" not in line:
                continue
            place, permissions, *_ = line.split()
            first, _, end = place.partition("-")
            mapping = (int(first, 16), int(end, 16))
            if permissions.startswith("rw"):
                found += (before, mapping) if before[1] == mapping[0] else (mapping,)
            before = mapping
    return found


_library: Library | None = None


def load() -> Library:
    """The library, loaded and patched once for the process. HostError says what is wrong with the one installed."""
    global _library  # the patched table is the process's, not a machine's
    if _library is None:
        _library = Library()
    return _library


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
