"""Proves at start-up, in a few milliseconds, that everything in `private.py` is true of the library that was loaded.

A tiny guest in long mode goes once through each private mechanism: ports, MSRs, a fault that the engine raises and the
guest handles, CPUID, memory that is not there, SYSCALL, an interrupt in the one instruction where it is allowed, HLT,
and the replay of an exit that nobody handled in place. What it reports on a port has to be exactly `_EXPECTED`.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING

from bivisor.abi.x86 import Cr0, Cr4, Efer, Msr, Pte, Vector
from bivisor.cpu.exits import Direction, Exit, Hlt, Mmio, PortIo, WrMsr
from bivisor.cpu.registers import CpuidEntry, DescriptorTable, Regs, Segment, Sregs
from bivisor.cpu.soft.library import VERSION
from bivisor.errors import BivisorError, EngineError, HostError
from bivisor.memory import GuestMemory

if TYPE_CHECKING:
    from bivisor.cpu.contract import ExitHandler
    from bivisor.cpu.soft.machine import SoftMachine
    from bivisor.cpu.soft.vcpu import SoftVcpu

_CODE, _STACK, _PML4, _PDPT, _PD, _GDT, _IDT = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000
_SIZE = 0x8000
_HOLE_LINEAR, _HOLE = 0x20_0000, 0x40_0000  # elsewhere, so that paging has to be on
_REPORT, _ASK = 0x10, 0x12
_UNKNOWN_MSR = 0x777
_INTERRUPT_VECTOR = 0x40

_PROGRAM = (
    (0x00, "b011 e610", "mov al, 0x11; out 0x10, al"),
    (0x04, "e412 e610", "in al, 0x12; out 0x10, al: 0x12 is the answer"),
    (0x08, "b93b000000 0f32 e610", "mov ecx, 0x3b; rdmsr; out 0x10, al: IA32_TSC_ADJUST"),
    (0x11, "b977070000 0f30", "mov ecx, 0x777; wrmsr: answered with #GP"),
    (0x18, "31c0 0fa2 e610", "xor eax, eax; cpuid; out 0x10, al: the highest leaf"),
    (0x1E, "bb00002000 8b03 e610", "mov ebx, 0x200000; mov eax, [rbx]; out 0x10, al: not memory"),
    (0x27, "c6430816", "mov byte [rbx + 8], 0x16"),
    (0x2B, "488d1503000000 52 0f05", "lea rdx, [rip + 3]; push rdx; syscall: to 0xc0, which returns here"),
    (0x35, "b018 e610", "mov al, 0x18; out 0x10, al"),
    (0x39, "fb 90 fa", "sti; nop; cli: the interrupt comes after the nop"),
    (0x3C, "b01a e610", "mov al, 0x1a; out 0x10, al"),
    (
        0x40,
        "0f31 c1ea18 89d0 e610 f4",
        "rdtsc; shr edx, 24; mov eax, edx; out 0x10, al: IA32_TSC_ADJUST's upper end; hlt",
    ),
    (0x80, "b013 e610", "#GP: mov al, 0x13; out 0x10, al"),
    (0x84, "4883c408 4883042402 48cf", "add rsp, 8; add qword [rsp], 2; iretq: behind the wrmsr"),
    (0xA0, "b019 e610 48cf", "the interrupt: mov al, 0x19; out 0x10, al; iretq"),
    (0xC0, "b017 e610 c3", "the system call: mov al, 0x17; out 0x10, al; ret"),
)
_FAULT, _INTERRUPT, _SYSCALL = _CODE + 0x80, _CODE + 0xA0, _CODE + 0xC0
_EXPECTED = [0x11, 0x12, 0x14, 0x13, 0x24, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x1B]
_PATIENCE = 5.0
_HLT = b"\xf4"


def prove(machine: SoftMachine) -> None:
    """Run the tiny guest in `machine`, which is closed afterwards. HostError if the library is not the one we know."""
    with GuestMemory(_SIZE, name="bivisor-selftest") as memory:
        try:
            with machine:
                reports = _run(machine, memory)
        except HostError:
            raise
        except BivisorError as error:
            raise _mismatch(str(error)) from error
    if reports != _EXPECTED:
        pairs = zip(reports, _EXPECTED, strict=False)
        step = next((i for i, (report, expected) in enumerate(pairs) if report != expected), len(reports))
        raise _mismatch(f"step {step} of {len(_EXPECTED)}, reports {bytes(reports).hex(' ')}")


def _mismatch(detail: str) -> HostError:
    return HostError(
        f"Unicorn {VERSION} does not pass the start-up test of the engine `soft` ({detail}): this build is not "
        f"the wheel that it was made for; pip install --force-reinstall unicorn=={VERSION}"
    )


def _run(machine: SoftMachine, memory: GuestMemory) -> list[int]:
    _lay_out(memory)
    for slot in memory.slots:
        machine.map(slot)
    vcpu = machine.create_vcpu()
    vcpu.set_sregs(_sregs(vcpu.get_sregs()))
    vcpu.set_regs(Regs(rip=_CODE, rsp=_STACK))
    vcpu.set_msrs(
        {
            Msr.IA32_STAR: 8 << 32,
            Msr.IA32_LSTAR: _SYSCALL,
            Msr.IA32_FMASK: 0x200,
            Msr.IA32_TSC_ADJUST: 0x1B << 56 | 0x14,
        }
    )
    vcpu.set_cpuid([CpuidEntry(0, None, 0x24, 0, 0, 0)])
    reports: list[int] = []

    def handle(exit_: Exit) -> bool:
        match exit_:
            case PortIo(direction=Direction.OUT, port=port, data=data) if port == _REPORT:
                reports.append(data[0])
                if data[0] == 0x18:
                    vcpu.interrupt(_INTERRUPT_VECTOR)
                return True
            case WrMsr(index=index, error=error) if index == _UNKNOWN_MSR:
                error[0] = 1
                return True
            case Mmio(address=address, is_write=True, data=data) if address == _HOLE + 8:
                reports.append(data[0])
                return True
            case _:
                return False  # IN and the MMIO read come out of run() and are replayed

    timer = threading.Timer(_PATIENCE, vcpu.kick)
    timer.start()
    try:
        _answer(vcpu, handle)
    finally:
        timer.cancel()
    return reports


def _answer(vcpu: SoftVcpu, handle: ExitHandler) -> None:
    while True:
        match vcpu.run(handle):
            case PortIo(direction=Direction.IN, port=port, data=data) if port == _ASK:
                data[0] = 0x12
            case Mmio(address=address, is_write=False, data=data) if address == _HOLE:
                data[0] = 0x15
            case Hlt():
                return
            case other:
                raise EngineError(f"unexpected {type(other).__name__} at {vcpu.get_regs().rip:#x}")


def _lay_out(memory: GuestMemory) -> None:
    memory.write(0, _HLT)  # where a processor begins whose RIP was put elsewhere; zeros would lead it to the program
    for offset, code, _ in _PROGRAM:
        memory.write(_CODE + offset, bytes.fromhex(code))
    table = Pte.P | Pte.RW
    for at, entry in (
        (_PML4, _PDPT | table),
        (_PDPT, _PD | table),
        (_PD, table | Pte.PS),
        (_PD + 8 * (_HOLE_LINEAR >> 21), _HOLE | table | Pte.PS),
    ):
        memory.write(at, struct.pack("<Q", entry))
    memory.write(_GDT, struct.pack("<3Q", 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF))
    for vector, target in ((Vector.GP, _FAULT), (_INTERRUPT_VECTOR, _INTERRUPT)):
        memory.write(_IDT + 16 * vector, struct.pack("<HHBBHII", target, 8, 0, 0x8E, 0, 0, 0))


def _sregs(sregs: Sregs) -> Sregs:
    sregs.cs = Segment.flat(8, code=True, long=True)
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = Segment.flat(16, code=False)
    sregs.gdt, sregs.idt = DescriptorTable(_GDT, 23), DescriptorTable(_IDT, 0x7FF)
    sregs.cr0, sregs.cr3, sregs.cr4 = Cr0.PE | Cr0.ET | Cr0.NE | Cr0.PG, _PML4, Cr4.PAE
    sregs.efer = Efer.LME | Efer.LMA | Efer.SCE
    return sregs
