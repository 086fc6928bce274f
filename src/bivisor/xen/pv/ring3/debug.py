"""A debugger's view of a PV domain's processor on engine `kvm`, whose code at CPL 0 is no part of the guest.

A processor that is to be held is first let out of the stub, unless it blocks in a hypercall: then it is where that
returns to. INT3 and steps come by the stub (TRAP), and the frame that it shows is where the guest is. A step is
RFLAGS.TF, but at SYSCALL, which would lose it: that is done here, and ends where the processor comes out of the stub.
"""

from __future__ import annotations

from dataclasses import fields
from enum import IntEnum
from typing import Final, cast

from bivisor.abi.x86 import Rflags, Vector
from bivisor.cpu.contract import Vcpu
from bivisor.cpu.exits import Debug
from bivisor.cpu.kvm.live import LiveRegisters
from bivisor.cpu.registers import Events, Fpu, GuestDebug, Regs, Segment, Sregs
from bivisor.cpu.runcontrol import RunControl
from bivisor.errors import EngineError
from bivisor.xen.pv.ring3 import hidden as h
from bivisor.xen.pv.ring3.block import Block
from bivisor.xen.pv.ring3.machine import Ring3Machine
from bivisor.xen.pv.ring3.stub import ENTRIES, GUEST_CS, GUEST_SS

_NAMES: Final = tuple(field.name for field in fields(Regs))


class _Number(IntEnum):
    """Places in struct kvm_regs."""

    RCX = 2
    RSP = 6
    R11 = 11
    RIP = 16
    RFLAGS = 17


_FRAME: Final = {_Number.RCX: 1, _Number.R11: 2, _Number.RIP: 3, _Number.RFLAGS: 5, _Number.RSP: 6}
"""Where the frame has them after an exception without an error code."""
_CS, _SS = 4, 7
_TF: Final = int(Rflags.TF)
_BS: Final = 1 << 14
_SYSCALL: Final = (b"\x0f", b"\x05")
_CODE: Final = range(h.STUB, h.IDT)


class Ring3Debug:
    """See `contract.Vcpu`: what a debugger uses of one. For the processor's thread, and while it is held for others."""

    def __init__(self, vcpu: Vcpu, live: LiveRegisters, machine: Ring3Machine, control: RunControl) -> None:
        self._vcpu, self._live, self._words, self._machine, self._control = vcpu, live, live.words, machine, control
        self._block: Block = machine.private
        self.index = vcpu.index
        self.at_trap = False
        """Whether the stub has its exception, which the debugger took."""
        self.stepping = False
        """Whether one instruction is to be carried out, and nothing to come in between."""
        self._armed = False
        self._is_call = False
        """Whether what is to be carried out is a SYSCALL, and ends behind it."""

    # ---------------------------------------------------------------- what the thread asks

    @property
    def in_stub(self) -> bool:
        """Whether its processor is at CPL 0."""
        rip = self._words[_Number.RIP]
        return rip in _CODE or 0 <= rip - self._block.linear < h.BLOCK

    @property
    def has_to_come_out(self) -> bool:
        """Whether it is to be held, and is where nobody may see it."""
        return not self._control.is_open(self._vcpu) and not self.at_trap and self.in_stub

    def entering(self) -> bool:
        """The guest goes on. True where it is to come out as soon as it is at CPL 3."""
        if not self.stepping:
            self.at_trap = False
            return False
        if not self._armed:
            if not self.at_trap and self.in_stub:
                return True
            if self._is_at_syscall():
                self._system_call()
                self._is_call = True
                return True
            self._set_tf(True)
            self._armed = True
        self.at_trap = False
        return False

    def out_of_stub(self) -> bool:
        """The processor is at CPL 3 again, which ends a step, but where it only comes to where it was shown to be. True
        where it is to come out."""
        if self.stepping:
            if not self._armed and not self._is_call:
                return True
            if self._armed:
                self._set_tf(False)
            self._hit(Debug(Vector.DB, self._words[_Number.RIP], _BS, 0))
        return not self._control.is_open(self._vcpu)

    def takes(self, vector: int) -> bool:
        """Whether the debugger takes the exception that the stub shows; the guest is held then."""
        if self._control.on_hit is None:
            return False
        frame = self._block.frame
        if vector == Vector.BP:
            frame[3] -= 1
            self._stop_at_trap(Debug(Vector.BP, frame[3], 0, 0))
            return True
        if vector != Vector.DB or not self.stepping:
            return False
        frame[5] &= ~_TF
        self._stop_at_trap(Debug(Vector.DB, frame[3], _BS, 0))
        return True

    def _stop_at_trap(self, exit_: Debug) -> None:
        self.at_trap = True
        self._block.bounce(False)
        self._hit(exit_)

    def _hit(self, exit_: Debug) -> None:
        self.stepping = self._armed = self._is_call = False
        self._control.hit(cast(Vcpu, self), exit_)

    def _is_at_syscall(self) -> bool:
        linear = self._get(_Number.RIP)
        places = self._machine.translate(linear), self._machine.translate(linear + 1)
        memory = self._machine.domain.memory
        return all(
            place is not None and memory.contains(place, 1) and memory.read(place, 1) == byte
            for place, byte in zip(places, _SYSCALL, strict=True)
        )

    def _system_call(self) -> None:
        """Take the processor to where SYSCALL leads in the stub."""
        words, block = self._words, self._block
        if not self.at_trap:
            sregs = self._vcpu.get_sregs()
            sregs.cs = Segment.flat(h.CODE_SELECTOR, code=True, long=True)
            sregs.ss = Segment.flat(0, code=False)
            self._vcpu.set_sregs(sregs)
        rip, flags, rsp = (self._get(number) for number in (_Number.RIP, _Number.RFLAGS, _Number.RSP))
        self.at_trap = False
        block.give_back(h.GATE + 1, rsp)
        words[_Number.RCX], words[_Number.R11] = rip + len(_SYSCALL), flags
        words[_Number.RIP], words[_Number.RSP] = h.STUB + ENTRIES.system_call, block.top - 40
        words[_Number.RFLAGS] = Rflags.FIXED
        self._live.changed()

    def _set_tf(self, wanted: bool) -> None:
        value = self._get(_Number.RFLAGS)
        self._put(_Number.RFLAGS, value | _TF if wanted else value & ~_TF)

    # ---------------------------------------------------------------- what a debugger asks

    def _get(self, number: int) -> int:
        if self.at_trap and number in _FRAME:
            return int(self._block.frame[_FRAME[_Number(number)]])
        if self.in_stub:
            match number:
                case _Number.RIP:
                    return int(self._words[_Number.RCX])
                case _Number.RSP:
                    return int(self._block.frame[_FRAME[_Number.RSP]])
        return int(self._words[number])

    def _put(self, number: int, value: int) -> None:
        if self.at_trap and number in _FRAME:
            self._block.frame[_FRAME[_Number(number)]] = value
            return
        if self.in_stub and not self.at_trap:
            match number:
                case _Number.RIP:
                    number = _Number.RCX
                case _Number.RSP:
                    self._block.frame[_FRAME[_Number(number)]] = value
                    return
                case _Number.RCX | _Number.R11 | _Number.RFLAGS:
                    return
        self._words[number] = value
        self._live.changed()

    def get_regs(self) -> Regs:
        """See `Vcpu.get_regs`."""
        return Regs(*(self._get(number) for number in range(len(_NAMES))))

    def set_regs(self, regs: Regs) -> None:
        """See `Vcpu.set_regs`."""
        for number, name in enumerate(_NAMES):
            value = getattr(regs, name)
            if value != self._get(number):
                self._put(number, value)

    def get_sregs(self) -> Sregs:
        """See `Vcpu.get_sregs`."""
        sregs = self._vcpu.get_sregs()
        if self.at_trap:
            sregs.cs.selector, sregs.ss.selector = (self._block.frame[at] & 0xFFFF for at in (_CS, _SS))
        elif self.in_stub:
            sregs.cs.selector, sregs.ss.selector = GUEST_CS, GUEST_SS
        return sregs

    def set_sregs(self, sregs: Sregs) -> None:
        """The bases of FS and GS alone: the rest is the hypervisor's."""
        real = self._vcpu.get_sregs()
        real.fs.base, real.gs.base = sregs.fs.base, sregs.gs.base
        self._vcpu.set_sregs(real)

    def get_fpu(self) -> Fpu:
        """See `Vcpu.get_fpu`."""
        return self._vcpu.get_fpu()

    def set_fpu(self, fpu: Fpu) -> None:
        """See `Vcpu.set_fpu`."""
        self._vcpu.set_fpu(fpu)

    def get_msrs(self, indices: list[int]) -> dict[int, int]:
        """See `Vcpu.get_msrs`."""
        return self._vcpu.get_msrs(indices)

    def set_msrs(self, values: dict[int, int]) -> None:
        """EngineError: they are the hypervisor's."""
        raise EngineError("the MSRs of a PV domain's processor are the hypervisor's")

    @property
    def counters(self) -> dict[str, int]:
        """See `Vcpu.counters`."""
        return dict(self._vcpu.counters)

    def translate(self, linear: int) -> int | None:
        """See `Vcpu.translate`; with the kernel's page tables, which have its programs' part as well."""
        return self._machine.translate(linear)

    def get_events(self) -> Events:
        """Nothing that a debugger could see."""
        return Events()

    def set_events(self, events: Events) -> None:
        """An INT3 that is no breakpoint's is the guest's own."""
        if events.exception == Vector.BP and self.at_trap:
            self._block.frame[3] += 1
            self.at_trap = False
            self._block.bounce(True)

    def set_debug(self, debug: GuestDebug) -> None:
        """Steps; breakpoints are in memory. EngineError for an address without INT3."""
        if debug.addresses:
            raise EngineError("a PV domain on kvm has no debug registers for a debugger: use breakpoints in memory")
        if self._armed and not debug.single_step:
            self._set_tf(False)
            self._armed = False
        self._is_call = False
        self.stepping = debug.single_step

    def kick(self) -> None:
        """See `Vcpu.kick`."""
        self._vcpu.kick()
