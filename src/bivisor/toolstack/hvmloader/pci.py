"""PCI as firmware leaves it: ranges placed, interrupt links routed, functions turned on (hvmloader's pci_setup)."""

from __future__ import annotations

from bivisor.platform.pci import PciBus
from bivisor.platform.pci import registers as reg
from bivisor.xen.hvm.irq import LINKS, pci_link
from bivisor.xen.hvm.platform import PCI_ISA_IRQS

LINK_IRQS = tuple(PCI_ISA_IRQS[link % len(PCI_ISA_IRQS)] for link in range(LINKS))
_ENABLE = 0x8000_0000
_ISA_BRIDGE = 1 << 3
_PIRQRC = 0x60
_COMMAND = reg.COMMAND_IO | reg.COMMAND_MEMORY | reg.COMMAND_MASTER


def set_up(pci: PciBus) -> None:
    """Configure every function that is plugged in. UsageError where there is no room for one."""
    for link, irq in enumerate(LINK_IRQS):
        _write(pci, _ISA_BRIDGE, _PIRQRC + link, 1, irq)
    pci.assign()
    for place in pci.places[1:]:
        pin = pci.config_read(_ENABLE | place << 8 | reg.INTERRUPT_PIN, 1)
        if pin:
            _write(pci, place, reg.INTERRUPT_LINE, 1, LINK_IRQS[pci_link(place >> 3, pin - 1)])
        _write(pci, place, reg.COMMAND, 2, _COMMAND)


def _write(pci: PciBus, place: int, offset: int, size: int, value: int) -> None:
    pci.config_write(_ENABLE | place << 8 | offset, size, value)
