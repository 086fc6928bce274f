"""The interrupt lines of a PC whose engine has only the local APICs: an 8259 pair and an I/O APIC side by side.

Each ISA interrupt reaches both; the guest masks the one that it does not use. The timer (ISA interrupt 0) is input 2
of the I/O APIC, as the MADT says. Lines from 16 on are PCI's and reach only the I/O APIC; for the 8259 pair PCI has two
ISA lines, which are level-triggered from the start, as firmware leaves them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from bivisor.platform import ioapic as registers
from bivisor.platform.bus import Bus
from bivisor.platform.i8259 import ELCR_PORT, MASTER_PORT, SLAVE_PORT, I8259Pair
from bivisor.platform.ioapic import IoApic

GSIS = 24
TIMER_GSI = 2
ISA_IRQS = 16


class PcIrqChip:
    """The `IrqChip` of a PC (cpu/contract.py). Its methods may be called from any thread; `lock` is the devices'."""

    def __init__(
        self,
        set_intr: Callable[[bool], None],
        signal_msi: Callable[[int, int], object],
        lock: threading.RLock,
        *,
        level_triggered: Iterable[int] = (),
        ioapic: IoApic | None = None,
    ) -> None:
        self._lock = lock
        self.pics = I8259Pair(set_intr)
        self.ioapic = ioapic or IoApic(signal_msi)
        self._gsis = self.ioapic.pins
        elcr = sum(1 << irq for irq in level_triggered)
        self.pics.elcr.write(0, 1, elcr & 0xFF)
        self.pics.elcr.write(1, 1, elcr >> 8)

    def attach(self, ports: Bus, mmio: Bus) -> None:
        """Claim the controllers' ports and addresses."""
        ports.attach(MASTER_PORT, 2, self.pics.master, "8259 master")
        ports.attach(SLAVE_PORT, 2, self.pics.slave, "8259 slave")
        ports.attach(ELCR_PORT, 2, self.pics.elcr, "ELCR")
        mmio.attach(registers.BASE, registers.LENGTH, self.ioapic, "I/O APIC")

    def set_irq(self, gsi: int, level: bool) -> None:
        """Set the level of line `gsi`: 0 to 15 are the ISA interrupts, those after them PCI. Any other is ignored."""
        if not 0 <= gsi < self._gsis:
            return
        with self._lock:
            if gsi < ISA_IRQS:
                self.pics.set_irq(gsi, level)
            if gsi == 0:
                self.ioapic.set_line(TIMER_GSI, level)
            elif gsi != TIMER_GSI:
                self.ioapic.set_line(gsi, level)

    def acknowledge(self) -> int:
        """The INTA cycle: the vector of the 8259 pair's highest request."""
        with self._lock:
            return self.pics.acknowledge()

    def end_of_interrupt(self, vector: int) -> None:
        """A local APIC broadcast the EOI of a level-triggered `vector`."""
        with self._lock:
            self.ioapic.end_of_interrupt(vector)
