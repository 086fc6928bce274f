"""The pvpanic device: the guest's kernel says that it has panicked.

Specification: QEMU docs/specs/pvpanic.rst, "ISA Interface". Linux finds it by the ACPI id QEMU0001.
"""

from __future__ import annotations

from bivisor.platform.events import OnEvent, Panic

PORT = 0x505

PANICKED, CRASH_LOADED = 0x01, 0x02


class PvPanic:
    """One port."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event

    def read(self, offset: int, size: int) -> int:
        """The events that the host understands."""
        return PANICKED | CRASH_LOADED

    def write(self, offset: int, size: int, value: int) -> None:
        """Report events."""
        if value & (PANICKED | CRASH_LOADED):
            self._on_event(Panic(loaded_crash_kernel=not value & PANICKED))
