"""Breakpoints on a KVM from which INT3 does not come out: one that interprets, or whose processor is an emulator's.

An OUT comes out of every KVM. OUT DX, AL is one byte long, as INT3 is, so it can stand where an INT3 would: at CPL 0 it
leaves the guest, with whatever port is in DX, and the guest is taken back to before it. A port of a device of KVM's own
(the 8259s and the 8254, where they are in the kernel) does not come out: then the breakpoint is missed, and its
instruction with it. At CPL 3 it is #GP.
"""

from __future__ import annotations

from typing import Final, Protocol

from bivisor.abi.x86 import Vector
from bivisor.cpu.contract import ExitHandler
from bivisor.cpu.exits import Debug, Direction, Exit, PortIo
from bivisor.cpu.registers import Regs

OUT: Final = b"\xee"


class _Processor(Protocol):
    def run(self, handler: ExitHandler | None = None) -> Exit: ...
    def complete(self) -> None: ...
    def get_regs(self) -> Regs: ...
    def set_regs(self, regs: Regs) -> None: ...


def run(vcpu: _Processor, handler: ExitHandler | None, outs: frozenset[int]) -> Exit:
    """`Vcpu.run`, which comes back with `Debug` from an OUT at one of `outs`."""
    found: list[int] = []

    def look(exit_: Exit) -> bool:
        if type(exit_) is PortIo and exit_.direction is Direction.OUT and exit_.size == exit_.count == 1:
            rip = vcpu.get_regs().rip
            # Some KVMs are behind the instruction by now, others only when the guest goes on.
            at = rip if rip in outs else rip - 1
            if at in outs:
                found.append(at)
                return False
        return handler is not None and handler(exit_)

    exit_ = vcpu.run(look)
    if not found:
        return exit_
    vcpu.complete()
    regs = vcpu.get_regs()
    regs.rip = found[0]
    vcpu.set_regs(regs)
    return Debug(Vector.BP, found[0], 0, 0)
