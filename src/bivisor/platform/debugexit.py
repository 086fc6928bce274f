"""A port that ends the machine: what the guest writes there becomes the exit status of the command that ran it."""

from __future__ import annotations

from bivisor.platform.events import ExitStatus, OnEvent

DEFAULT_PORT, PORTS = 0xF4, 4


class DebugExit:
    """The port. Of a value of more than a byte the low byte counts, since an exit status has no more."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event

    def read(self, offset: int, size: int) -> int:
        """Always 0: a guest can tell that the port is there."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End with this status."""
        if offset == 0:
            self._on_event(ExitStatus(value & 0xFF))
