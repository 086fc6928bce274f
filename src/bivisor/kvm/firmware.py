"""A virtual machine that boots as a PC does: from its firmware, whose images stand at the top of the first 4 GiB.

The processor begins at F000:FFF0, and the firmware finds the disks. See `platform/i440fx/board.py` for the hardware.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from bivisor.cpu.windows import MachineWindows
from bivisor.errors import ImageError, UsageError
from bivisor.kvm.vm import MIB, VirtualMachine
from bivisor.memory import PAGE, GuestMemory, MemoryRegion, Slot
from bivisor.platform import i8254, port61
from bivisor.platform.board import Board
from bivisor.platform.flash import Flash, Store
from bivisor.platform.fwcfg import DirectKernel
from bivisor.platform.hpet import Hpet, TimerLine
from bivisor.platform.i440fx.board import BoardOptions, I440fxBoard, Site
from bivisor.platform.ide.drive import Drive
from bivisor.platform.irqchip import TIMER_GSI, PcIrqChip

ADAPTER = (0xA_0000, 0xC_0000)
_END, _BELOW_1M = 1 << 32, 1 << 20
_SHADOW = 0x2_0000
_MEMORY_LEAST = 8 * MIB


class Variables(Store, Protocol):
    """The content of the flash below UEFI firmware, which outlives the machine."""

    def load(self) -> bytes:
        """All of it: whole blocks of 4 KiB."""


@dataclass(frozen=True, slots=True)
class Firmware:
    """The BIOS or UEFI code, of 64 KiB to 8 MiB, the video BIOS, and UEFI's variables."""

    bios: bytes
    vga: bytes
    variables: Variables | None = None


def _ignore(data: bytes) -> None:
    pass


@dataclass(frozen=True, slots=True)
class PcSettings:
    """What a `FirmwareMachine` is made of beside memory and processors."""

    firmware: Firmware
    log: Callable[[bytes], None] = _ignore
    uuid: uuids.UUID = field(default_factory=uuids.uuid4)
    boot_menu: bool = False
    kernel: DirectKernel | None = None


class FirmwareMachine(VirtualMachine):
    """An i440FX PC. Plug in drives and devices, `power_on()`, `start()` and `wait()`. A guest that resets itself ends
    it, with `End.RESET`: whoever made it makes another."""

    def __init__(self, settings: PcSettings, *, memory: int = 256 * MIB, **rest: object) -> None:
        if memory < _MEMORY_LEAST:
            raise UsageError(f"a PC with firmware needs {_MEMORY_LEAST >> 20} MiB of memory at least")
        bios = settings.firmware.bios
        if not 1 << 16 <= len(bios) <= 8 << 20 or len(bios) % PAGE:
            raise ImageError(f"a BIOS of {len(bios)} bytes: it has 64 KiB to 8 MiB, in whole pages")
        self._settings = settings
        self._rom: MemoryRegion | None = None
        super().__init__(memory=memory, **rest)  # type: ignore[arg-type]

    def _make_memory(self, size: int) -> GuestMemory:
        memory = GuestMemory(size, gap=ADAPTER)
        bios = self._settings.firmware.bios
        rom = self._rom = MemoryRegion(len(bios), "bivisor-bios")
        self._held.callback(rom.close)
        rom.view[:] = bios
        memory.add(Slot(_END - len(bios), len(bios), rom))
        shadow = bios[-_SHADOW:]
        memory.write(_BELOW_1M - len(shadow), shadow)
        return memory

    def _make_board(self, cpus: int, debug_exit_port: int) -> Board:
        set_irq, timer_gsi, hpet = self._interrupts()
        windows = self.windows = MachineWindows(self.machine, self.memory)
        site = Site(
            self.ports,
            self.mmio,
            self.memory,
            self.memory.size,
            self.loop,
            set_irq,
            self.machine.signal_msi,
            windows,
            self.machine.set_a20,
            self.machine,
        )
        options = BoardOptions(
            cpus=cpus,
            timer_gsi=timer_gsi,
            debug_exit_port=debug_exit_port,
            vga_rom=self._settings.firmware.vga,
            firmware_log=self._settings.log,
            uuid=self._settings.uuid,
            boot_menu=self._settings.boot_menu,
            hpet=hpet,
            kernel=self._settings.kernel,
        )
        self.board = I440fxBoard(site, options, console=self._com1, on_event=self._event)
        if self._settings.firmware.variables is not None:
            self._add_flash(self._settings.firmware.variables)
        return self.board

    def _add_flash(self, variables: Variables) -> None:
        """Flash with `variables` right below the code, which finds it there."""
        content = variables.load()
        region = MemoryRegion(len(content), "bivisor-flash")
        self._held.callback(region.close)
        array = region.view[:]
        self._held.callback(array.release)
        array[:] = content
        slot = Slot(_END - len(self._settings.firmware.bios) - len(content), len(content), region, readonly=True)
        flash = Flash(array, variables, lambda shown: self.windows.show_rom("flash", slot if shown else None))
        self.mmio.attach(slot.gpa, slot.size, flash, "flash")

    def _interrupts(self) -> tuple[Callable[[int, bool], None], int, Hpet]:
        """Interrupt controllers and timers; the function that sets a line, and the timer's input of the I/O APIC."""
        machine = self.machine
        if machine.irqchip == "kernel":
            return machine.set_irq, 0, Hpet(self.loop, machine.set_irq)  # the 8254 is in the kernel, and stays
        chip = PcIrqChip(machine.set_intr, machine.signal_msi, self.loop.lock)
        chip.attach(self.ports, self.mmio)
        machine.connect_irqchip(chip)
        line = TimerLine(partial(chip.set_irq, 0))
        pit = i8254.I8254(self.loop, line.pit)
        self._behind_devices.callback(pit.close)
        self.ports.attach(i8254.BASE_PORT, i8254.PORTS, pit, "8254")
        self.ports.attach(port61.PORT, 1, port61.Port61(pit.channels[2], self.loop), "port 0x61")
        return chip.set_irq, TIMER_GSI, Hpet(self.loop, chip.set_irq, line)

    def add_drive(self, drive: Drive, place: int) -> None:
        """Plug in an IDE drive: 0 and 1 are the primary channel's, 2 and 3 the secondary's."""
        self.board.ide.add_drive(drive, place)

    def power_on(self) -> None:
        """All is plugged in: the processors are as after a reset."""
        self.pc.finish()
        self._set_cpuid()

    def _close_board(self) -> None:
        with self.loop.lock:
            self.windows.close()
        super()._close_board()
