"""What a PV domain's machine carries out by itself where CPL 0 is the processor's: near.S, run by the soft engine."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.abi.x86 import Cr4, Efer, Msr, Pte, Rflags
from bivisor.abi.xen.pv import MmuExt
from bivisor.abi.xen.xen import DOMID_SELF, XEN_VERSION, Hypercall, VcpuOp
from bivisor.cpu.exits import PortIo
from bivisor.cpu.registers import DescriptorTable, Regs, Segment
from bivisor.cpu.select import open_soft
from bivisor.memory import PAGE, GuestMemory
from bivisor.xen.pv import fast
from bivisor.xen.pv.machine import CR0, CR4
from bivisor.xen.pv.pages import L4
from bivisor.xen.pv.ring3 import hidden as h
from bivisor.xen.pv.ring3 import near
from bivisor.xen.pv.ring3.block import Block
from bivisor.xen.pv.ring3.nearstate import NearState
from bivisor.xen.pv.ring3.pages import Ring3Pages
from bivisor.xen.pv.ring3.stub import CALL_PORT, CRASH_PORT, EVENT, TRAP_PORT

SOURCE = Path(near.__file__).with_name("near.S")
FRAMES = 64
CODE, DATA, INFO = 40, 41, 42  # frames, at linear addresses 0x1000 to 0x3000
P, RW, US = int(Pte.P), int(Pte.RW), int(Pte.US)
SYSCALL, HLT, CLI, STI = b"\x0f\x05", b"\xf4", b"\xfa", b"\xfb"
HANDLER = 0x1800
NOWHERE = 1 << 60


@pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="needs the GNU assembler")
def test_the_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    obj, out = tmp_path / "n.o", tmp_path / "n.bin"
    subprocess.run(["as", SOURCE, "-o", obj], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", obj, out], check=True)
    assert out.read_bytes() == near.OWN


def test_the_code_fits_its_page() -> None:
    assert len(near.code(h.STUB)) <= PAGE
    assert len(fast.CODE) <= 1024


class Kernel:
    """A PV kernel of some bytes on one processor, with level-4 tables at frames 1 and 5 for the same memory. SYSCALL
    leads to CPL 0, or to the stub's `gate`."""

    def __init__(self, gate: bool = False) -> None:
        self.memory = GuestMemory(FRAMES * PAGE)
        self.hidden = h.Hidden(FRAMES, 1)
        self.block = block = Block(self.hidden, 0)
        self.words = self.memory.ram.view.cast("Q")
        for table, below in ((1, 2), (2, 3), (3, 4), (5, 2)):
            self.words[table << 9] = below << 12 | P | RW | US
        for page, frame, flags in ((1, CODE, 0), (2, DATA, RW), (3, INFO, RW)):
            self.words[4 << 9 | page] = frame << 12 | P | US | flags
        self.pages = Ring3Pages(self.words, set(), lambda _: False, self.hidden.slots, lambda: None)
        self.pages.move(self.hidden.kind, self.hidden.count)
        self.pages.pin(1, L4)
        self.pages.pin(5, L4)
        self.pages.get(1, L4)
        block.set_info(INFO * PAGE)
        block.set_root(1 << 12)
        block.set_callback(0, HANDLER, masks_events=True)
        self.state = NearState(block, FRAMES, 1)
        self.state.values[4] = 1
        self.state.set_info(memoryview(b""))
        self.state.set(True)
        self.lstar = h.GATE if gate else block.linear + h.NATIVE * PAGE
        if not gate:
            self.hidden.use_near()
        self.engine = open_soft()
        self.machine = self.engine.create_machine()
        self.machine.map(self.memory.slots[0])
        self.machine.map(self.hidden.slot)
        self.vcpu = self.machine.create_vcpu(0)
        self._prepare()

    def _prepare(self) -> None:
        sregs = self.vcpu.get_sregs()
        sregs.tr = Segment(base=self.block.linear + h.TSS * PAGE, limit=h.TSS_LIMIT, selector=h.TASK, type=11, s=0)
        sregs.gdt, sregs.idt = DescriptorTable(self.block.linear, h.GDT_LIMIT), DescriptorTable(h.IDT, PAGE - 1)
        sregs.cr0, sregs.cr3, sregs.cr4 = CR0, 1 << 12, CR4 & ~int(Cr4.OSXSAVE)
        sregs.efer = int(Efer.SCE | Efer.LME | Efer.LMA | Efer.NX)
        self.vcpu.set_sregs(sregs)
        star = 0xE023 << 48 | h.CODE_SELECTOR << 32
        self.vcpu.set_msrs({Msr.IA32_STAR: star, Msr.IA32_LSTAR: self.lstar, Msr.IA32_FMASK: int(Rflags.IF)})

    def run(self, code: bytes, flags: int = 0, **registers: int) -> tuple[int, int]:
        """The port by which the stub comes out, and RIP of the frame that it has."""
        self.memory.write(CODE * PAGE, code)
        self.machine.invalidate(CODE * PAGE, len(code))
        self.memory.write(CODE * PAGE + (HANDLER & PAGE - 1), HLT)
        sregs = self.vcpu.get_sregs()
        sregs.cs = Segment.flat(0xE033, code=True, long=True, dpl=3)
        sregs.ss = Segment.flat(0xE02B, code=False, dpl=3)
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs(Regs(rip=0x1000, rsp=0x2F00, rflags=Rflags.FIXED | Rflags.IF | flags, **registers))
        exit_ = self.vcpu.run()
        assert isinstance(exit_, PortIo)
        return exit_.port, (self.block.second if exit_.port == TRAP_PORT else self.block.frame)[3]

    def calls(self, number: int, *arguments: int, data: bytes = b"", then: int = 0x1002) -> int:
        """What a hypercall that does not come out returns; the guest goes on at `then`."""
        regs = self._call(number, arguments, data)
        assert self.came == (TRAP_PORT, then)
        assert (regs.rbx, regs.rbp, regs.r8, regs.r9, regs.r15) == (3, 5, 8, 9, 15)
        assert (regs.rdi, regs.rsi, regs.rdx, regs.r10) == self.given
        return regs.rax

    def _call(self, number: int, arguments: tuple[int, ...], data: bytes) -> Regs:
        self.memory.write(DATA * PAGE, data)
        first, second, third, fourth = self.given = (*arguments, 0, 0, 0, 0)[:4]  # type: ignore[assignment]
        others = {"rbx": 3, "rbp": 5, "r8": 8, "r9": 9, "r15": 15}
        self.came = self.run(SYSCALL + HLT, rax=number, rdi=first, rsi=second, rdx=third, r10=fourth, **others)
        return self.vcpu.get_regs()

    def comes_out(self, number: int, *arguments: int, data: bytes = b"") -> bool:
        """Whether the hypercall does, with all that the guest handed over."""
        regs = self._call(number, arguments, data)
        if self.came[0] != CALL_PORT:
            return False
        assert (regs.rax, regs.rdi, regs.rsi, regs.rdx, regs.r10) == (number, *self.given)
        assert (regs.rcx, regs.rbx, regs.r8) == (0x1002, 3, 8)
        return True

    given: tuple[int, int, int, int]
    came: tuple[int, int]

    def close(self) -> None:
        self.machine.close()
        self.engine.close()
        self.state.forget()
        self.block.close()
        self.words.release()
        self.memory.close()
        self.hidden.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


@pytest.fixture(params=[False, True], ids=["CPL 0", "gate"])
def either(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """By either way in, which is by the gate where each instruction at CPL 0 is interpreted."""
    made = Kernel(request.param)
    yield made
    made.close()


def update(address: int, value: int) -> bytes:
    return struct.pack("<QQ", address, value)


def switch(root: int, user: int) -> bytes:
    return struct.pack("<I4xQQI4xQQ", MmuExt.NEW_BASEPTR, root, 0, MmuExt.NEW_USER_BASEPTR, user, 0)


def test_page_tables_change_without_leaving_the_guest_and_entries_are_the_users(kernel: Kernel) -> None:
    data = update(4 << 12 | 8 * 9, 50 << 12 | P | RW)
    assert kernel.calls(Hypercall.MMU_UPDATE, 0x2000, 1, 0, DOMID_SELF, data=data) == 0
    assert kernel.words[4 << 9 | 9] == 50 << 12 | P | RW | US
    assert kernel.pages.count[50] == 1
    writable_table = update(4 << 12 | 8 * 9, 3 << 12 | P | RW)
    assert kernel.comes_out(Hypercall.MMU_UPDATE, 0x2000, 1, 0, DOMID_SELF, data=writable_table)
    assert kernel.words[4 << 9 | 9] == 50 << 12 | P | RW | US
    assert kernel.state.done()[Hypercall.MMU_UPDATE] == 1


def test_the_address_space_changes_without_leaving_the_guest(kernel: Kernel) -> None:
    assert kernel.calls(Hypercall.MMUEXT_OP, 0x2000, 2, 0, DOMID_SELF, data=switch(5, 1)) == 0
    assert kernel.vcpu.get_sregs().cr3 == 5 << 12
    assert kernel.block.quads[3:5].tolist() == [5 << 12, 1 << 12]
    assert kernel.state.values[4:6].tolist() == [5, 1]
    assert kernel.comes_out(Hypercall.MMUEXT_OP, 0x2000, 2, 0, DOMID_SELF, data=switch(7, 1))


def test_segment_bases_are_loaded_if_they_are_addresses(either: Kernel) -> None:
    high = (1 << 64) - (1 << 47)
    wanted = {0: Msr.IA32_FS_BASE, 1: Msr.IA32_KERNEL_GS_BASE, 2: Msr.IA32_GS_BASE}
    for which, msr in wanted.items():
        for base in ((1 << 47) - 1, high | which):
            assert either.calls(Hypercall.SET_SEGMENT_BASE, which, base) == 0
            assert either.vcpu.get_msrs([msr])[msr] == base
        assert either.comes_out(Hypercall.SET_SEGMENT_BASE, which, NOWHERE)
    assert either.calls(Hypercall.SET_SEGMENT_BASE, 3, NOWHERE >> 20) == 0
    assert either.vcpu.get_msrs([Msr.IA32_KERNEL_GS_BASE])[Msr.IA32_KERNEL_GS_BASE] == 0
    assert either.comes_out(Hypercall.SET_SEGMENT_BASE, 4, 0)


def test_the_kernels_stack_is_noted(either: Kernel) -> None:
    assert either.calls(Hypercall.STACK_SWITCH, 0, 0x2F07) == 0
    assert either.block.quads[2] == 0x2F00


def test_a_program_is_not_left_by_way_of_the_hypervisors_memory(either: Kernel) -> None:
    entry = either.words[4 << 9 | 3]
    for stack in (h.WINDOW + (4 << 12) + 0x20, h.WINDOW + (4 << 12) + 0x29):
        assert either.comes_out(Hypercall.STACK_SWITCH, 0, stack)
        either.block.set_stack(stack)
        either.block.bytes[0] = 0  # a program
        assert either.run(SYSCALL + HLT)[0] in (TRAP_PORT, CRASH_PORT)
        either.block.bytes[0] = 1
        assert either.words[4 << 9 | 3] == entry
    for stack in ((1 << 47) - 16, (1 << 64) - (0x780 << 36)):
        assert either.calls(Hypercall.STACK_SWITCH, 0, stack) == 0


def test_a_processor_that_is_not_there_is_known_inside_and_any_other_is_asked_about(either: Kernel) -> None:
    assert either.calls(Hypercall.VCPU_OP, VcpuOp.IS_UP, 1) == (1 << 64) - 2
    assert either.comes_out(Hypercall.VCPU_OP, VcpuOp.IS_UP, 0)
    assert either.comes_out(Hypercall.VCPU_OP, VcpuOp.SET_SINGLESHOT_TIMER, 1)
    assert either.comes_out(Hypercall.VCPU_OP | 1 << 32, VcpuOp.IS_UP, 1)


def test_the_version_is_told_and_an_event_that_waits_is_taken_then(either: Kernel) -> None:
    assert either.calls(Hypercall.XEN_VERSION, 0) == XEN_VERSION
    assert either.comes_out(Hypercall.XEN_VERSION, 1)
    either.memory.write(INFO * PAGE, b"\1\0")
    assert either.calls(Hypercall.XEN_VERSION, 0, then=HANDLER) == XEN_VERSION
    assert either.memory.read(INFO * PAGE, 2) == b"\1\1"
    frame = struct.unpack("<7Q", either.memory.read(DATA * PAGE + 0xF00 - 56, 56))
    assert (frame[2], frame[3], frame[5]) == (0x1002, 0xE030, 0x2F00)
    assert either.calls(Hypercall.XEN_VERSION, 0) == XEN_VERSION  # masked
    assert either.block.quads[0x1000 // 8 + EVENT] == HANDLER


def test_page_tables_come_out_by_the_gate() -> None:
    kernel = Kernel(gate=True)
    data = update(4 << 12 | 8 * 9, 50 << 12 | P | RW)
    assert kernel.comes_out(Hypercall.MMU_UPDATE, 0x2000, 1, 0, DOMID_SELF, data=data)
    assert kernel.comes_out(Hypercall.SET_SEGMENT_BASE + 32, 0, 0)
    kernel.close()


def test_all_comes_out_while_somebody_listens(either: Kernel) -> None:
    kernel = either
    kernel.state.set(False)
    assert kernel.comes_out(Hypercall.XEN_VERSION, 0)
    assert kernel.comes_out(Hypercall.VCPU_OP, VcpuOp.IS_UP, 1)
    data = update(4 << 12 | 8 * 9, 50 << 12 | P | RW)
    assert kernel.comes_out(Hypercall.MMU_UPDATE, 0x2000, 1, 0, DOMID_SELF, data=data)
    kernel.state.set(True)
    assert kernel.calls(Hypercall.XEN_VERSION, 0) == XEN_VERSION


def test_page_tables_of_several_processors_are_changed_outside(kernel: Kernel) -> None:
    state = NearState(kernel.block, FRAMES, 2)
    state.set(True)
    data = update(4 << 12 | 8 * 9, 50 << 12 | P | RW)
    assert kernel.comes_out(Hypercall.MMU_UPDATE, 0x2000, 1, 0, DOMID_SELF, data=data)
    assert kernel.comes_out(Hypercall.MMUEXT_OP, 0x2000, 2, 0, DOMID_SELF, data=switch(5, 1))
    assert kernel.calls(Hypercall.XEN_VERSION, 0) == XEN_VERSION


def test_a_kernel_that_turns_interrupts_off_and_on_is_not_asked_why(kernel: Kernel) -> None:
    assert kernel.run(CLI + STI + CLI + HLT) == (TRAP_PORT, 0x1003)
    assert kernel.run(CLI + HLT, Rflags.TF) == (TRAP_PORT, 0x1000)  # a step, which ends behind it
    kernel.block.bytes[0] = 0  # a program
    assert kernel.run(CLI + HLT) == (TRAP_PORT, 0x1000)
