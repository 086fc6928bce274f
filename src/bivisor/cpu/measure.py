"""How fast an engine is on this host: guest code at CPL0, and one exit. Each takes a few milliseconds.

A `/dev/kvm` that opens need not be hardware virtualization: some interpret the guest's kernel mode. Only a stopwatch
tells.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bivisor.abi.x86 import Cr0
from bivisor.cpu.contract import Engine, Vcpu
from bivisor.cpu.exits import Debug, Exit, Interrupted, PortIo
from bivisor.cpu.registers import GuestDebug, Regs, Segment
from bivisor.errors import EngineError
from bivisor.memory import PAGE, GuestMemory

_CODE_AT = PAGE
_COUNT_DOWN = bytes.fromhex("49 75fd ebfb")  # 1: dec ecx; jnz 1b; jmp 1b
_OUT_FOREVER = bytes.fromhex("e680 ebfc")  # 1: out 0x80, al; jmp 1b
_INT3 = b"\xcc\xf4"  # int3; hlt
_INSTRUCTIONS_A_TURN = 2
_ROUNDS = 4


@contextmanager
def _guest(engine: Engine, code: bytes) -> Iterator[Vcpu]:
    """A processor in flat 32-bit protected mode, about to run `code`: every KVM runs that on the processor, while
    real mode is emulated on older Intel ones."""
    with GuestMemory(4 * PAGE, name="bivisor-probe") as memory, engine.create_machine() as machine:
        machine.map(memory.slots[0])
        memory.write(_CODE_AT, code)
        vcpu = machine.create_vcpu()
        sregs = vcpu.get_sregs()
        sregs.cr0 = Cr0.PE | Cr0.ET
        sregs.cs = Segment.flat(8, code=True)
        sregs.ds = sregs.es = sregs.ss = Segment.flat(16, code=False)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(Regs(rip=_CODE_AT, rcx=0xFFFF_FFFF))
        yield vcpu


def cpl0_speed(engine: Engine, seconds: float = 0.01) -> float:
    """Instructions a second that the engine runs at CPL0: the best of a few rounds of a two-instruction loop, `seconds`
    in all. The first is slow (page faults, translation), and on a busy host any can be."""
    with _guest(engine, _COUNT_DOWN) as vcpu:
        return max(_one_round(engine, vcpu, seconds / _ROUNDS) for _ in range(_ROUNDS))


def _one_round(engine: Engine, vcpu: Vcpu, seconds: float) -> float:
    before = vcpu.get_regs().rcx
    passed = _run_for(engine, vcpu, seconds)
    turns = (before - vcpu.get_regs().rcx) % 0x1_0000_0000
    return turns * _INSTRUCTIONS_A_TURN / passed


def _run_for(engine: Engine, vcpu: Vcpu, seconds: float) -> float:
    """Run for about `seconds`; how many it were."""
    timer = threading.Timer(seconds, vcpu.kick)
    timer.start()
    started = time.perf_counter()
    exit_ = vcpu.run()
    passed = time.perf_counter() - started
    timer.join()
    if not isinstance(exit_, Interrupted):
        raise EngineError(f"{engine.name}: a two-instruction loop ended with {exit_}")
    return passed


def exit_cost(engine: Engine, exits: int = 500) -> float:
    """Seconds that one port write of the guest costs, there and back, handled in Python."""
    left = exits

    def handler(exit_: Exit) -> bool:
        nonlocal left
        left -= 1
        return left > 0

    with _guest(engine, _OUT_FOREVER) as vcpu:
        vcpu.run()
        started = time.perf_counter()
        exit_ = vcpu.run(handler)
        passed = time.perf_counter() - started
        if not isinstance(exit_, PortIo):
            raise EngineError(f"{engine.name}: a port write ended with {exit_}")
        return passed / exits


def int3_comes_out(engine: Engine) -> bool:
    """Whether a guest's INT3 comes to the host that asks for it. Not where KVM interprets, nor on a processor that is
    QEMU's TCG."""
    with _guest(engine, _INT3) as vcpu:
        vcpu.set_debug(GuestDebug(software_breakpoints=True))
        return isinstance(vcpu.run(), Debug)
