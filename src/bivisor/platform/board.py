"""What a virtual machine needs of its board, whichever it is."""

from __future__ import annotations

from typing import Protocol

from bivisor.platform.acpi import AcpiTables
from bivisor.platform.acpi_pm import AcpiPm
from bivisor.platform.pci import PciBus, PciFunction
from bivisor.platform.serial import Serial


class Board(Protocol):
    """The devices around the processors. Every access and call is made with the devices' lock held."""

    com1: Serial
    pm: AcpiPm
    pci: PciBus

    def add(self, function: PciFunction, slot: int | None = None) -> int:
        """Plug in a PCI function, before `finish()`; the slot that it got."""

    def finish(self) -> AcpiTables | None:
        """All devices are there. Tables that the boot protocols pass on, None where firmware places its own."""

    def close(self) -> None:
        """Give everything back."""
