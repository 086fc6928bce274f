"""Builds a PV domain: its kernel, page tables and start_info, its console and store rings, and tells Xen of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bivisor import boot
from bivisor.boot import xenpv
from bivisor.boot.xenframes import MachineFrames
from bivisor.cpu.contract import Engine
from bivisor.dom0.control import Control
from bivisor.host.falloc import punch_hole
from bivisor.host.threads import sleeps
from bivisor.toolstack.pvh import PvhDomain
from bivisor.xen.config import DomainConfig
from bivisor.xen.domain import Domain
from bivisor.xen.pv.guest import PvGuest
from bivisor.xen.pv.ring3.guest import Ring3Guest

_E820_RAM = 1


class PvDomain(PvhDomain):
    """A PV domain that is built and paused; see `PvhDomain`."""

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
            frames = MachineFrames.of(memory)
            ram = frames.memory("bivisor-domu-pv")
            undo.callback(ram.close)
            make = PvGuest if engine.name == "soft" else Ring3Guest
            guest = self.guest = make(control.xen, engine, ram, punch_hole, vcpus, frames)
            guest.sleeps = sleeps
            config = DomainConfig(max_vcpus=vcpus, flags=0, emulation_flags=0)
            self.domain: Domain = control.xen.create_domain(
                ram, upcall=guest, vcpus=vcpus, max_pages=frames.count, config=config
            )
            self.domid = self.domain.domid
            guest.attach(self.domain)
            undo.pop_all()
            undo.callback(self.close)
            self.domain.memory_map = ((0, memory, _E820_RAM),)
            self.console_port = control.alloc_unbound_for(self.domid)
            self.store_port = control.alloc_unbound_for(self.domid)
            ports = xenpv.Ports(self.store_port, self.console_port, guest.shared_mfn)
            entry = xenpv.build(ram, kernel, ports, initrd=initrd, cmdline=cmdline, cache=cache, frames=frames)
            self.console_gfn, self.store_gfn = entry.console, entry.store
            guest.fill_hypercall_page(entry.hypercall_page)
            guest.begin(entry.rip, entry.rsi, entry.rsp, entry.page_table)
            undo.pop_all()
