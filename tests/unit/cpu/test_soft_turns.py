"""Several processors of a soft machine: locked instructions are atomic, code does not go stale, kicks come through."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bivisor.cpu.exits import Exit, Hlt, Interrupted
from bivisor.cpu.registers import Regs, Segment
from bivisor.cpu.soft.engine import SoftEngine
from bivisor.cpu.soft.machine import SoftMachine
from bivisor.cpu.soft.turns import MAX_VCPUS
from bivisor.errors import EngineError
from bivisor.memory import GuestMemory

CODE, COUNTER, FLAG, FUNCTION, SPIN = 0x1000, 0x3000, 0x3004, 0x4000, 0x5000
PATIENCE_S = 60.0


class Board:
    """`count` processors in protected mode without paging, each at code of its own."""

    def __init__(self, machine: SoftMachine, memory: GuestMemory, count: int) -> None:
        self.memory = memory
        self.vcpus = [machine.create_vcpu(index) for index in range(count)]
        self.exits: dict[int, Exit] = {}
        self.threads: list[threading.Thread] = []
        memory.write(SPIN, b"\xeb\xfe")

    def start(self, *codes: str | int) -> None:
        """Run each processor on its code, which is written somewhere, or is there already."""
        for index, (vcpu, code) in enumerate(zip(self.vcpus, codes, strict=True)):
            at = code if isinstance(code, int) else CODE + 0x100 * index
            if isinstance(code, str):
                self.memory.write(at, bytes.fromhex(code))
            sregs = vcpu.get_sregs()
            sregs.cr0 |= 1
            sregs.cs = Segment.flat(8, code=True)
            sregs.ds = sregs.es = sregs.ss = Segment.flat(16, code=False)
            vcpu.set_sregs(sregs)
            vcpu.set_regs(Regs(rip=at, rsp=0x8000 + 0x1000 * index, rflags=2))
            thread = threading.Thread(target=self._run, args=(index,))
            self.threads.append(thread)
            thread.start()

    def _run(self, index: int) -> None:
        self.exits[index] = self.vcpus[index].run()

    def join(self) -> list[Exit]:
        for thread in self.threads:
            thread.join(PATIENCE_S)
            if thread.is_alive():
                for vcpu in self.vcpus:
                    vcpu.kick()
                thread.join()
        return [self.exits[index] for index in range(len(self.vcpus))]


@pytest.fixture
def machine() -> Iterator[tuple[SoftMachine, GuestMemory]]:
    with SoftEngine() as engine, GuestMemory(1 << 20) as memory, engine.create_machine() as machine:
        for slot in memory.slots:
            machine.map(slot)
        memory.listen(machine.invalidate)
        yield machine, memory


def test_locked_additions_of_three_processors_are_all_there(machine: tuple[SoftMachine, GuestMemory]) -> None:
    board = Board(*machine, 3)
    # mov ecx, 200000; 1: lock inc dword [COUNTER]; dec ecx; jnz 1b; hlt
    board.start(*["b9400d0300 f0ff0500300000 49 75f6 f4"] * 3)
    assert board.join() == [Hlt()] * 3
    assert int.from_bytes(board.memory.read(COUNTER, 4), "little") == 600_000


def test_code_that_another_processor_changes_is_forgotten(machine: tuple[SoftMachine, GuestMemory]) -> None:
    board = Board(*machine, 2)
    board.memory.write(FUNCTION, bytes.fromhex("b801000000 c3"))  # mov eax, 1; ret
    board.start(
        # pause; cmp dword [FLAG], 1; jne; mov byte [FUNCTION + 1], 2; hlt
        "f390 833d0430000001 75f5 c6050140000002 f4",
        "e8fb2e0000 a304300000 83f802 75f1 f4",  # call FUNCTION; mov [FLAG], eax; cmp eax, 2; jne; hlt
    )
    assert board.join() == [Hlt()] * 2


def test_code_that_the_host_changes_is_forgotten_by_all(machine: tuple[SoftMachine, GuestMemory]) -> None:
    board = Board(*machine, 2)
    board.start(SPIN, SPIN)
    board.memory.write(SPIN, b"\xf4\xf4")
    board.memory.written(SPIN, 2)
    assert board.join() == [Hlt()] * 2


def test_a_processor_that_waits_for_its_turn_can_be_kicked(machine: tuple[SoftMachine, GuestMemory]) -> None:
    board = Board(*machine, 2)
    board.start(SPIN, SPIN)
    for vcpu in board.vcpus:
        vcpu.kick()
    assert board.join() == [Interrupted()] * 2


def test_there_are_as_many_processors_as_the_map_of_code_has_bits(machine: tuple[SoftMachine, GuestMemory]) -> None:
    for index in range(MAX_VCPUS):
        machine[0].create_vcpu(index)
    with pytest.raises(EngineError, match="at most 8"):
        machine[0].create_vcpu(MAX_VCPUS)
