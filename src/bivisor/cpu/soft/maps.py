"""Guest-physical memory in the address space of one library: slots, the holes between them, and pages that hold code.

Every guest-physical address that is not memory is mapped as MMIO, so no access of a guest ever finds "nothing" there;
the library's own answer to that is to stop.
"""

from __future__ import annotations

import ctypes as C
from functools import partial
from typing import TYPE_CHECKING

from bivisor.cpu.soft import private as p
from bivisor.cpu.soft.library import Library
from bivisor.errors import EngineError, GuestAddressError
from bivisor.memory import PAGE, Slot

if TYPE_CHECKING:
    from bivisor.cpu.soft.vcpu import SoftVcpu

_ADDRESS_SPACE = 1 << 52
_FINE_BELOW = 1 << 33
_PIECE = 256 << 20
_PROT_ALL = 7
_HOOK_MEM_WRITE = 1 << 11


class _DirtyLog:
    """One byte for each page of a slot, set by native code at each store."""

    def __init__(self, slot: Slot) -> None:
        pages = slot.size // PAGE
        self.map = (C.c_uint8 * pages)()
        self.record = (C.c_uint64 * 3)(slot.gpa, pages, C.addressof(self.map))
        self.hook = C.c_size_t()


class _Mapped:
    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.start, self.size = slot.gpa, slot.size
        self.view = slot.region.view[slot.offset : slot.offset + slot.size]
        self.log: _DirtyLog | None = None


class MemoryMap:
    """The memory of one library. Slots and pages are as in `bivisor.cpu.contract.Machine`."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.context = p.Context()
        self._vcpu: SoftVcpu | None = None
        self._mapped: dict[int, _Mapped] = {}
        self._holes: list[tuple[int, int]] = []
        binding = library.binding
        from unicorn import x86_const

        self.constants = x86_const
        self.uc = binding.Uc(binding.uc.UC_ARCH_X86, binding.uc.UC_MODE_64)
        self.uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_SKYLAKE_CLIENT)
        self._handle = C.cast(self.uc._uch, C.c_void_p).value or 0
        self.uc.ctl_exits_enabled(True)
        self._filled = False
        self._ram: list[tuple[int, int, int, int]] = []
        self._code_map: C.Array[C.c_uint8] = (C.c_uint8 * 1)()
        self._code_bit = 1
        self._shares_code_map = False
        self.context.code_bit = 1

    def _check_open(self) -> None:
        if not self._handle:
            raise EngineError("the machine is closed")

    @property
    def handle(self) -> int:
        """The library's `uc_struct`."""
        return self._handle

    @property
    def ram_places(self) -> list[tuple[int, int, int]]:
        """(guest-physical address, size, the library's own address) of all RAM."""
        return [(gpa, size, ram) for gpa, size, ram, _ in self._ram]

    @property
    def ram_end(self) -> int:
        """Where RAM ends in the library's own addresses."""
        return max((ram + size for _, size, ram, _ in self._ram), default=0)

    @property
    def translated(self) -> tuple[C.Array[C.c_uint8], int]:
        """The map of pages with code, and its length."""
        return self._code_map, len(self._code_map)

    def share_code_map(self, code_map: C.Array[C.c_uint8], bit: int) -> None:
        """Use a map of pages with code that is not this processor's alone."""
        self._code_map, self._code_bit, self._shares_code_map = code_map, bit, True
        self.context.code_map, self.context.code_pages = C.addressof(code_map), len(code_map)
        self.context.code_bit = bit

    def _hook(self, kind: int, function: int, data: int, begin: int, end: int) -> C.c_size_t:
        hook = C.c_size_t()
        add = self._library.lib.uc_hook_add
        signature = C.CFUNCTYPE(
            C.c_int, C.c_void_p, C.c_void_p, C.c_int, C.c_void_p, C.c_void_p, C.c_uint64, C.c_uint64
        )
        error = signature(C.cast(add, C.c_void_p).value or 0)(
            self._handle, C.addressof(hook), kind, function, data, begin, end
        )
        if error:
            raise EngineError(f"uc_hook_add: Unicorn error {error}")
        return hook

    def _map_hole(self, start: int, end: int) -> None:
        entries = self._library.entries
        signature = C.CFUNCTYPE(
            C.c_int, C.c_void_p, C.c_uint64, C.c_size_t, C.c_void_p, C.c_void_p, C.c_void_p, C.c_void_p
        )
        call = signature(C.cast(self._library.lib.uc_mmio_map, C.c_void_p).value or 0)
        error = call(
            self._handle, start, end - start, entries["mmio_read"], start or None, entries["mmio_write"], start or None
        )
        if error:
            raise EngineError(f"uc_mmio_map {start:#x} to {end:#x}: Unicorn error {error}")
        self._holes.append((start, end))

    def fill_holes(self) -> None:
        """Map what is not memory, once the slots of the start are known.

        In pieces, because the library takes a piece away page by page when a slot comes later.
        """
        if self._filled:
            return
        self._filled = True
        start = 0
        for slot in sorted((m.slot for m in self._mapped.values() if not m.slot.readonly), key=lambda slot: slot.gpa):
            self._fill(start, slot.gpa)
            start = slot.gpa + slot.size
        self._fill(start, _ADDRESS_SPACE)
        self._tell_ram()

    def _fill(self, start: int, end: int) -> None:
        while start < end:
            size = _PIECE if start < _FINE_BELOW else start
            stop = min(end, start + size & ~(_PIECE - 1) or end)
            self._map_hole(start, stop)
            start = stop

    def _tell_ram(self) -> None:
        """Give native code the RAM, so that a slow access does not search for it, and the map of pages with code."""
        writable = sorted((m.slot for m in self._mapped.values() if not m.slot.readonly), key=lambda slot: -slot.size)
        self._ram = []
        for slot in writable:
            region = self._library.find_mapping(self._handle, slot.gpa)
            self._ram.append((slot.gpa, slot.size, self._library.ram_address(region), region))
        ranges = [value for gpa, size, _, region in self._ram[:2] for value in (gpa, size, region)]
        pages = max((ram + size for _, size, ram, _ in self._ram), default=0) // PAGE
        if pages > len(self._code_map) and not self._shares_code_map:
            self._code_map = (C.c_uint8 * pages).from_buffer_copy(bytes(self._code_map).ljust(pages, b"\0"))
            self.context.code_map = C.addressof(self._code_map)
            self.context.code_pages = pages
        self.context.ram = (C.c_uint64 * 6)(*ranges)

    def _unmap_hole(self, start: int, end: int) -> None:
        if not self._filled:
            return
        self.context.ram = (C.c_uint64 * 6)()
        for hole in [hole for hole in self._holes if hole[0] < end and start < hole[1]]:
            self._holes.remove(hole)
            self._take_away(hole[0], hole[1] - hole[0])
            if hole[0] < start:
                self._map_hole(hole[0], start)
            if end < hole[1]:
                self._map_hole(end, hole[1])

    def map(self, slot: Slot, *, log_dirty: bool = False) -> None:
        """See `Machine.map`. A read-only slot is read by exit-free MMIO and cannot be executed from."""
        self._check_open()
        if slot.gpa % PAGE or slot.size % PAGE or slot.size <= 0:
            raise EngineError(f"KVM_SET_USER_MEMORY_REGION: {slot.gpa:#x}+{slot.size:#x} is not made of whole pages")
        for other in self._mapped.values():
            if slot.gpa < other.slot.gpa + other.slot.size and other.slot.gpa < slot.gpa + slot.size:
                raise EngineError(f"KVM_SET_USER_MEMORY_REGION: {slot.gpa:#x} overlaps the slot at {other.slot.gpa:#x}")
        mapped = _Mapped(slot)
        if not slot.readonly:
            self._unmap_hole(slot.gpa, slot.gpa + slot.size)
            self.uc.mem_map_ptr(slot.gpa, slot.size, _PROT_ALL, slot.host_address)
        if log_dirty:
            log = mapped.log = _DirtyLog(slot)
            log.hook = self._hook(_HOOK_MEM_WRITE, self._library.entries["stored"], C.addressof(log.record), 1, 0)
            self._forget_translations()
        self._mapped[slot.gpa] = mapped
        if self._filled and not slot.readonly:
            self._tell_ram()

    def _take_away(self, start: int, size: int) -> None:
        """uc_mem_unmap. To forget code it looks `start` up in the guest's page tables; the fault that it may get is
        nobody's, and must not stay behind for the guest."""
        cpu = None if self._vcpu is None else self._vcpu.cpu
        if cpu is None:
            self.uc.mem_unmap(start, size)
            return
        fields = (cpu.exception_index, cpu.error_code, cpu.is_int, cpu.old_exception)
        before, cr2 = [field.value for field in fields], cpu.cr[2]
        self.uc.mem_unmap(start, size)
        for field, value in zip(fields, before, strict=True):
            field.value = value
        cpu.cr[2] = cr2

    def unmap(self, slot: Slot) -> None:
        """See `Machine.unmap`."""
        mapped = self._mapped.pop(slot.gpa, None)
        if mapped is None:
            raise EngineError(f"KVM_SET_USER_MEMORY_REGION: there is no slot at {slot.gpa:#x}")
        if mapped.log is not None:
            self._library.lib.uc_hook_del(C.c_void_p(self._handle), mapped.log.hook)
        mapped.view.release()
        if slot.readonly:
            return  # the library has never had it, which may be executing just now
        self.context.ram = (C.c_uint64 * 6)()
        self._take_away(slot.gpa, slot.size)
        if self._filled:
            self._map_hole(slot.gpa, slot.gpa + slot.size)
            self._tell_ram()
        self._forget_translations()

    def _forget_translations(self) -> None:
        if self._vcpu is not None:
            self._library.tb_flush(self._vcpu.cpu.cpu)
            self._library.tlb_flush(self._vcpu.cpu.cpu)

    def dirty_pages(self, slot: Slot) -> list[int]:
        """See `Machine.dirty_pages`."""
        mapped = self._mapped.get(slot.gpa)
        if mapped is None or mapped.log is None:
            raise EngineError(f"KVM_GET_DIRTY_LOG: the slot at {slot.gpa:#x} has no dirty log")
        map_ = mapped.log.map
        found = [slot.gpa + PAGE * i for i, dirty in enumerate(bytes(map_)) if dirty]
        C.memset(map_, 0, len(map_))
        return found

    def view(self, gpa: int, length: int) -> memoryview:
        """The bytes of a mapped slot. GuestAddressError where there is none."""
        for mapped in self._mapped.values():
            start = gpa - mapped.start
            if start >= 0 and start + length <= mapped.size:
                return mapped.view[start : start + length]
        raise GuestAddressError(gpa, length)

    def read_number(self, gpa: int, size: int) -> int:
        """The little-endian number of `size` bytes at `gpa`."""
        return int.from_bytes(self.view(gpa, size), "little")

    def write_guest(self, gpa: int, data: bytes) -> bool:
        """Write guest memory on the processor's own behalf; False where there is none."""
        try:
            self.view(gpa, len(data))[:] = data
        except GuestAddressError:
            return False
        return True

    def rom(self, gpa: int, size: int) -> int | None:
        """What a read-only slot has at `gpa`; None where there is no such slot."""
        for mapped in self._mapped.values():
            slot = mapped.slot
            if slot.readonly and slot.gpa <= gpa and gpa + size <= slot.gpa + slot.size:
                start = gpa - slot.gpa
                return int.from_bytes(mapped.view[start : start + size], "little")
        return None

    def invalidate(self, gpa: int, length: int) -> None:
        """See `Machine.invalidate`."""
        vcpu = self._vcpu
        if vcpu is None or length <= 0:
            return
        for start, size, ram, _ in self._ram:
            first = ram + max(gpa, start) - start
            end = ram + min(gpa + length, start + size) - start
            # most pages hold no code, and a look at the map is all that a transfer to them costs
            if first < end and any(self._code_map[first // PAGE : (end - 1) // PAGE + 1]):
                vcpu.post(partial(self._forget_code, first, end))

    def _forget_code(self, first: int, end: int) -> None:
        start = first & ~(PAGE - 1)
        end = -(-end // PAGE) * PAGE
        self._library.invalidate(self._handle, start, end)
        for page in range(start // PAGE, end // PAGE):
            self._code_map[page] &= ~self._code_bit

    def _forget_memory(self) -> None:
        """The library goes, and what it had of the slots."""
        for mapped in self._mapped.values():
            mapped.view.release()
        self._mapped.clear()
        self._handle = 0
        self.uc._uc_finalizer() if hasattr(self.uc, "_uc_finalizer") else None
        del self.uc
