"""The board: what SeaBIOS and operating systems expect of a PC of the year 1997, and a VGA of Bochs.

    slot 0   i440FX host bridge              0x510  firmware configuration    0x402  the firmware's log
    slot 1   PIIX3: ISA, IDE; PIIX4: power   0x60   8042, keyboard, mouse     0x3f8  COM1
    slot 2   VGA                             0x70   RTC with CMOS             0x0f4  debug exit
    slot 3   network, disks, AHCI: as they come   0x92 0xcf9 reset

It knows no hypervisor: interrupt lines, memory and buses are handed to it, so a device model of Xen can be made of the
same devices. Interrupt controllers and timers are whoever's who hands in `set_irq`.
"""

from __future__ import annotations

import struct
import time
import uuid as uuids
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from bivisor.host.loop import Loop
from bivisor.memory import HOLE_START
from bivisor.platform import acpi_pm, debugcon, debugexit, fwcfg, hpet, i8237, reset, rtc, serial, smbios
from bivisor.platform.acpi import AcpiTables
from bivisor.platform.ahci import Ahci
from bivisor.platform.bus import Bus
from bivisor.platform.events import Event, OnEvent
from bivisor.platform.hpet import Hpet
from bivisor.platform.i440fx import bridges, tables
from bivisor.platform.ide import PiixIde
from bivisor.platform.ide.drive import Drive
from bivisor.platform.ide.feed import Feeder
from bivisor.platform.irqchip import TIMER_GSI
from bivisor.platform.pci import PciBus, PciFunction
from bivisor.platform.pci.bus import ADDRESS_PORT, PORTS, PciConfigPorts
from bivisor.platform.ps2 import Ps2Controller
from bivisor.platform.ps2.controller import COMMAND_PORT, DATA_PORT, KEYBOARD_IRQ, MOUSE_IRQ
from bivisor.platform.vga import VgaCard
from bivisor.platform.windows import Windows

COM1_PORT, COM1_IRQ = 0x3F8, 4
PIIX_SLOT, VGA_SLOT, FIRST_FREE_SLOT = 1, 2, 3
_KIB64 = 1 << 16


@dataclass(frozen=True, slots=True)
class Site:
    """Where the board is put: buses, guest memory of `size` bytes, and the way to interrupts and windows."""

    ports: Bus
    mmio: Bus
    memory: fwcfg.Memory
    size: int
    loop: Loop
    set_irq: Callable[[int, bool], None]
    signal_msi: Callable[[int, int], object]
    windows: Windows
    set_a20: Callable[[bool], None] = lambda _: None
    feeder: Feeder | None = None


@dataclass(frozen=True, slots=True)
class BoardOptions:
    """What can be chosen. `firmware_log` gets the firmware's debug lines, `boot_order` its device paths, `wall` is the
    RTC's time, `boot_menu` has the firmware offer one for some seconds, `hpet` comes from whoever has the interrupt
    controllers, where one is wanted; a `kernel` is started by firmware that can, before it looks at disks."""

    cpus: int = 1
    max_cpus: int = 1
    timer_gsi: int = TIMER_GSI
    debug_exit_port: int = debugexit.DEFAULT_PORT
    vga_rom: bytes = b""
    firmware_log: Callable[[bytes], None] = lambda _: None
    uuid: uuids.UUID = field(default_factory=uuids.uuid4)
    wall: Callable[[], float] = time.time
    hpet: Hpet | None = None
    boot_menu: bool = False
    kernel: fwcfg.DirectKernel | None = None


class I440fxBoard:
    """The board. `console` gets what the guest writes to COM1; `on_event` hears of resets and of power off."""

    def __init__(
        self, site: Site, options: BoardOptions, *, console: Callable[[bytes], None], on_event: OnEvent
    ) -> None:
        self._site = site
        self._options = options
        self._report = on_event
        self.boot_order: list[str] = []
        loop, ports = site.loop, site.ports
        line = partial(partial, site.set_irq)
        self.com1 = serial.Serial(console, line(COM1_IRQ), loop)
        self.rtc = rtc.Rtc(loop, options.wall, line(rtc.IRQ), _cmos(site.size, options.cpus))
        self.pm = acpi_pm.AcpiPm(loop, line(acpi_pm.SCI_IRQ), self._on_event, s5_type=tables.S5_TYPE)
        self.ps2 = Ps2Controller(line(KEYBOARD_IRQ), line(MOUSE_IRQ), self._on_event, site.set_a20)
        self.fw_cfg = fwcfg.FwCfg(site.memory, _items(site.size, options))
        self.log = debugcon.DebugConsole(options.firmware_log)
        router = bridges.PirqRouter(site.set_irq)
        self.pci = PciBus(
            ports,
            site.mmio,
            set_irq=site.set_irq,
            signal_msi=site.signal_msi,
            host_bridge=bridges.HostBridge(site.size),
            set_pin=router.set_pin,
        )
        self.ide = PiixIde(site.memory, site.set_irq, site.feeder)
        self.ahci: Ahci | None = None
        self.vga = VgaCard(loop, site.windows, options.vga_rom)
        self.pci.add(bridges.IsaBridge(router), PIIX_SLOT)
        self.pci.add(self.ide, PIIX_SLOT, 1)
        self._power = bridges.PowerManagement(ports, self.pm)
        self.pci.add(self._power, PIIX_SLOT, 3)
        self.pci.add(self.vga, VGA_SLOT)
        self._attach()

    def _attach(self) -> None:
        ports, options = self._site.ports, self._options
        self.ide.attach(ports)
        self.vga.attach(ports, self._site.mmio)
        ports.attach(COM1_PORT, serial.PORTS, self.com1, "COM1")
        ports.attach(rtc.BASE_PORT, 2, self.rtc, "RTC")
        ports.attach(DATA_PORT, 1, self.ps2.data, "8042 data")
        ports.attach(COMMAND_PORT, 1, self.ps2.command, "8042 command")
        ports.attach(fwcfg.BASE_PORT, fwcfg.PORTS, self.fw_cfg, "firmware configuration")
        ports.attach(debugcon.PORT, 1, self.log, "firmware log")
        ports.attach(*i8237.FIRST_PORTS, i8237.I8237(1), "8237")
        ports.attach(*i8237.SECOND_PORTS, i8237.I8237(2), "8237 second")
        ports.attach(*i8237.PAGE_PORTS, i8237.PageRegisters(), "DMA pages")
        config = PciConfigPorts(self.pci, reset.ResetControl(self._on_event))
        ports.attach(ADDRESS_PORT, PORTS, config, "PCI configuration")
        fast = reset.FastReset(self._on_event, self._site.set_a20)
        ports.attach(reset.FAST_RESET_PORT, 1, fast, "port 0x92")
        if options.hpet is not None:
            self._site.mmio.attach(hpet.BASE, hpet.LENGTH, options.hpet, "HPET")
        ports.attach(options.debug_exit_port, debugexit.PORTS, debugexit.DebugExit(self._on_event), "debug exit")

    def add_sata_drive(self, drive: Drive) -> str:
        """Plug `drive` into the AHCI controller, which comes with its first drive; the firmware's name for it."""
        if self.ahci is None:
            self.ahci = Ahci(self._site.memory)
            self.add(self.ahci)
        port = self.ahci.add_drive(drive)
        # SeaBIOS takes any name for the controller, OVMF only QEMU's
        return f"/pci@i0cf8/pci8086,2922@{self.pci.slot_of(self.ahci):x}/drive@{port:x}/disk@0"

    def add(self, function: PciFunction, slot: int | None = None) -> int:
        """See `Board.add`."""
        return self.pci.add(function, slot)

    def finish(self) -> AcpiTables | None:
        """See `Board.finish`: the firmware finds its files."""
        options, size = self._options, self._site.size
        anchor, structures = smbios.smbios_tables(cpus=options.cpus, memory=size, uuid=options.uuid)
        files: Mapping[str, bytes] = {
            "etc/e820": tables.e820(size),
            "etc/show-boot-menu": struct.pack("<H", options.boot_menu),
            "etc/smbios/smbios-anchor": anchor,
            "etc/smbios/smbios-tables": structures,
            "bootorder": b"".join(path.encode() + b"\n" for path in self.boot_order) + b"\0",
        }
        for name, data in files.items():
            self.fw_cfg.add_file(name, data)
        for name, data in self._acpi_files().items():
            self.fw_cfg.add_file(name, data, partial(self._acpi_file, name))
        return None

    def _acpi_file(self, name: str) -> bytes:
        return self._acpi_files()[name]

    def _acpi_files(self) -> dict[str, bytes]:
        """The tables as they are right now: firmware first places the ports of power management, and then reads."""
        options = self._options
        return tables.acpi_files(
            cpus=options.cpus,
            timer_gsi=options.timer_gsi,
            com_ports=((COM1_PORT, COM1_IRQ),),
            size=self._site.size,
            hpet=options.hpet,
            pm_base=self._power.base,
        )

    def close(self) -> None:
        """See `Board.close`."""
        with ExitStack() as last_first:
            last_first.callback(self.pci.close)
            if self._options.hpet is not None:
                last_first.callback(self._options.hpet.close)
            for device in (self.pm, self.rtc, self.com1, self.log):
                last_first.callback(device.close)

    def _on_event(self, event: Event) -> None:
        self.com1.flush()
        self._report(event)


def _items(size: int, options: BoardOptions) -> dict[int, bytes]:
    return {
        fwcfg.UUID: options.uuid.bytes,
        fwcfg.RAM_SIZE: struct.pack("<Q", size),
        fwcfg.NOGRAPHIC: struct.pack("<H", 0),
        fwcfg.CPUS: struct.pack("<H", options.cpus),
        fwcfg.MAX_CPUS: struct.pack("<H", max(options.cpus, options.max_cpus)),
        fwcfg.BOOT_MENU: struct.pack("<H", options.boot_menu),
        **({} if options.kernel is None else options.kernel.items()),
    }


def _cmos(size: int, cpus: int) -> dict[int, int]:
    """What setup has left in the CMOS RAM: memory sizes, equipment, boot order (Ralf Brown's list, cmos.lst)."""
    low = min(size, HOLE_START)
    extended = min((low >> 10) - 1024, 0xFFFF)
    above_16 = min(max(low - (16 << 20), 0) // _KIB64, 0xFFFF)
    above_4g = max(size - HOLE_START, 0) // _KIB64
    return {
        0x14: 0x06, 0x15: 640 & 0xFF, 0x16: 640 >> 8, 0x17: extended & 0xFF, 0x18: extended >> 8,
        0x30: extended & 0xFF, 0x31: extended >> 8, 0x34: above_16 & 0xFF, 0x35: above_16 >> 8,
        0x5B: above_4g & 0xFF, 0x5C: above_4g >> 8 & 0xFF, 0x5D: above_4g >> 16 & 0xFF, 0x5F: cpus - 1,
        0x38: 0x30, 0x3D: 0x32,
    }  # fmt: skip
