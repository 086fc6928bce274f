"""What a domain has besides its RAM: pages that it asked for, and frames of others that it has mapped.

The processor's view of guest-physical memory is made of slots, and a slot for each page would be too many. So pages
outside RAM lie in windows of 2 MiB, one slot each, and a frame of another domain is put into a window, or where the
domain gave up a page of its RAM, by mapping that page of the granter's memory there in this process (mmap(2) with
MAP_FIXED). Every engine follows that, and both domains see the same memory. A page of a window where nothing is mapped
is a page of zeroes that the guest could write to: `MAX_WINDOWS` bounds what it can gain by that.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import PAGE_SHIFT
from bivisor.memory import PAGE, GuestMemory, MemoryRegion, Slot
from bivisor.xen.errors import XenError

MAX_GFN = 1 << 28
"""A guest-physical address space of 40 bits."""

MAX_PAGES = 256
"""Pages that a guest may ask for outside its memory: grant-table frames and the like. No reason for more is known."""

_LOW_LIMIT, _ABOVE_RAM = 8 << 30, 1 << 30
"""Where windows can be: below 8 GiB, or in the first GiB above RAM. Kernels take the lowest addresses that are free; an
engine without nested paging takes the longer to make room for a slot the higher that is, up to seconds."""

_LOCAL_APIC = 0xFEE0_0000
_NEVER = ((_LOCAL_APIC, PAGE), (0xFEFF_C000, 4 * PAGE))
"""(address, length) of what is no memory: the local APIC, and four pages that KVM may keep for itself on Intel's older
processors (see `cpu/kvm/machine.py`)."""

MAX_WINDOWS = 16
_WINDOW = 512  # frames
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # linux/mman.h on x86

_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_FAILED = ctypes.c_void_p(-1).value


def _put(address: int, fd: int, offset: int, *, private: bool = False) -> None:
    """Map the page at `offset` of `fd` at `address`, in place of what is there. XenError(ENOMEM)."""
    sharing = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if _mmap(address, PAGE, protection, sharing | _MAP_FIXED | _MAP_NORESERVE, fd, offset) == _FAILED:
        raise XenError(Errno.ENOMEM)  # most likely too many mappings of this process


class Physmap:
    """Pages and foreign frames of the domain with `memory`. `add_slot` shows a new slot to its processors."""

    def __init__(self, memory: GuestMemory, add_slot: Callable[[Slot], None]) -> None:
        self._memory = memory
        self._add_slot = add_slot
        self._windows: list[Slot] = []
        ram_end = max((start + size for start, size in memory.ram_ranges), default=0)
        self._limit = max(_LOW_LIMIT, ram_end + _ABOVE_RAM)
        self._foreign: dict[int, tuple[Slot, int]] = {}
        self.occupied: Callable[[], Iterable[tuple[int, int]]] = lambda: ()
        """(address, length) of what is memory of somebody else's there: a device model's frame buffer."""
        self.pages: dict[int, memoryview] = {}
        """The domain's own pages outside RAM, by frame number."""

    @property
    def foreign(self) -> frozenset[int]:
        """The frame numbers at which a frame of another domain is."""
        return frozenset(self._foreign)

    def is_foreign(self, gfn: int) -> bool:
        """Whether a frame of another domain is at `gfn`."""
        return gfn in self._foreign

    def _slot(self, gfn: int) -> Slot:
        """The slot that has `gfn`: of RAM, or a window, a new one if need be. XenError(EINVAL, ENOMEM)."""
        gpa = gfn << PAGE_SHIFT
        for slot in self._memory.slots:
            if slot.gpa <= gpa < slot.gpa + slot.size:
                return slot
        if not 0 <= gpa < self._limit or any(at <= gpa < at + size for at, size in (*_NEVER, *self.occupied())):
            raise XenError(Errno.EINVAL)
        if len(self._windows) >= MAX_WINDOWS:
            raise XenError(Errno.ENOMEM)
        return self._open(gpa)

    def _open(self, gpa: int) -> Slot:
        """A window around `gpa`, as far as there is nothing else."""
        size = _WINDOW * PAGE
        start = gpa - gpa % size
        end = start + size
        taken = [(slot.gpa, slot.size) for slot in self._memory.slots]
        for other, length in (*taken, *_NEVER, *self.occupied()):
            if other > gpa:
                end = min(end, other)
            else:
                start = max(start, other + length)
        region = MemoryRegion(end - start, "bivisor-xen-window")
        slot = Slot(start, region.size, region)
        self._memory.add(slot)
        self._windows.append(slot)
        self._add_slot(slot)
        return slot

    def page(self, gfn: int) -> memoryview:
        """A page of the domain's own at `gfn`. XenError(EINVAL) where there cannot be one or another's is, ENOMEM."""
        if gfn in self._foreign or len(self.pages) >= MAX_PAGES:
            raise XenError(Errno.EINVAL)
        self._slot(gfn)
        page = self.pages[gfn] = self._memory.view(gfn << PAGE_SHIFT, PAGE)
        return page

    def source(self, gfn: int) -> tuple[int, int]:
        """(file descriptor, offset) of the memory at `gfn`, to put it into another domain. XenError(EINVAL)."""
        gpa = gfn << PAGE_SHIFT
        for slot in self._memory.slots:
            if slot.gpa <= gpa < slot.gpa + slot.size and gfn not in self._foreign:
                return slot.region.fd, slot.offset + gpa - slot.gpa
        raise XenError(Errno.EINVAL)

    def map(self, gfn: int, fd: int, offset: int, *, readonly: bool) -> None:
        """Put the page at `offset` of `fd` at `gfn`. XenError: EINVAL, ENOMEM.

        If `readonly`, what the domain writes there all the same goes into a copy that nobody else sees.
        """
        if gfn in self._foreign:
            raise XenError(Errno.EINVAL)
        slot = self._slot(gfn)
        within = slot.offset + (gfn << PAGE_SHIFT) - slot.gpa
        _put(slot.region.address + within, fd, offset, private=readonly)
        self._foreign[gfn] = slot, within
        self._memory.written(gfn << PAGE_SHIFT, PAGE)

    def unmap(self, gfn: int) -> None:
        """Take back what `map` put at `gfn`: there are zeroes again. XenError(EINVAL) where nothing was put."""
        found = self._foreign.get(gfn)
        if found is None:
            raise XenError(Errno.EINVAL)
        slot, within = found
        _put(slot.region.address + within, slot.region.fd, within)
        del self._foreign[gfn]
        self._memory.written(gfn << PAGE_SHIFT, PAGE)

    def close(self) -> None:
        """Give back the windows, and close the domain's memory."""
        self.pages.clear()
        self._memory.close()
        for slot in self._windows:
            slot.region.close()
        self._windows.clear()
        self._foreign.clear()
