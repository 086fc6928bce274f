"""Device memory that the guest reaches without the device: a frame buffer is mapped like RAM."""

from __future__ import annotations

from typing import Protocol

from bivisor.memory import MemoryRegion


class Windows(Protocol):
    """Shows pieces of memory regions in the guest's physical address space."""

    def show(self, name: str, gpa: int | None, region: MemoryRegion, offset: int, size: int) -> None:
        """Let window `name` be `size` bytes of `region` at `gpa` (None: nowhere). Accesses elsewhere, and those before
        the change has taken place, go to the devices."""
