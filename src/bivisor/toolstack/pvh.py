"""Builds a PVH domain: loads its kernel, gives it its console and store rings, and tells Xen of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bivisor import boot
from bivisor.abi.xen import xen as abi
from bivisor.cpu.contract import Engine
from bivisor.dom0.control import Control
from bivisor.host.falloc import punch_hole
from bivisor.host.threads import sleeps
from bivisor.memory import PAGE, GuestMemory
from bivisor.platform.acpi import build_reduced_tables
from bivisor.xen.domain import Domain, State
from bivisor.xen.guest import PvhGuest

_SPECIAL_PAGES = 4
_CONSOLE, _STORE = 0, 1
_E820_RAM, _E820_RESERVED = 1, 2
_LOW_END, _HIGH_START = 0x9FC00, 0x100000


class PvhDomain:
    """A PVH domain that is built and paused. `start()` lets it run; `close()` destroys it and gives everything back."""

    def __init__(
        self,
        control: Control,
        engine: Engine,
        kernel: Path,
        *,
        memory: int,
        initrd: Path | None = None,
        cmdline: str = "",
        cache: boot.Cache | None = None,
        vcpus: int = 1,
    ) -> None:
        self.control = control
        with contextlib.ExitStack() as undo:
            ram = GuestMemory(memory, name="bivisor-domu")
            undo.callback(ram.close)
            self.guest = PvhGuest(control.xen, engine, ram, punch_hole, vcpus)
            self.guest.sleeps = sleeps
            self.domain: Domain = control.xen.create_domain(ram, upcall=self.guest, vcpus=vcpus)
            self.domid = self.domain.domid
            self.guest.attach(self.domain)
            undo.pop_all()
            undo.callback(self.close)
            first = _special(ram)
            tables = build_reduced_tables(vcpus)
            entry = boot.load(
                ram,
                kernel,
                initrd=initrd,
                cmdline=cmdline,
                protocol=boot.PVH,
                rsdp=tables.rsdp,
                reserve=[(first * PAGE, _SPECIAL_PAGES * PAGE)],
                cache=cache,
            )
            ram.write(tables.base, tables.image)
            for taken in entry.layout:
                if taken.name == "kernel":
                    self.guest.loaded(taken.gpa, taken.size)
            self.domain.memory_map = _memory_map(ram, first)
            self.console_gfn, self.store_gfn = first + _CONSOLE, first + _STORE
            self.console_port = control.alloc_unbound_for(self.domid)
            self.store_port = control.alloc_unbound_for(self.domid)
            for index, value in (
                (abi.HvmParam.CONSOLE_PFN, self.console_gfn),
                (abi.HvmParam.CONSOLE_EVTCHN, self.console_port),
                (abi.HvmParam.STORE_PFN, self.store_gfn),
                (abi.HvmParam.STORE_EVTCHN, self.store_port),
            ):
                control.set_param(self.domid, index, value)
            self.guest.vcpu.set_sregs(entry.sregs)
            self.guest.vcpu.set_regs(entry.regs)
            undo.pop_all()

    def start(self) -> None:
        """Unpause it."""
        self.guest.start()

    def close(self) -> None:
        """Stop it, destroy the domain and give back its memory, when nobody has any of it mapped any more."""
        self.guest.stop()
        xen = self.control.xen
        with xen.lock:
            xen.destroy(self.domain)
            if self.domain.state is not State.GONE:
                # The last who lets go does so in a hypercall, with the lock held; what is to be closed takes it too.
                self.domain.on_gone.append(lambda _: xen.call_later(0, self.guest.close))
                return
        self.guest.close()


def _special(memory: GuestMemory) -> int:
    """The first of the frames at the end of low RAM that hold the rings."""
    start, length = memory.ram_ranges[0]
    return (start + length) // PAGE - _SPECIAL_PAGES


def _memory_map(memory: GuestMemory, special: int) -> tuple[tuple[int, int, int], ...]:
    """What XENMEM_memory_map says: as the loader's, with the rings reserved."""
    start, length = memory.ram_ranges[0]
    end = start + length
    low = (
        (0, _LOW_END, _E820_RAM),
        (_LOW_END, _HIGH_START - _LOW_END, _E820_RESERVED),
        (_HIGH_START, special * PAGE - _HIGH_START, _E820_RAM),
        (special * PAGE, end - special * PAGE, _E820_RESERVED),
    )
    return (*low, *((at, size, _E820_RAM) for at, size in memory.ram_ranges[1:]))
