"""A tiny machine for a tiny guest: 256 KiB of RAM, one processor, flat segments, page tables and an IDT ready to use.

Linear addresses are physical ones in every mode. A vector without a handler of the test's own leads to a stub that
writes its number to port `CAUGHT`, so that a fault comes out as a port exit with the frame on the guest's stack.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass

from bivisor.abi.x86 import ERROR_CODE_VECTORS, Cr0, Cr4, Efer, Pte
from bivisor.cpu.contract import Engine, ExitHandler, Machine, Vcpu
from bivisor.cpu.exits import Exit, Interrupted, PortIo
from bivisor.cpu.registers import DescriptorTable, Regs, Segment, Sregs
from bivisor.memory import PAGE, GuestMemory

from .asm import Code, assemble

RAM = 0x4_0000
CODE, DATA, STACK, GDT, IDT, TSS, STUBS, USER_STACK = 0x1000, 0x3000, 0x8000, 0x9000, 0xA000, 0xB000, 0xC000, 0xF000
PML4, PDPT, PAGE_DIRECTORIES, PAGE_DIRECTORY_32 = 0x1_0000, 0x1_1000, 0x1_2000, 0x1_6000
MMIO = 0xD_0000  # nothing there, and real mode reaches it
CODE64, DATA_FLAT, CODE32, CODE16, DATA16, TASK, USER64, USER_DATA = 8, 0x10, 0x18, 0x20, 0x28, 0x30, 0x43, 0x4B

DONE = 0xF4
"""A guest that has a local APIC ends with a write to this port: its HLT need not come out."""

CAUGHT = 0xE0
"""The port that the stubs write their vector to."""

PATIENCE = 20.0  # seconds until a guest that does not come out is taken for hung; a passing test never waits for it


@dataclass(frozen=True, slots=True)
class Frame:
    """What the processor pushed when it delivered `vector`."""

    vector: int
    error: int | None
    rip: int
    cs: int
    flags: int


class Guest:
    """One machine with one processor. `with` closes both."""

    def __init__(self, engine: Engine, *, irqchip: bool = False, log_dirty: bool = False) -> None:
        self.engine = engine
        self.memory = GuestMemory(RAM)
        self.machine: Machine = engine.create_machine()
        if irqchip:
            self.machine.create_irqchip()
        self.machine.map(self.memory.slots[0], log_dirty=log_dirty)
        self.vcpu: Vcpu = self.machine.create_vcpu(0)
        self.memory.listen(self.machine.invalidate)
        self.bits = 16

    def close(self) -> None:
        self.machine.close()
        self.memory.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── preparing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, text: str, bits: int = 64, *, user: bool = False, paged: bool = False, **regs: int) -> Code:
        """Assemble `text`, enter the mode of `bits` (16 real, 32 protected, 64 long) and set registers. `user` is CPL 3
        in long mode; `paged` turns paging on in protected mode."""
        self.bits = bits
        self._stubs()
        self._tables()
        code = assemble(text, CODE)
        self.memory.write(CODE, code.data)
        sregs = {16: self._real, 32: self._protected, 64: self._long}[bits](self.vcpu.get_sregs())
        if paged:
            sregs.cr0, sregs.cr3, sregs.cr4 = sregs.cr0 | Cr0.PG | Cr0.WP, PAGE_DIRECTORY_32, Cr4.PSE
        if user:
            sregs.cs = Segment.flat(USER64, code=True, long=True, dpl=3)
            sregs.ds = sregs.es = sregs.ss = Segment.flat(USER_DATA, code=False, dpl=3)
        self.vcpu.set_sregs(sregs)
        regs.setdefault("rsp", USER_STACK if user else STACK)
        self.vcpu.set_regs(Regs(**{"rip": CODE, "rflags": 2, **regs}))
        return code

    def handle(self, vector: int, address: int) -> None:
        """Let `vector` go to `address` in the mode of the last `load`."""
        match self.bits:
            case 16:
                self.memory.write(vector * 4, struct.pack("<HH", address, 0))
            case 32:
                gate = struct.pack("<HHBBH", address & 0xFFFF, CODE32, 0, 0x8E, address >> 16)
                self.memory.write(IDT + vector * 8, gate)
            case _:
                gate = struct.pack("<HHBBHII", address & 0xFFFF, CODE64, 0, 0x8E, address >> 16 & 0xFFFF, 0, 0)
                self.memory.write(IDT + vector * 16, gate)

    def forget(self, vector: int) -> None:
        """Mark the gate of `vector` as not present."""
        size = 16 if self.bits == 64 else 8
        self.memory.write(IDT + vector * size, bytes(size))

    def _stubs(self) -> None:
        for vector in range(256):
            # mov al, vector; out CAUGHT, al; hlt
            self.memory.write(STUBS + vector * 8, bytes((0xB0, vector, 0xE6, CAUGHT, 0xF4)))
            self.handle(vector, STUBS + vector * 8)

    def _tables(self) -> None:
        gdt = struct.pack(
            "<10Q", 0,
            0x00AF9B000000FFFF, 0x00CF93000000FFFF,  # code64, data
            0x00CF9B000000FFFF, 0x008F9B000000FFFF, 0x008F93000000FFFF,  # code32, code16, data16
            0x00008B0000000067 | TSS << 16, 0,  # TSS, 16 bytes
            0x00AFFB000000FFFF, 0x00CFF3000000FFFF,  # code64 and data of CPL 3
        )  # fmt: skip
        self.memory.write(GDT, gdt)
        self.memory.write(TSS, struct.pack("<IQ", 0, STACK).ljust(0x66, b"\0") + b"\x68\0")
        table = Pte.P | Pte.RW | Pte.US
        self.memory.write(PML4, struct.pack("<Q", PDPT | table))
        for gigabyte in range(4):
            directory = PAGE_DIRECTORIES + gigabyte * PAGE
            self.memory.write(PDPT + gigabyte * 8, struct.pack("<Q", directory | table))
            entries = [(gigabyte << 30 | number << 21) | table | Pte.PS for number in range(512)]
            self.memory.write(directory, struct.pack("<512Q", *entries))
        self.memory.write(PAGE_DIRECTORY_32, struct.pack("<I", table | Pte.PS).ljust(PAGE, b"\0"))

    @staticmethod
    def _real(sregs: Sregs) -> Sregs:
        sregs.cr0, sregs.cr4, sregs.efer = Cr0.ET, 0, 0
        sregs.cs = Segment.real(0, code=True)
        sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = Segment.real(0)
        sregs.idt = DescriptorTable(0, 0x3FF)
        return sregs

    @staticmethod
    def _flat(sregs: Sregs) -> Sregs:
        sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = Segment.flat(DATA_FLAT, code=False)
        sregs.gdt = DescriptorTable(GDT, 0x4F)
        sregs.tr = Segment(base=TSS, limit=0x67, selector=TASK, type=11, s=0)
        return sregs

    @classmethod
    def _protected(cls, sregs: Sregs) -> Sregs:
        sregs = cls._flat(sregs)
        sregs.cr0, sregs.cr4, sregs.efer = Cr0.PE | Cr0.ET, 0, 0
        sregs.cs = Segment.flat(CODE32, code=True)
        sregs.idt = DescriptorTable(IDT, 256 * 8 - 1)
        return sregs

    @classmethod
    def _long(cls, sregs: Sregs) -> Sregs:
        sregs = cls._flat(sregs)
        sregs.cr0, sregs.cr3, sregs.cr4 = Cr0.PE | Cr0.ET | Cr0.NE | Cr0.PG | Cr0.WP, PML4, Cr4.PAE
        sregs.efer = Efer.LME | Efer.LMA | Efer.SCE
        sregs.cs = Segment.flat(CODE64, code=True, long=True)
        sregs.idt = DescriptorTable(IDT, 256 * 16 - 1)
        return sregs

    # ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, handler: ExitHandler | None = None) -> Exit:
        """`vcpu.run`, which must come out of itself."""
        timer = threading.Timer(PATIENCE, self.vcpu.kick)
        timer.start()
        try:
            exit_ = self.vcpu.run(handler)
        finally:
            timer.cancel()
            timer.join()
        assert not isinstance(exit_, Interrupted), f"the guest hangs: {self.vcpu.get_regs()}"
        return exit_

    def exits(self, kind: type[Exit], count: int) -> list[Exit]:
        """The next `count` exits, all of which have to be of `kind`. Only for exits without views."""
        found = [self.run() for _ in range(count)]
        assert all(isinstance(exit_, kind) for exit_ in found), found
        return found

    def out(self, port: int) -> int:
        """Run to the next exit, which has to be a write to `port`; what was written."""
        exit_ = self.run()
        assert isinstance(exit_, PortIo), f"{exit_} at {self.vcpu.get_regs()}"
        assert exit_.port == port, f"{exit_} {bytes(exit_.data).hex()}"
        return int.from_bytes(exit_.data, "little")

    def caught(self) -> Frame:
        """Run to the next exit, which has to be a stub's: what it caught."""
        vector = self.out(CAUGHT)
        width = self.bits // 8
        at = self.vcpu.get_regs().rsp
        words = [int.from_bytes(self.memory.read(at + n * width, width), "little") for n in range(4)]
        error = words.pop(0) if vector in ERROR_CODE_VECTORS and self.bits != 16 else None
        return Frame(vector, error, *words[:3])
