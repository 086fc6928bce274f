"""PCI: configuration space, base address registers, MSI-X and the one bus of the PC."""

from bivisor.platform.pci.bar import Bar, BarKind
from bivisor.platform.pci.bus import PciBus
from bivisor.platform.pci.function import Identity, PciFunction
from bivisor.platform.pci.msix import MsiX

__all__ = ["Bar", "BarKind", "Identity", "MsiX", "PciBus", "PciFunction"]
