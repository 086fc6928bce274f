"""Unicorn's library, loaded once for the process: the internal functions that it exports, and its table of helpers.

That is made to point at the thunks (`thunks.S`). What stands where in its structures is in `private.py`.
"""

from __future__ import annotations

import ctypes as C
import mmap
import struct
from typing import Any

from bivisor.cpu.soft.thunks import CODE
from bivisor.errors import HostError

VERSION = "2.1.4"

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
