"""The board of an HVM domain: what QEMU's `xenfv` machine has, less what Xen emulates itself.

slot 0   i440FX host bridge              0x60   8042, keyboard, mouse      0x3f8  COM1
slot 1   PIIX3: ISA, IDE; PIIX4: power   0x70   CMOS RAM from byte 14 on   0x10   unplug protocol
slot 2   Xen platform device             0x92 0xcf9 reset                  0xb004 PM1 control, 0xafe0 GPE0
slot 3   VGA                             slot 4 on: network cards
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from bivisor.abi.xen import ioreq
from bivisor.abi.xen.xen import ShutdownReason
from bivisor.dom0.control import Control
from bivisor.dom0.hvm.cards import HvmNic, HvmVga, rom_region
from bivisor.dom0.hvm.memory import ForeignMemory, ForeignWindows
from bivisor.dom0.hvm.model import IoreqClient
from bivisor.dom0.hvm.unplug import PORT, PORTS, PlatformDevice, Unplug, UnplugPorts
from bivisor.memory import MemoryRegion
from bivisor.platform import acpi_pm, i8237, reset, serial
from bivisor.platform.ahci import Ahci
from bivisor.platform.bus import mmio_bus, port_bus
from bivisor.platform.events import Event, PowerOff
from bivisor.platform.i440fx import bridges
from bivisor.platform.ide import PiixIde
from bivisor.platform.ide.disk import AtaDisk
from bivisor.platform.ide.drive import Drive
from bivisor.platform.pci import PciBus
from bivisor.platform.pci.bus import ADDRESS_PORT, PciConfigPorts
from bivisor.platform.pci.bus import PORTS as CONFIG_PORTS
from bivisor.platform.ps2 import Ps2Controller
from bivisor.platform.ps2.controller import COMMAND_PORT, DATA_PORT, KEYBOARD_IRQ, MOUSE_IRQ
from bivisor.platform.virtio.net import NetBackend
from bivisor.platform.watched import watch_buses
from bivisor.xen.errors import XenError

COM1_PORT, COM1_IRQ = 0x3F8, 4
PIIX_SLOT, PLATFORM_SLOT, VGA_SLOT, FIRST_FREE_SLOT = 1, 2, 3, 4
CMOS_PORT = 0x70
S5_TYPE = 0


@dataclass(frozen=True, slots=True)
class BoardOptions:
    """`console` takes what the guest writes to COM1, `say` what goes to the log. `boot` is as in xl.cfg(5): a for
    floppy, c for hard disk, d for CD-ROM, n for network."""

    console: Callable[[bytes], None]
    say: Callable[[bytes], None]
    vga_rom: bytes
    memory: int
    boot: str = "c"
    vcpus: int = 1


class HvmBoard:
    """The devices of domain `domid`. Made, used and closed with the loop's lock held."""

    def __init__(self, control: Control, domid: int, options: BoardOptions) -> None:
        self._control = control
        self._domid = domid
        self._options = options
        self._emulation = emulation = control.emulation
        loop = control.loop
        self.loop = loop
        self.memory = ForeignMemory(control, domid)
        self._windows = ForeignWindows(control, domid)
        self.ports, self.mmio = port_bus(), mmio_bus()
        self._site = watch_buses(control.events, domid, (self.ports, self.mmio))
        self._pins: dict[tuple[int, int], int] = {}
        self._nics: list[HvmNic] = []
        self._nic_rom: MemoryRegion | None = None
        self._ahci: Ahci | None = None
        self._held: dict[object, Callable[[], None]] = {}

        def line(irq: int) -> Callable[[bool], None]:
            return partial(self._set_irq, irq)

        self.com1 = serial.Serial(options.console, line(COM1_IRQ), loop)
        self.pm = acpi_pm.AcpiPm(loop, lambda _: None, self._on_event, s5_type=S5_TYPE)
        self.ps2 = Ps2Controller(line(KEYBOARD_IRQ), line(MOUSE_IRQ), self._on_event, lambda _: None)
        self.unplug = UnplugPorts(self._unplug, options.say)
        self.pci = PciBus(
            self.ports,
            self.mmio,
            set_irq=self._set_irq,
            signal_msi=partial(emulation.inject_msi, domid),
            host_bridge=bridges.HostBridge(options.memory),
            set_pin=self._set_pin,
        )
        self.ide = PiixIde(self.memory, self._set_irq)
        self.vga = HvmVga(loop, self._windows, options.vga_rom)
        self.pci.add(bridges.IsaBridge(_Links(partial(emulation.set_pci_link, domid))), PIIX_SLOT)
        self.pci.add(self.ide, PIIX_SLOT, 1)
        self.pci.add(bridges.PowerManagement(port_bus(), self.pm), PIIX_SLOT, 3)  # its ports are at fixed places here
        self.pci.add(PlatformDevice(), PLATFORM_SLOT)
        self.pci.add(self.vga, VGA_SLOT)
        self._attach()
        self.client = IoreqClient(control, domid, self.ports, self.mmio, self.pci)

    def _attach(self) -> None:
        ports, options = self.ports, self._options
        self.ide.attach(ports)
        self.vga.attach(ports, self.mmio)
        ports.attach(COM1_PORT, serial.PORTS, self.com1, "COM1")
        ports.attach(CMOS_PORT, 2, Cmos(_cmos(options.memory, options.vcpus, options.boot)), "CMOS")
        ports.attach(DATA_PORT, 1, self.ps2.data, "8042 data")
        ports.attach(COMMAND_PORT, 1, self.ps2.command, "8042 command")
        ports.attach(*i8237.FIRST_PORTS, i8237.I8237(1), "8237")
        ports.attach(*i8237.SECOND_PORTS, i8237.I8237(2), "8237 second")
        ports.attach(*i8237.PAGE_PORTS, i8237.PageRegisters(), "DMA pages")
        ports.attach(PORT, PORTS, self.unplug, "unplug")
        control = ioreq.ACPI_PM1A_CNT_BLK_ADDRESS_V1
        ports.attach(control, 4, _Part(self.pm, acpi_pm.PM1_CONTROL), "PM1a control")
        ports.attach(ioreq.ACPI_GPE0_BLK_ADDRESS_V1, ioreq.ACPI_GPE0_BLK_LEN_V1, _Part(self.pm, acpi_pm.GPE0), "GPE0")
        config = PciConfigPorts(self.pci, reset.ResetControl(self._on_event))
        ports.attach(ADDRESS_PORT, CONFIG_PORTS, config, "PCI configuration")
        ports.attach(reset.FAST_RESET_PORT, 1, reset.FastReset(self._on_event), "port 0x92")

    def add_drive(self, drive: Drive, place: int, close: Callable[[], None]) -> None:
        """Plug in an IDE drive: 0 and 1 are the primary channel's, 2 and 3 the secondary's. `close` is called when it
        is unplugged, or the board goes."""
        self.ide.add_drive(drive, place)
        self._held[drive] = close

    def add_sata_disk(self, disk: AtaDisk, close: Callable[[], None]) -> None:
        """Plug a disk into an AHCI controller, which comes with the first; `close` as above."""
        if self._ahci is None:
            self._ahci = Ahci(self.memory)
            self.pci.add(self._ahci)
        self._ahci.add_drive(disk)
        self._held[disk] = close

    def add_nic(self, wire: NetBackend, mac: str, close: Callable[[], None], rom: bytes = b"") -> None:
        """Plug in a network card, with `rom` to boot from; `close` as above."""
        if rom and self._nic_rom is None:
            self._nic_rom = rom_region(rom, "bivisor-nic-rom")
        card = HvmNic(self.memory, wire, mac, self.loop)
        if rom and self._nic_rom is not None:
            card.show_rom(self._windows, self._nic_rom, f"ROM of card {len(self._nics)}")
        self.pci.add(card)
        self._nics.append(card)
        self._held[card] = close

    def start(self) -> None:
        """Everything is plugged in: take the guest's accesses."""
        self.client.start(self._options.vcpus)

    # ---------------------------------------------------------------- to Xen

    def _set_irq(self, irq: int, level: bool) -> None:
        try:
            self._emulation.set_isa_irq(self._domid, irq, level)
        except XenError:  # the domain is going
            return

    def _set_pin(self, slot: int, pin: int, bit: int, level: bool) -> None:
        """A pin is up while any function of its slot holds it."""
        before = self._pins.get((slot, pin), 0)
        after = self._pins[slot, pin] = before | bit if level else before & ~bit
        if bool(before) == bool(after):
            return
        try:
            self._emulation.set_pci_intx(self._domid, slot, pin - 1, bool(after))
        except XenError:  # the domain is going
            return

    def _on_event(self, event: Event) -> None:
        self.com1.flush()
        reason = ShutdownReason.POWEROFF if isinstance(event, PowerOff) else ShutdownReason.REBOOT
        self._emulation.shut_down(self._domid, reason)

    # ---------------------------------------------------------------- unplug

    def _unplug(self, what: Unplug) -> None:
        """The guest's PV drivers take over: controllers and CD-ROM drives stay, as in QEMU."""
        if what & Unplug.IDE_DISKS and self._ahci is not None:
            for port in self._ahci.ports:
                if port.drive is not None:
                    self._held.pop(port.drive)()
                    port.unplug()
        if what & (Unplug.IDE_DISKS | Unplug.AUX_IDE_DISKS):
            first = 0 if what & Unplug.IDE_DISKS else 1
            for number, channel in enumerate(self.ide.channels):
                for place, drive in enumerate(channel.drives):
                    if isinstance(drive, AtaDisk) and number * 2 + place >= first:
                        channel.drives[place] = None
                        self._held.pop(drive)()
            self.ide.forget_setup()
        if what & Unplug.NICS:
            for card in self._nics:
                self.pci.remove(card)
                self._held.pop(card)()
            self._nics.clear()
        self._options.say(f"unplugged {what.name} for drivers of product {self.unplug.product}".encode())

    def close(self) -> None:
        """Take no more accesses, and give everything back."""
        with ExitStack() as last_first:
            for close in self._held.values():
                last_first.callback(close)
            if self._nic_rom is not None:
                last_first.callback(self._nic_rom.close)
            last_first.callback(self.pci.close)
            last_first.callback(self._control.events.remove, self._site)
            for device in (self.pm, self.com1, self._windows, self.client):
                last_first.callback(device.close)


class _Links:
    """The PIRQ registers of the ISA bridge are Xen's to carry out."""

    def __init__(self, set_link: Callable[[int, int], None]) -> None:
        self._set_link = set_link

    def route(self, pirq: int, value: int) -> None:
        self._set_link(pirq, 0 if value & 0x80 else value & 15)


class _Part:
    """A part of the power management block, from `start` on."""

    def __init__(self, pm: acpi_pm.AcpiPm, start: int) -> None:
        self._pm = pm
        self._start = start

    def read(self, offset: int, size: int) -> int:
        return self._pm.read(self._start + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._pm.write(self._start + offset, size, value)


class Cmos:
    """The RAM of the RTC: Xen answers for the clock's registers, the first 14 bytes."""

    def __init__(self, content: Mapping[int, int]) -> None:
        self._index = 0
        self._ram = bytearray(128)
        for index, value in content.items():
            self._ram[index] = value

    def read(self, offset: int, size: int) -> int:
        """The byte that the index selects."""
        return self._ram[self._index] if offset else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """The index, or the byte there."""
        if offset:
            self._ram[self._index] = value & 0xFF
        else:
            self._index = value & 0x7F


_BOOT_CODES = {"a": 1, "c": 2, "d": 3, "n": 4}


def _cmos(size: int, cpus: int, boot: str) -> dict[int, int]:
    """What firmware looks for: memory sizes, equipment, the order of booting (Ralf Brown's list, cmos.lst)."""
    low = min(size, 0xC000_0000)
    extended = min((low >> 10) - 1024, 0xFFFF)
    above_16 = min(max(low - (16 << 20), 0) >> 16, 0xFFFF)
    above_4g = max(size - 0xC000_0000, 0) >> 16
    order = [_BOOT_CODES[letter] for letter in boot[:3]] + [0, 0, 0]
    century = time.gmtime().tm_year // 100
    return {
        0x14: 0x06, 0x15: 640 & 0xFF, 0x16: 640 >> 8, 0x17: extended & 0xFF, 0x18: extended >> 8,
        0x30: extended & 0xFF, 0x31: extended >> 8, 0x34: above_16 & 0xFF, 0x35: above_16 >> 8,
        0x5B: above_4g & 0xFF, 0x5C: above_4g >> 8 & 0xFF, 0x5D: above_4g >> 16 & 0xFF, 0x5F: cpus - 1,
        0x38: order[2] << 4 | 1, 0x3D: order[1] << 4 | order[0], 0x32: century // 10 << 4 | century % 10,
    }  # fmt: skip
