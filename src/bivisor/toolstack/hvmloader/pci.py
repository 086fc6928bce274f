"""PCI as firmware leaves it: ranges placed, interrupt links routed, functions turned on (hvmloader's pci_setup)."""

from __future__ import annotations

from bivisor.abi.xen import ioreq
from bivisor.errors import UsageError
from bivisor.platform.i440fx.bridges import PMBASE, PMREGMISC, SMBBASE
from bivisor.platform.pci import BarKind, PciBus, PciFunction
from bivisor.platform.pci import registers as reg
from bivisor.xen.hvm.irq import LINKS, pci_link
from bivisor.xen.hvm.platform import PCI_ISA_IRQS

LINK_IRQS = tuple(PCI_ISA_IRQS[link % len(PCI_ISA_IRQS)] for link in range(LINKS))
WINDOW_STARTS, WINDOW_END = (0xF000_0000, 0xE000_0000, 0xC000_0000), 0xFC00_0000
"""Where PCI may begin below 4 GiB: as high as all that is plugged in has room."""
_ENABLE = 0x8000_0000
_ISA_BRIDGE, _POWER_MANAGEMENT = 1 << 3, 1 << 3 | 3
_PIRQRC = 0x60
_SMBUS_PORT = 0xB100
_DISPLAY = 0x03


def set_up(pci: PciBus) -> tuple[int, int]:
    """Configure every function that is plugged in; the first and the last address of PCI below 4 GiB. UsageError where
    there is no room for one."""
    for link, irq in enumerate(LINK_IRQS):
        _write(pci, _ISA_BRIDGE, _PIRQRC + link, 1, irq)
    start = _assign(pci)
    for place, function in zip(pci.places, pci.functions, strict=True):
        if function.pin:
            _write(pci, place, reg.INTERRUPT_LINE, 1, LINK_IRQS[pci_link(place >> 3, function.pin - 1)])
        _write(pci, place, reg.COMMAND, 2, _command(function))
    _write(pci, _POWER_MANAGEMENT, PMBASE, 2, ioreq.ACPI_PM1A_EVT_BLK_ADDRESS_V1 | 1)
    _write(pci, _POWER_MANAGEMENT, SMBBASE, 2, _SMBUS_PORT | 1)
    _write(pci, _POWER_MANAGEMENT, PMREGMISC, 1, 1)
    return start, WINDOW_END - 1


def _assign(pci: PciBus) -> int:
    for start in WINDOW_STARTS[:-1]:
        try:
            pci.assign(start, WINDOW_END)
        except UsageError:
            continue
        return start
    pci.assign(WINDOW_STARTS[-1], WINDOW_END)
    return WINDOW_STARTS[-1]


def _command(function: PciFunction) -> int:
    kinds = {bar.kind is BarKind.IO for bar in function.bars.values()}
    if function.config[reg.CLASS_CODE + 2] == _DISPLAY:
        kinds.add(True)  # it has the old ports, and firmware looks for one that has them
    decoded = (reg.COMMAND_IO if True in kinds else 0) | (reg.COMMAND_MEMORY if False in kinds else 0)
    return reg.COMMAND_MASTER | decoded


def _write(pci: PciBus, place: int, offset: int, size: int, value: int) -> None:
    pci.config_write(_ENABLE | place << 8 | offset, size, value)
