"""The guest-physical address space: which addresses are memory, and zero-copy views of them.

A PC has a hole below 4 GiB for devices (PCI windows, I/O APIC, local APIC, firmware), so RAM beyond `HOLE_START` goes
on at 4 GiB. Every access that a device makes on behalf of a guest comes through here and is checked here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bivisor.errors import GuestAddressError, UsageError
from bivisor.memory.regions import PAGE, MemoryRegion

HOLE_START = 0xC000_0000
HOLE_END = 0x1_0000_0000

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

WriteListener = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Slot:
    """`size` bytes of guest-physical memory at `gpa`, which are the bytes at `offset` of `region`."""

    gpa: int
    size: int
    region: MemoryRegion
    offset: int = 0
    readonly: bool = False

    @property
    def host_address(self) -> int:
        """Where the host has the slot's first byte mapped."""
        return self.region.address + self.offset


class GuestMemory:
    """The memory of one machine: RAM of `size` bytes from address 0 with the hole left out, and slots added later.

    `gap` (first address, end) is left out as well; the RAM that would be there is lost, as it is on a PC behind the
    window of the graphics adapter. A machine without devices is `flat`: its RAM has no hole but the gap.

    `view()` is the way in: a writable memoryview of the guest's own bytes. Whoever *writes* through a view has to call
    `written()`, so that an engine which has translated code there learns of it (see `cpu/soft`).
    """

    def __init__(
        self, size: int, *, name: str = "bivisor-ram", gap: tuple[int, int] | None = None, flat: bool = False
    ) -> None:
        if size <= 0 or size % PAGE:
            raise UsageError(f"guest memory of {size} bytes: it has to be a positive multiple of {PAGE}")
        self.size = size
        self.ram = MemoryRegion(size, name)
        low = size if flat else min(size, HOLE_START)
        self._slots: list[tuple[Slot, memoryview]] = []
        self._listeners: list[WriteListener] = []
        self._low_start = 0 if gap is None else gap[1]
        self._low_end = low
        self.add(Slot(self._low_start, low - self._low_start, self.ram, self._low_start))
        self._low = self._slots[0][1]
        if gap is not None:
            self.add(Slot(0, gap[0], self.ram, 0))
        if size > low:
            self.add(Slot(HOLE_END, size - low, self.ram, low))

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, in the order in which they were added."""
        return tuple(slot for slot, _ in self._slots)

    @property
    def ram_ranges(self) -> tuple[tuple[int, int], ...]:
        """The RAM as (address, length) pairs, without the hole."""
        return tuple((slot.gpa, slot.size) for slot, _ in self._slots if slot.region is self.ram)

    def add(self, slot: Slot) -> None:
        """Add a slot; it must not overlap another."""
        for other, _ in self._slots:
            if slot.gpa < other.gpa + other.size and other.gpa < slot.gpa + slot.size:
                raise UsageError(f"memory slot {slot.gpa:#x}+{slot.size:#x} overlaps {other.gpa:#x}+{other.size:#x}")
        self._slots.append((slot, slot.region.view[slot.offset : slot.offset + slot.size]))

    def view(self, gpa: int, length: int) -> memoryview:
        """The `length` bytes at `gpa`, in place. GuestAddressError where any of them is not memory of one slot."""
        start = gpa - self._low_start
        if start >= 0 and length >= 0 and gpa + length <= self._low_end:
            return self._low[start : start + length]
        for slot, bytes_ in self._slots:
            if slot.gpa <= gpa and length >= 0 and gpa + length <= slot.gpa + slot.size:
                start = gpa - slot.gpa
                return bytes_[start : start + length]
        raise GuestAddressError(gpa, length)

    def contains(self, gpa: int, length: int) -> bool:
        """Whether `view(gpa, length)` would succeed."""
        return any(s.gpa <= gpa and length >= 0 and gpa + length <= s.gpa + s.size for s, _ in self._slots)

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of `length` bytes at `gpa`."""
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to `gpa`, as DMA would."""
        self.view(gpa, len(data))[:] = data
        self.written(gpa, len(data))

    def read_u16(self, gpa: int) -> int:
        """The little-endian 16-bit number at `gpa`."""
        return int(_U16.unpack_from(self.view(gpa, 2))[0])

    def read_u32(self, gpa: int) -> int:
        """The little-endian 32-bit number at `gpa`."""
        return int(_U32.unpack_from(self.view(gpa, 4))[0])

    def read_u64(self, gpa: int) -> int:
        """The little-endian 64-bit number at `gpa`."""
        return int(_U64.unpack_from(self.view(gpa, 8))[0])

    def written(self, gpa: int, length: int) -> None:
        """Tell the listeners (an engine, a dirty log) that the host wrote `length` bytes at `gpa`."""
        for listener in self._listeners:
            listener(gpa, length)

    def listen(self, listener: WriteListener) -> None:
        """Call `listener(gpa, length)` after each write that the host makes to guest memory."""
        self._listeners.append(listener)

    def unlisten(self, listener: WriteListener) -> None:
        """Take a listener back; one that is not there is no error."""
        self._listeners = [other for other in self._listeners if other != listener]

    def close(self) -> None:
        """Release every view and the RAM itself. Regions of slots that others added stay theirs."""
        for _, view in self._slots:
            view.release()
        self._slots.clear()
        self._listeners.clear()
        self._low_end = 0
        self.ram.close()

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)
