"""What is opened is closed: descriptors, mappings, threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bivisor.cpu.contract import Engine
from bivisor.cpu.exits import Exit, Hlt, PortIo
from bivisor.memory import GuestMemory
from holdings import holdings

from .guest import Guest

CYCLES = 200


def descriptors() -> set[int]:
    """The open ones, without the one that reading the directory takes."""
    found = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    return {fd for fd in found if _is_open(fd)}


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def cycle(engine: Engine, irqchip: bool) -> None:
    with Guest(engine, irqchip=irqchip) as guest:
        guest.load("e6 80 f4")
        assert isinstance(guest.vcpu.run(), PortIo)


@pytest.mark.parametrize("irqchip", [False, True], ids=["bare", "irqchip"])
def test_many_machines_leave_nothing_behind(engine: Engine, irqchip: bool) -> None:
    for _ in range(5):
        cycle(engine, irqchip)
    before = holdings()
    for _ in range(CYCLES):
        cycle(engine, irqchip)
    assert holdings() == before


def test_machines_whose_handler_raised_leave_nothing_behind(engine: Engine) -> None:
    def handler(exit_: Exit) -> bool:
        raise LookupError

    def failing() -> None:
        with pytest.raises(LookupError), Guest(engine) as guest:
            guest.load("e6 80 f4")
            guest.vcpu.run(handler)

    for _ in range(3):
        failing()
    before = holdings()
    for _ in range(20):
        failing()
    assert holdings() == before


def test_closing_twice_is_closing_once(engine: Engine) -> None:
    guest = Guest(engine)
    guest.vcpu.close()
    guest.vcpu.close()
    guest.machine.close()
    guest.machine.close()
    guest.memory.close()


def test_a_closed_processor_can_still_be_kicked(engine: Engine) -> None:
    with Guest(engine) as guest:
        guest.vcpu.close()
        guest.vcpu.kick()


def test_two_machines_live_side_by_side(engine: Engine) -> None:
    with Guest(engine) as first, Guest(engine) as second:
        first.load("b0 01 f4")
        second.load("b0 02 f4")
        assert (first.run(), second.run()) == (Hlt(), Hlt())
        assert (first.vcpu.get_regs().rax, second.vcpu.get_regs().rax) == (1, 2)


def test_descriptors_are_not_inherited(engine: Engine) -> None:
    before = descriptors()
    with Guest(engine, irqchip=True) as guest:
        guest.machine.statistics()
        opened = descriptors() - before
        inherited = [fd for fd in opened if os.get_inheritable(fd)]
    assert inherited == []


def test_the_memory_stays_its_owners(engine: Engine) -> None:
    with GuestMemory(0x1000) as memory:
        with engine.create_machine() as machine:
            machine.map(memory.slots[0])
        memory.write(0, b"still here")


def test_the_engine_counts_for_itself(engine: Engine) -> None:
    with Guest(engine) as guest:
        guest.load("e6 80 f4")
        guest.run()
        statistics = guest.machine.statistics()
    assert all(isinstance(value, int) for value in statistics.values())
    if engine.name == "kvm" and statistics:
        assert statistics["vcpu0.exits"] >= 1
