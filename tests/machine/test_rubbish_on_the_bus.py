"""A guest that writes rubbish to every port and every register of every device stops at most itself."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bivisor.kvm import End, Outcome, VirtualMachine
from bivisor.platform.virtio import registers as reg

from .player import STATUS, Access, prepare
from .tiny import MIB, PATIENCE, SPIN, decode, enter, holdings, plug_everything

LEGITIMATE = {End.POWER_OFF, End.RESET, End.EXIT_STATUS, End.PANIC}
ENDING_PORTS = [0x64, 0x92, 0xF4, 0x505, 0x604, 0xCF9]
PLAYED = Outcome(End.EXIT_STATUS, STATUS)


def values(dice: random.Random, size: int) -> int:
    """A number that fits in `size` bytes; zero, ones and single bits are frequent."""
    limit = 1 << 8 * size
    return dice.choice([0, 1, limit - 1, 1 << dice.randrange(8 * size), dice.randrange(limit), dice.randrange(limit)])


def claimed_ports(vm: VirtualMachine) -> list[int]:
    return [port for claim in vm.ports.claims for port in range(claim.base, claim.end)]


def sweep(vm: VirtualMachine, dice: random.Random) -> None:
    """Read and write every port and every register with the device lock held, as a processor does."""
    for bus, addresses in (
        (vm.ports, range(1 << 16)),
        (vm.mmio, [a for claim in vm.mmio.claims for a in range(claim.base, min(claim.end, claim.base + 0x3000))]),
    ):
        for address in addresses:
            for size in (1, 2, 4) if bus is vm.ports else (1, 2, 4, 8):
                with vm.loop.lock:
                    bus.write(address, size, values(dice, size))
                    assert 0 <= bus.read(address, size) < 1 << 8 * size


def test_no_access_to_any_port_or_register_raises(tmp_path: Path) -> None:
    dice = random.Random(1)
    with VirtualMachine(engine="soft", memory=16 * MIB) as vm:
        plug_everything(vm, tmp_path)
        enter(vm, SPIN)
        vm.start()
        sweep(vm, dice)
        outcome = vm.wait(PATIENCE)
        assert outcome is not None
        assert outcome.end in LEGITIMATE
        sweep(vm, dice)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_no_order_of_accesses_raises(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    with VirtualMachine(engine="soft", memory=16 * MIB) as vm:
        plug_everything(vm, tmp_path)
        enter(vm, SPIN)
        vm.start()
        ports = claimed_ports(vm)
        for _ in range(3000):
            size = dice.choice([1, 2, 4])
            with vm.loop.lock:
                if dice.randrange(2):
                    port = dice.choice(ports)
                    vm.ports.write(port, size, values(dice, size))
                    vm.ports.read(port, size)
                else:
                    claim = dice.choice(vm.mmio.claims)
                    address = claim.base + dice.randrange(min(claim.length, 0x3000))
                    vm.mmio.write(address, size, values(dice, size))
                    vm.mmio.read(address, size)
                if dice.randrange(50) == 0:
                    configure(vm, dice)
        vm.stop()
        assert vm.wait(PATIENCE) is not None


def configure(vm: VirtualMachine, dice: random.Random) -> None:
    """Write rubbish somewhere into the configuration space of a function that is there."""
    vm.ports.write(0xCF8, 4, 1 << 31 | dice.randrange(8) << 11 | dice.randrange(64) << 2)
    vm.ports.write(0xCFC + dice.randrange(4), 1, values(dice, 1))
    vm.ports.write(0xCFC, 4, values(dice, 4))


def every_port(first: int) -> Iterator[Access]:
    dice = random.Random(first)
    for port in range(first, min(first + 0x1000, 1 << 16)):
        if port in ENDING_PORTS:
            continue
        for size in (1, 2, 4):
            yield Access(port, size, values(dice, size), port=True)
            yield Access(port, size, port=True)


@pytest.mark.parametrize("first", range(0, 1 << 16, 0x1000), ids=hex)
def test_a_guest_can_write_rubbish_to_every_port(engine: str, tmp_path: Path, first: int) -> None:
    with VirtualMachine(engine=engine, memory=16 * MIB) as vm:
        plug_everything(vm, tmp_path)
        prepare(vm, every_port(first))
        vm.start()
        outcome = vm.wait(PATIENCE)
    assert outcome is not None
    assert outcome == PLAYED


@pytest.mark.parametrize("port", ENDING_PORTS, ids=hex)
def test_a_port_that_ends_the_machine_ends_it_and_no_more(engine: str, tmp_path: Path, port: int) -> None:
    script = [Access(port, size, value, port=True) for value in range(256) for size in (1, 2, 4)]
    with VirtualMachine(engine=engine, memory=16 * MIB) as vm:
        plug_everything(vm, tmp_path)
        prepare(vm, [*script, Access(0x604, 2, 0x3400, port=True)])
        vm.start()
        outcome = vm.wait(PATIENCE)
    assert outcome is not None
    assert outcome.end in LEGITIMATE
    assert outcome != PLAYED


def test_a_guest_can_write_rubbish_to_every_register(engine: str, tmp_path: Path) -> None:
    dice = random.Random(3)
    with VirtualMachine(engine=engine, memory=16 * MIB) as vm:
        plug_everything(vm, tmp_path)
        decode(vm)
        assert len(vm.mmio.claims) >= 10
        script = []
        for claim in vm.mmio.claims:
            for address in range(claim.base, claim.base + min(claim.length, reg.BAR_SIZE), 4):
                size = dice.choice([1, 2, 4, 8])
                script.append(Access(address, size, values(dice, size)))
                script.append(Access(address, size))
        prepare(vm, script)
        vm.start()
        assert vm.wait(PATIENCE) == PLAYED


def test_it_all_leaves_nothing_behind(tmp_path: Path) -> None:
    def cycle() -> None:
        with VirtualMachine(engine="soft", memory=16 * MIB) as vm:
            plug_everything(vm, tmp_path)
            enter(vm, SPIN)
            vm.start()
            dice = random.Random(7)
            for _ in range(300):
                with vm.loop.lock:
                    configure(vm, dice)
                    for claim in vm.mmio.claims:
                        vm.mmio.write(claim.base + dice.randrange(min(claim.length, 0x3000)), 4, values(dice, 4))
            time.sleep(0)

    for _ in range(10):
        cycle()
    before = holdings()
    for _ in range(10):
        cycle()
    assert holdings() == before
