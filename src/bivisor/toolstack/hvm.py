"""Builds an HVM domain: memory with its BIOS and tables, the device model, its drives and cards, its rings."""

from __future__ import annotations

import contextlib
import struct
import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass, replace

from bivisor.abi.xen import domctl
from bivisor.abi.xen import xen as abi
from bivisor.cpu.contract import Engine
from bivisor.dom0.control import Control
from bivisor.dom0.hvm.board import BoardOptions, HvmBoard
from bivisor.errors import HostError, UsageError
from bivisor.host.falloc import punch_hole
from bivisor.host.threads import sleeps
from bivisor.image.firmware import network_rom, seabios
from bivisor.memory import PAGE, GuestMemory
from bivisor.platform.ide import AtaDisk
from bivisor.platform.ide.drive import Drive
from bivisor.platform.virtio.net import NetBackend
from bivisor.toolstack import hvmloader
from bivisor.toolstack.hvmloader import smbios
from bivisor.toolstack.pvh import PvhDomain
from bivisor.xen.config import DomainConfig
from bivisor.xen.domain import Domain
from bivisor.xen.hvm.guest import HvmGuest
from bivisor.xen.hvm.thread import STRING_GFN

_SPECIAL_GFN = 0xFEFF8
_STORE, _CONSOLE = 0, 1
_ADAPTER = (0xA_0000, 0xC_0000)
_MEMORY_LEAST = 16 << 20
IDE_PLACES = 4


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a person chose of it. `serial` takes what the guest writes to COM1, `say` what the device model logs."""

    uuid: uuids.UUID
    serial: Callable[[bytes], None]
    say: Callable[[bytes], None]
    boot: str = "c"


class HvmDomain(PvhDomain):
    """An HVM domain that is built and paused; see `PvhDomain`. Drives and cards are plugged in before `power_on`."""

    def __init__(self, control: Control, engine: Engine, *, memory: int, hardware: Hardware, vcpus: int = 1) -> None:
        if memory < _MEMORY_LEAST:
            raise UsageError(f"an HVM domain needs {_MEMORY_LEAST >> 20} MiB of memory at least")
        bios, vga = seabios()
        self.control = control
        self._bios = bios.read_bytes()
        self._uuid = hardware.uuid
        self._vcpus = vcpus
        self._engine = engine
        self.board: HvmBoard | None = None
        with contextlib.ExitStack() as undo:
            ram = GuestMemory(memory, name="bivisor-domu-hvm", gap=_ADAPTER)
            undo.callback(ram.close)
            guest = self.guest = HvmGuest(control.xen, engine, ram, punch_hole, vcpus)
            guest.sleeps = sleeps
            self._devices = guest.devices
            config = DomainConfig(max_vcpus=vcpus, emulation_flags=domctl.X86_EMU_HVM)
            self.domain: Domain = control.xen.create_domain(ram, upcall=guest, vcpus=vcpus, config=config)
            self.domid = self.domain.domid
            guest.attach(self.domain)
            undo.pop_all()
            undo.callback(self.close)
            self._ram = ram
            self._special_pages()
            with control.loop.lock:
                self.board = HvmBoard(
                    control,
                    self.domid,
                    BoardOptions(hardware.serial, hardware.say, vga.read_bytes(), memory, hardware.boot, vcpus),
                )
            undo.pop_all()

    def _special_pages(self) -> None:
        """The rings, and the page of string instructions."""
        self.console_gfn, self.store_gfn = _SPECIAL_GFN + _CONSOLE, _SPECIAL_GFN + _STORE
        for gfn in (self.console_gfn, self.store_gfn, STRING_GFN):
            self.domain.frame_for(gfn)
        self.console_port = self.control.alloc_unbound_for(self.domid)
        self.store_port = self.control.alloc_unbound_for(self.domid)
        for index, value in (
            (abi.HvmParam.CONSOLE_PFN, self.console_gfn),
            (abi.HvmParam.CONSOLE_EVTCHN, self.console_port),
            (abi.HvmParam.STORE_PFN, self.store_gfn),
            (abi.HvmParam.STORE_EVTCHN, self.store_port),
            (abi.HvmParam.ACPI_IOPORTS_LOCATION, 1),
        ):
            self.control.set_param(self.domid, index, value)

    def add_drive(self, drive: Drive, place: int, close: Callable[[], None]) -> None:
        """Plug in an IDE drive at `place` (0 to 3), which holds what `close` gives back."""
        assert self.board is not None
        with self.control.loop.lock:
            self.board.add_drive(drive, place, close)

    def add_sata_disk(self, disk: AtaDisk, close: Callable[[], None]) -> None:
        """Plug a disk into an AHCI controller; `close` as above."""
        assert self.board is not None
        with self.control.loop.lock:
            self.board.add_sata_disk(disk, close)

    def add_nic(self, wire: NetBackend, mac: str, close: Callable[[], None]) -> None:
        """Plug in an emulated network card, which holds what `close` gives back."""
        assert self.board is not None
        rom = _network_rom()
        with self.control.loop.lock:
            self.board.add_nic(wire, mac, close, rom)

    def type_serial(self, data: bytes) -> None:
        """Bytes typed at the other end of COM1. With the loop's lock held."""
        assert self.board is not None
        self.board.com1.receive(data)

    def power_on(self) -> None:
        """Everything is plugged in: put the firmware into memory, and the processor at its start."""
        assert self.board is not None
        with self.control.loop.lock:
            memory = hvmloader.LowMemory(self._ram.size, self._ram.write, self._populate)
            devices = self._devices
            chipset = hvmloader.Chipset(devices.gsis, devices.timer_gsi, devices.hpet.capabilities)
            hvmloader.load(memory, self.board.pci, self._bios, self._facts(), chipset)
            self.board.start()
        self.domain.memory_map = hvmloader.e820(self._ram.size)
        vcpu = self.guest.vcpu
        sregs = vcpu.get_sregs()
        vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0xF_0000)))

    def _populate(self, gpa: int, data: bytes) -> None:
        for at in range(0, len(data), PAGE):
            page = self.domain.frame_for((gpa + at) // PAGE)
            page[: len(data) - at] = data[at : at + PAGE]

    def _facts(self) -> smbios.Facts:
        leaves = {entry.leaf: entry for entry in self.guest.vcpu.get_cpuid()}
        vendor = leaves[0]
        names = {b"GenuineIntel": "Intel", b"AuthenticAMD": "AMD"}
        version = self.control.version()
        return smbios.Facts(
            vcpus=self._vcpus,
            memory=self._ram.size,
            uuid=self._uuid,
            xen=f"{version.major}.{version.minor}{version.extra}",
            mhz=min(0xFFFF, self._engine.tsc_khz() // 1000),
            maker=names.get(struct.pack("<3I", vendor.ebx, vendor.edx, vendor.ecx), "unknown"),
            signature=(leaves[1].eax, leaves[1].edx),
        )

    def close(self) -> None:
        """See `PvhDomain.close`."""
        self.guest.stop()
        if self.board is not None:
            with self.control.loop.lock:
                self.board.close()
        super().close()


def _network_rom() -> bytes:
    """iPXE; nothing where it cannot be had, for a card without it is as good to whoever boots from a disk."""
    try:
        return network_rom().read_bytes()
    except HostError:
        return b""
