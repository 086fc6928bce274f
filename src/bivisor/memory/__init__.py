"""Guest-physical memory in memfd-backed regions, seen through zero-copy views."""

from bivisor.memory.guest import HOLE_END, HOLE_START, GuestMemory, Slot
from bivisor.memory.regions import PAGE, MemoryRegion, host_limit

__all__ = ["HOLE_END", "HOLE_START", "PAGE", "GuestMemory", "MemoryRegion", "Slot", "host_limit"]
