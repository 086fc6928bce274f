"""Run random bytes as guest code: `python -m machine.random_code ENGINE BITS FIRST COUNT`, a seed for each machine.

A process of its own, since what this is meant to find would take the process with it. Each seed is printed before it
runs; a seed that is wrong is printed with what was wrong.
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
from pathlib import Path

from bivisor.cpu.registers import DescriptorTable, Regs
from bivisor.kvm import VirtualMachine

from .tiny import CODE, GDT, MIB, PATIENCE, STACK, enter, plug_everything

SIZE = 0x4000
IDT = 0x4000
BOUND = 0.2

_PIECES = [bytes.fromhex(text) for text in (
    "90", "f4", "cc", "cd80", "fa", "fb", "cf", "48cf", "0f05", "0f07", "0f34", "0f35", "0fa2", "0f31", "0f30", "0f32",
    "0f20c0", "0f22c0", "0f20d8", "0f22d8", "0f20e0", "0f22e0", "0f22c3", "0f23f8", "0f21f8", "0f01f8", "0f01c1",
    "0f01d0", "0f01d1", "0fae00", "0fae08", "0fae38", "0fc70f", "480fc70f", "0f0b", "f3a4", "f3ab", "f36e", "f36c",
    "f2ae", "e6f4", "ee", "ec", "ef", "ed", "e680", "0f0108", "0f0118", "0f0100", "0f0110", "0f00d8", "0f00d0", "8ed0",
    "8ed8", "8ec0", "8ee0", "1f", "17", "9d", "9c", "c8000001", "ca0000", "cb", "ff28", "ff18", "ea00000000", "9a",
    "d9e8", "dbe3", "9bdfe0", "0f77", "660fefc0", "c5f877", "c4e27d", "62f17c48", "f00fb110", "0f09", "0f08", "0f0107",
    "b9800000c0", "b91b000000", "b910000000", "ebfe", "e2fe", "67", "66", "f0", "2e", "64", "65", "0f06", "0fb220",
)]  # fmt: skip
"""What random bytes alone would seldom make: instructions of the system, of segments and of coprocessors."""


def code(dice: random.Random) -> bytes:
    """Random bytes with random instructions of consequence in between."""
    out = bytearray()
    share = dice.choice([0.0, 0.2, 0.7])
    while len(out) < SIZE:
        out += dice.choice(_PIECES) if dice.random() < share else dice.randbytes(dice.randrange(1, 6))
    return bytes(out[:SIZE])


def gates(dice: random.Random, bits: int) -> bytes:
    """An interrupt table whose handlers are somewhere in the code, most of them."""
    out = bytearray()
    for _ in range(256):
        address = CODE + dice.randrange(SIZE)
        kind = dice.choice([0x8E, 0x8F, 0x8E, 0xEE, 0x85, 0])
        match bits:
            case 16:
                out += struct.pack("<HH", address - CODE, CODE >> 4)
            case 32:
                out += struct.pack("<HHBBH", address & 0xFFFF, 8, 0, kind, address >> 16)
            case _:
                out += struct.pack("<HHBBHII", address & 0xFFFF, 24, dice.randrange(8), kind, address >> 16, 0, 0)
    return bytes(out)


def prepare(vm: VirtualMachine, bits: int, seed: int) -> None:
    """Put the code of `seed` before processor 0."""
    dice = random.Random(seed)
    enter(vm, code(dice), bits)
    vcpu = vm.vcpus[0]
    sregs = vcpu.get_sregs()
    table = gates(dice, bits)
    where = 0 if bits == 16 else IDT
    vm.memory.write(where, table)
    if bits != 16:
        sregs.idt = DescriptorTable(IDT, len(table) - 1)
        sregs.gdt = DescriptorTable(GDT, dice.choice([31, 0x1FF]))
        vcpu.set_sregs(sregs)
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
    numbers = {name: dice.choice([0, dice.randrange(16 * MIB), dice.randrange(1 << 32), dice.randrange(1 << 64)])
               for name in names}  # fmt: skip
    vcpu.set_regs(Regs(rip=0 if bits == 16 else CODE, rsp=STACK, rflags=2 | dice.choice([0, 0x200]), **numbers))


def main(engine: str, bits: int, first: int, count: int) -> None:
    """Run `count` machines."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            print(seed, end=" ", flush=True)
            with VirtualMachine(engine=engine, memory=16 * MIB) as vm:
                plug_everything(vm, Path(folder))
                prepare(vm, bits, seed)
                vm.start()
                if vm.wait(BOUND) is None:
                    vm.stop()
                outcome = vm.wait(PATIENCE)
                if outcome is None:
                    raise TimeoutError("the machine cannot be stopped")
            print(outcome, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
