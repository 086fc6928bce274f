"""What the hypervisor keeps of an HVM domain beside that of a PVH domain; hypercalls reach it as `Domain.hvm`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bivisor.abi.xen import xen as abi
from bivisor.cpu.windows import MachineWindows
from bivisor.xen.hvm.irq import Lines
from bivisor.xen.hvm.servers import IoreqServers


@dataclass(slots=True)
class HvmState:
    """`signal_msi(address, data)` interrupts a processor, `press_power_button` sets the bit of ACPI's event block."""

    servers: IoreqServers
    lines: Lines
    windows: MachineWindows
    signal_msi: Callable[[int, int], object]
    press_power_button: Callable[[], None]

    def set_callback(self, value: int) -> None:
        """HVM_PARAM_CALLBACK_IRQ: what of it is a line."""
        match value >> 56:
            case abi.CALLBACK_VIA_GSI if 0 < value & 0xFF < 48:
                self.lines.set_callback(value & 0xFF)
            case abi.CALLBACK_VIA_PCI_INTX:
                self.lines.set_callback((value >> 11 & 31, value & 3))
            case _:
                self.lines.set_callback(None)
