"""Builds a PVH domain: loads its kernel, gives it its console and store rings, and tells Xen of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bivisor import boot
from bivisor.abi.xen import xen as abi
from bivisor.boot.placement import memory_map
from bivisor.cpu.contract import Engine
from bivisor.dom0.control import Control
from bivisor.host.falloc import punch_hole
from bivisor.host.threads import sleeps
from bivisor.memory import PAGE, GuestMemory
from bivisor.platform.acpi import build_reduced_tables
from bivisor.xen.domain import Domain
from bivisor.xen.guest import PvhGuest

_SPECIAL_GFN, _SPECIAL_PAGES = 0xFEFF8, 8
_STORE, _CONSOLE = 0, 1
_SPECIAL = (_SPECIAL_GFN * PAGE, _SPECIAL_PAGES * PAGE)
"""Where Xen's own toolstack puts the rings of a domain: beside its RAM, which is all the guest's."""


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
            tables = build_reduced_tables(vcpus)
            entry = boot.load(
                ram,
                kernel,
                initrd=initrd,
                cmdline=cmdline,
                protocol=boot.PVH,
                rsdp=tables.rsdp,
                reserve=[_SPECIAL],
                cache=cache,
            )
            ram.write(tables.base, tables.image)
            for taken in entry.layout:
                if taken.name == "kernel":
                    self.guest.loaded(taken.gpa, taken.size)
            self.domain.memory_map = tuple((e.base, e.size, e.type) for e in memory_map(ram.ram_ranges, [_SPECIAL]))
            self.console_gfn, self.store_gfn = _SPECIAL_GFN + _CONSOLE, _SPECIAL_GFN + _STORE
            for gfn in (self.console_gfn, self.store_gfn):
                self.domain.frame_for(gfn)
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
        xen.destroy(self.domain)
        xen.when_gone(self.domain, self.guest.close)
