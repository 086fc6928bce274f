"""A debugger's view of a PV domain's processor on kvm: never the stub, and INT3s of the guest's are its own."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Final

import pytest

from bivisor.abi.x86 import Rflags, Vector
from bivisor.cpu.exits import Debug
from bivisor.cpu.registers import GuestDebug, Sregs
from bivisor.cpu.runcontrol import RunControl
from bivisor.errors import EngineError
from bivisor.xen.pv.ring3 import hidden as h
from bivisor.xen.pv.ring3.block import Block
from bivisor.xen.pv.ring3.debug import Ring3Debug
from bivisor.xen.pv.ring3.stub import ENTRIES, GUEST_CS, GUEST_SS

TF: Final = int(Rflags.TF)
RAX, RCX, RSP, R11, RIP, RFLAGS = 0, 2, 6, 11, 16, 17
BOUNCE: Final = 2
PROGRAM: Final = (0, 11, 22, 0x401001, 0x33, 0x202, 0x7000, 0x2B)


class Processor:
    """A processor whose registers are an array, and what the debugger heard of it."""

    def __init__(self) -> None:
        self.index = 0
        self.words = memoryview(array("Q", range(18)))
        self.block = Block(h.Hidden(64, 1), 0)
        self.hits: list[Debug] = []
        self.control = RunControl([], lambda: None)
        self.control.on_hit = lambda _, exit_: self.hits.append(exit_)
        live = SimpleNamespace(words=self.words, changed=lambda: None)
        self.code = bytearray(0x403000)
        self.sregs: Sregs | None = None
        memory = SimpleNamespace(
            contains=lambda at, size: at + size <= len(self.code),
            read=lambda at, size: bytes(self.code[at : at + size]),
        )
        domain = SimpleNamespace(memory=memory)
        machine = SimpleNamespace(private=self.block, translate=lambda linear: linear, domain=domain)
        self.debug = Ring3Debug(self, live, machine, self.control)  # type: ignore[arg-type]

    def get_sregs(self) -> Sregs:
        """See `Vcpu.get_sregs`: that of CPL 0."""
        return Sregs()

    def set_sregs(self, sregs: Sregs) -> None:
        """See `Vcpu.set_sregs`."""
        self.sregs = sregs

    def trapped(self, vector: int) -> bool:
        """The stub shows an exception of a program's; whether the debugger takes it."""
        self.block.frame[:] = array("Q", PROGRAM)
        self.words[RIP], self.words[RSP] = h.STUB + 0x1230, self.block.top - 56
        return self.debug.takes(vector)


@pytest.fixture
def processor() -> Processor:
    return Processor()


def test_at_a_breakpoint_the_registers_are_those_of_the_frame(processor: Processor) -> None:
    assert processor.trapped(Vector.BP)
    regs = processor.debug.get_regs()
    assert (regs.rip, regs.rsp, regs.rcx, regs.r11, regs.rflags) == (0x401000, 0x7000, 11, 22, 0x202)
    assert processor.hits == [Debug(Vector.BP, 0x401000, 0, 0)]
    sregs = processor.debug.get_sregs()
    assert (sregs.cs.selector, sregs.ss.selector) == (0x33, 0x2B)
    regs.rip, regs.rcx, regs.rax = 0x402000, 5, 6
    processor.debug.set_regs(regs)
    assert (processor.block.frame[3], processor.block.frame[1], processor.words[RAX]) == (0x402000, 5, 6)
    assert processor.words[RCX] == RCX and not processor.block.bytes[BOUNCE]


def test_an_int3_of_the_guests_own_goes_to_its_kernel(processor: Processor) -> None:
    assert processor.trapped(Vector.BP)
    events = processor.debug.get_events()
    events.exception = Vector.BP
    processor.debug.set_events(events)
    assert processor.block.frame[3] == 0x401001 and processor.block.bytes[BOUNCE] == 1


def test_nothing_is_taken_while_no_debugger_listens_nor_a_step_that_nobody_wanted(processor: Processor) -> None:
    assert not processor.trapped(Vector.DB)
    processor.control.on_hit = None
    assert not processor.trapped(Vector.BP)
    assert processor.block.frame[3] == 0x401001 and not processor.hits


def test_a_step_is_one_trap_flag_and_no_more(processor: Processor) -> None:
    processor.trapped(Vector.BP)
    processor.debug.set_debug(GuestDebug(single_step=True))
    assert not processor.debug.entering()
    assert processor.block.frame[5] & TF
    assert not processor.debug.entering()
    processor.block.frame[5] |= TF
    assert processor.debug.takes(Vector.DB)
    assert not processor.block.frame[5] & TF and processor.hits[-1].exception == Vector.DB
    assert not processor.debug.stepping


@pytest.mark.parametrize("trapped", [False, True])
def test_a_step_through_syscall_is_done_here_and_ends_when_the_stub_is_left(
    processor: Processor, trapped: bool
) -> None:
    if trapped:
        processor.trapped(Vector.BP)
    else:
        processor.words[RIP], processor.words[RSP], processor.words[RFLAGS] = 0x401000, 0x7000, 0x202
    processor.code[0x401000:0x401002] = b"\x0f\x05"
    processor.hits.clear()
    processor.debug.set_debug(GuestDebug(single_step=True))
    assert processor.debug.entering()  # it is to come out at CPL 3
    assert (processor.sregs is None) is trapped
    assert processor.words[RIP] == h.STUB + ENTRIES.system_call and processor.words[RSP] == processor.block.top - 40
    assert (processor.words[RCX], processor.words[R11]) == (0x401002, 0x202)
    assert processor.block.frame[6] == 0x7000
    assert processor.debug.entering() and not processor.hits
    processor.words[RIP] = 0xFFFF_FFFF_8100_0000
    processor.debug.out_of_stub()
    assert processor.hits == [Debug(Vector.DB, 0xFFFF_FFFF_8100_0000, 1 << 14, 0)]


def test_one_that_blocks_is_behind_its_hypercall(processor: Processor) -> None:
    processor.words[RIP], processor.words[RCX] = h.STUB + 0x1349, 0xFFFF_FFFF_8100_0005
    processor.block.frame[6] = 0xFFFF_C900_0000_1000
    regs = processor.debug.get_regs()
    assert (regs.rip, regs.rsp) == (0xFFFF_FFFF_8100_0005, 0xFFFF_C900_0000_1000)
    sregs = processor.debug.get_sregs()
    assert (sregs.cs.selector, sregs.ss.selector) == (GUEST_CS, GUEST_SS)
    regs.rip, regs.rsp, regs.rflags = 0x1000, 0x2000, 0
    processor.debug.set_regs(regs)
    assert (processor.words[RCX], processor.block.frame[6]) == (0x1000, 0x2000)
    assert processor.words[RIP] == h.STUB + 0x1349


def test_a_step_of_one_that_blocked_is_the_instruction_behind_its_hypercall(processor: Processor) -> None:
    processor.words[RIP], processor.words[RCX] = h.STUB + 0x1349, 0x401005
    processor.debug.set_debug(GuestDebug(single_step=True))
    assert processor.debug.entering()
    processor.words[RIP], processor.words[RFLAGS] = 0x401005, 0x202
    assert processor.debug.out_of_stub()  # it is where it was shown to be
    assert not processor.hits
    assert not processor.debug.entering()
    assert processor.words[RFLAGS] & TF


def test_debug_registers_are_refused(processor: Processor) -> None:
    with pytest.raises(EngineError, match="no debug registers"):
        processor.debug.set_debug(GuestDebug(addresses=(0x1000,)))
    with pytest.raises(EngineError):
        processor.debug.set_msrs({0x10: 0})
