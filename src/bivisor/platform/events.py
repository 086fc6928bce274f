"""What a board tells its machine: how the guest ended, or that it is about to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PowerOff:
    """The guest entered ACPI S5."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The guest asked for a reset. `source` names the device that it asked."""

    source: str


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The guest wrote `status` (0 to 255) to the debug-exit port."""

    status: int


@dataclass(frozen=True, slots=True)
class Panic:
    """The guest's kernel panicked and said so. `loaded_crash_kernel`: it will go on in a crash kernel."""

    loaded_crash_kernel: bool


Event = PowerOff | Reset | ExitStatus | Panic
OnEvent = Callable[[Event], None]
