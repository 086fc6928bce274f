"""The board: a PC with ACPI, built from the devices of this package around a machine of either engine.

Where the engine brings the interrupt controllers and the timer (`irqchip` is "kernel"), the board wires its devices to
them; where it brings only the local APICs ("user"), the board adds an 8259 pair, an I/O APIC and an 8254.

    0x020 0x0a0 0x4d0  8259 pair        0x3f8 IRQ 4      COM1           0xcf8         PCI configuration
    0x040 0x061        8254             0x0f4            debug exit     0xcf9 0x092   reset
    0x060 0x064 IRQ 1  8042             0x505            pvpanic        0xc000 up     PCI ports
    0x070 IRQ 8        RTC              0x600 IRQ 9      ACPI           0xe0000000 up PCI memory
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from bivisor.cpu.contract import Machine
from bivisor.errors import UsageError
from bivisor.host.loop import Loop
from bivisor.memory import GuestMemory
from bivisor.platform import acpi, acpi_pm, debugexit, i8042, i8254, port61, pvpanic, reset, rtc, serial
from bivisor.platform.bus import Bus
from bivisor.platform.events import Event, OnEvent
from bivisor.platform.irqchip import TIMER_GSI, PcIrqChip
from bivisor.platform.pci import PciBus, PciFunction
from bivisor.platform.pci.bus import ADDRESS_PORT, ISA_LINES, PORTS, PciConfigPorts

COM1_PORT, COM1_IRQ = 0x3F8, 4
KEYBOARD_IRQ = 1


@dataclass(frozen=True, slots=True)
class PcOptions:
    """What can be chosen. `wall` gives the RTC its time in seconds since 1970, as UTC."""

    cpus: int = 1
    debug_exit_port: int = debugexit.DEFAULT_PORT
    has_pvpanic: bool = True
    wall: Callable[[], float] = time.time


class Pc:
    """The board. Every access to it, and every call, is made with `loop.lock` held.

    `machine` has its interrupt controllers already (`create_irqchip`); UsageError if not. `console` gets what the guest
    writes to COM1. `on_event` is called from inside a guest's access: it notes the event, kicks the processors and
    returns. Devices are added with `add()`; `finish()` then assigns addresses and writes the ACPI tables.
    """

    def __init__(
        self,
        machine: Machine,
        memory: GuestMemory,
        ports: Bus,
        mmio: Bus,
        loop: Loop,
        *,
        console: Callable[[bytes], None],
        on_event: OnEvent,
        options: PcOptions = PcOptions(),
    ) -> None:
        self._memory = memory
        self._machine = machine
        self._options = options
        self._report = on_event
        self.pit: i8254.I8254 | None = None
        self.irqchip: PcIrqChip | None = None
        set_irq = self._interrupts(machine, ports, mmio, loop)
        line = partial(partial, set_irq)

        self.com1 = serial.Serial(console, line(COM1_IRQ), loop)
        self.rtc = rtc.Rtc(loop, options.wall, line(rtc.IRQ))
        self.i8042 = i8042.I8042(line(KEYBOARD_IRQ), self._on_event)
        self.pm = acpi_pm.AcpiPm(loop, line(acpi_pm.SCI_IRQ), self._on_event)
        self.pci = PciBus(ports, mmio, set_irq=set_irq, signal_msi=machine.signal_msi)

        ports.attach(COM1_PORT, serial.PORTS, self.com1, "COM1")
        ports.attach(rtc.BASE_PORT, 2, self.rtc, "RTC")
        ports.attach(i8042.DATA_PORT, 1, self.i8042.data, "8042 data")
        ports.attach(i8042.COMMAND_PORT, 1, self.i8042.command, "8042 command")
        ports.attach(acpi_pm.BASE_PORT, acpi_pm.PORTS, self.pm, "ACPI")
        config = PciConfigPorts(self.pci, reset.ResetControl(self._on_event))
        ports.attach(ADDRESS_PORT, PORTS, config, "PCI configuration")
        ports.attach(reset.FAST_RESET_PORT, 1, reset.FastReset(self._on_event), "port 0x92")
        ports.attach(options.debug_exit_port, debugexit.PORTS, debugexit.DebugExit(self._on_event), "debug exit")
        if options.has_pvpanic:
            ports.attach(pvpanic.PORT, 1, pvpanic.PvPanic(self._on_event), "pvpanic")

    def add(self, function: PciFunction, slot: int | None = None) -> int:
        """Plug in a PCI function, before `finish()`; the slot that it got."""
        return self.pci.add(function, slot)

    def finish(self) -> acpi.AcpiTables:
        """Assign the base addresses and write the ACPI tables into guest memory. Returns them: the boot protocols pass
        on `rsdp`, and the memory map reserves what they occupy."""
        self.pci.assign()
        board = acpi.Board(
            cpus=self._options.cpus,
            timer_gsi=TIMER_GSI if self.irqchip is not None else 0,  # in KVM's default routing it is input 0
            com_ports=((COM1_PORT, COM1_IRQ),),
            pci_slots=self.pci.slots,
            has_pvpanic=self._options.has_pvpanic,
        )
        tables = acpi.build_tables(board)
        self._memory.write(tables.base, tables.image)
        return tables

    def close(self) -> None:
        """Send what the console still holds, stop the timers and close the devices."""
        with ExitStack() as last_first:  # whatever one of them raises, the others are closed
            last_first.callback(self.pci.close)
            if self.pit is not None:
                last_first.callback(self.pit.close)
            for device in (self.pm, self.rtc, self.com1):
                last_first.callback(device.close)

    def _interrupts(self, machine: Machine, ports: Bus, mmio: Bus, loop: Loop) -> Callable[[int, bool], None]:
        """Set up interrupt controllers and timer; the function that sets the level of a line."""
        match machine.irqchip:
            case "kernel":
                return machine.set_irq
            case "user":
                lines = (acpi_pm.SCI_IRQ, *ISA_LINES)
                chip = PcIrqChip(machine.set_intr, machine.signal_msi, loop.lock, level_triggered=lines)
                chip.attach(ports, mmio)
                machine.connect_irqchip(chip)
                pit = i8254.I8254(loop, partial(chip.set_irq, 0))
                ports.attach(i8254.BASE_PORT, i8254.PORTS, pit, "8254")
                ports.attach(port61.PORT, 1, port61.Port61(pit.channels[2], loop), "port 0x61")
                self.irqchip, self.pit = chip, pit
                return chip.set_irq
            case other:
                raise UsageError(f"a PC needs interrupt controllers: this machine has {other!r} (create_irqchip first)")

    def _on_event(self, event: Event) -> None:
        self.com1.flush()  # what the guest said before it ended comes before the news of its end
        self._report(event)
