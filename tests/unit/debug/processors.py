"""Processors that are nothing but registers, for what a debugger makes of several that stop at the same time."""

from __future__ import annotations

from typing import cast

from bivisor.abi.x86 import Vector
from bivisor.cpu.contract import Vcpu
from bivisor.cpu.exits import Debug
from bivisor.cpu.registers import Events, Fpu, GuestDebug, Regs, Sregs
from bivisor.cpu.runcontrol import RunControl
from bivisor.debug.target import Target
from bivisor.memory import PAGE, GuestMemory

PLACE, OTHER = 0x100, 0x200


class Processor:
    """See `contract.Vcpu`: what a debugger uses of one. Its stack tells which it is."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.regs = Regs(rip=PLACE, rsp=0x1000 * (index + 1))
        self.debug = GuestDebug()
        self.events = Events()

    def get_regs(self) -> Regs:
        """See `Vcpu.get_regs`."""
        return self.regs

    def get_sregs(self) -> Sregs:
        """See `Vcpu.get_sregs`."""
        return Sregs()

    def get_fpu(self) -> Fpu:
        """See `Vcpu.get_fpu`."""
        return Fpu()

    def get_events(self) -> Events:
        """See `Vcpu.get_events`."""
        return self.events

    def set_events(self, events: Events) -> None:
        """See `Vcpu.set_events`."""
        self.events = events

    def set_debug(self, debug: GuestDebug) -> None:
        """See `Vcpu.set_debug`."""
        self.debug = debug

    def translate(self, linear: int) -> int:
        """See `Vcpu.translate`: there is no paging."""
        return linear

    def kick(self) -> None:
        """See `Vcpu.kick`: it is in no guest."""


class Machine:
    """Two of them, in threads of nobody's, with a page of memory; `target` as for engine `kvm`."""

    def __init__(self) -> None:
        self.processors = [Processor(index) for index in range(2)]
        vcpus = cast(list[Vcpu], self.processors)
        self.control = RunControl(vcpus)
        self.memory = GuestMemory(PAGE)
        self.target = Target(vcpus, self.memory, self.control, "kvm")

    def comes_to(self, index: int, linear: int) -> None:
        """A processor comes to the INT3 at `linear`."""
        processor = self.processors[index]
        processor.regs.rip = linear
        self.control.hit(cast(Vcpu, processor), Debug(Vector.BP, linear, 0, 0))

    def has_stepped(self, index: int) -> None:
        """A processor has carried out one instruction, of one byte."""
        processor = self.processors[index]
        processor.regs.rip += 1
        self.control.hit(cast(Vcpu, processor), Debug(Vector.DB, processor.regs.rip, 0x4000, 0))

    def may_enter(self, index: int) -> bool:
        """Whether a processor may run."""
        return self.control.is_open(cast(Vcpu, self.processors[index]))
