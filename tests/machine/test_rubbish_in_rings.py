"""A guest whose drivers hand out rings full of random descriptors stops at most itself."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bivisor.abi.virtio import BLK_REQ, DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, F_VERSION_1, bit
from bivisor.kvm import End, VirtualMachine
from bivisor.platform.virtio import registers as reg
from bivisor.platform.virtio.pci import REGISTERS_BAR, VirtioPci

from .player import Access, prepare
from .tiny import MIB, PATIENCE, decode, holdings, plug_everything

RAM = 16 * MIB
RINGS, DATA = 0x20_0000, 0x80_0000
QUEUE = 16
ACKNOWLEDGE_DRIVER, FEATURES_OK, DRIVER_OK = 3, 11, 15
BOUND = 0.5  # seconds for a guest that its own devices may have overwritten


def descriptors(dice: random.Random, wrong: float) -> bytes:
    """A table of chains in which a share of the fields is `wrong`."""
    out = bytearray()
    for index in range(QUEUE):
        address = DATA + 16 * dice.randrange(0x4_0000)
        length = dice.choice([1, 16, 16, 17, 512, 513, 1600, 4096, 70_000])
        flags = (DESC_F_NEXT if index % 4 != 3 else 0) | (DESC_F_WRITE if index % 4 >= dice.randrange(1, 4) else 0)
        following = index + 1
        if dice.random() < wrong:
            address = dice.choice([dice.randrange(RAM), RAM - 8, 0xFEE0_0000, dice.randrange(1 << 64), (1 << 64) - 8])
        if dice.random() < wrong:
            length = dice.choice([0, RAM, dice.randrange(1 << 32), (1 << 32) - 1])
        if dice.random() < wrong:
            flags = dice.choice([dice.randrange(8), DESC_F_INDIRECT, dice.randrange(1 << 16)])
        if dice.random() < wrong:
            following = dice.choice([index, 0, dice.randrange(QUEUE), dice.randrange(1 << 16)])
        out += DESC.pack(address, length, flags, following)
    return bytes(out)


def available(dice: random.Random, wrong: float) -> bytes:
    """An available ring that says it is full, or whatever."""
    heads = [4 * dice.randrange(QUEUE // 4) for _ in range(QUEUE)]
    if dice.random() < wrong:
        heads = [dice.randrange(1 << 16) for _ in range(QUEUE)]
    index = dice.randrange(1 << 16) if dice.random() < wrong else QUEUE
    return struct.pack(f"<HH{QUEUE}HH", dice.randrange(2), index, *heads, dice.randrange(1 << 16))


def contents(dice: random.Random) -> bytes:
    """Requests for a disk, which are control messages and page numbers to others, tables and rubbish."""
    parts = [
        BLK_REQ.pack(dice.choice([0, 1, 4, 8, 11, 13, 99, 3, 6]), dice.randrange(8), dice.choice([0, 1, 2047, 1 << 60]))
        for _ in range(200)
    ]
    parts += [dice.randbytes(16) for _ in range(40)]
    parts += [descriptors(dice, 0.1) for _ in range(4)]
    dice.shuffle(parts)
    return b"".join(parts)


def bring_up(function: VirtioPci, vm: VirtualMachine, dice: random.Random, wrong: float, at: int) -> Iterator[Access]:
    """Start the device's driver with rings from `at` on, and let it notify."""
    base = function.bars[REGISTERS_BAR].mapped
    assert base is not None
    device = function.device

    def write(offset: int, size: int, value: int) -> Access:
        return Access(base + offset, size, value)

    yield write(0x14, 1, ACKNOWLEDGE_DRIVER)
    features = dice.choice([device.offered, device.offered & dice.randrange(1 << 40)]) | bit(F_VERSION_1)
    for half in (0, 1):
        yield write(0x08, 4, half)
        yield write(0x0C, 4, features >> 32 * half & 0xFFFF_FFFF)
    yield write(0x14, 1, FEATURES_OK)
    for index in range(len(device.queues)):
        ring = at + 0x2000 * index
        vm.memory.write(ring, descriptors(dice, wrong))
        vm.memory.write(ring + 0x1000, available(dice, wrong))
        yield write(0x16, 2, index)
        yield write(0x18, 2, QUEUE)
        for offset, address in ((0x20, ring), (0x28, ring + 0x1000), (0x30, ring + 0x1800)):
            if dice.random() < wrong / 4:
                address = dice.randrange(1 << 64)
            yield write(offset, 4, address & 0xFFFF_FFFF)
            yield write(offset + 4, 4, address >> 32)
        yield write(0x1C, 2, 1)
    yield write(0x14, 1, DRIVER_OK)


def notifications(
    vm: VirtualMachine, functions: list[VirtioPci], dice: random.Random, wrong: float
) -> Iterator[Access]:
    """Notify queues at random, and go on making buffers available."""
    for _ in range(400):
        number = dice.randrange(len(functions))
        base = functions[number].bars[REGISTERS_BAR].mapped
        assert base is not None
        index = dice.randrange(len(functions[number].device.queues))
        ring = RINGS + 0x2_0000 * number + 0x2000 * index
        yield Access(ring + 0x1002, 2, dice.randrange(QUEUE * 4) if dice.random() >= wrong else dice.randrange(1 << 16))
        yield Access(base + reg.NOTIFY + reg.NOTIFY_MULTIPLIER * index, 2, index)
        if dice.random() < wrong:
            size = dice.choice([1, 2, 4, 8])
            yield Access(base + dice.randrange(reg.BAR_SIZE - 8), size, dice.randrange(1 << 8 * size))
        if dice.random() < wrong:
            yield Access(base + 0x14, 1, 0)  # reset, in the middle of everything


def play(engine: str, folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    wrong = dice.choice([0, 0.02, 0.1, 0.5])
    with VirtualMachine(engine=engine, memory=RAM) as vm:
        plug_everything(vm, folder)
        decode(vm)
        functions = [f for f in vm.pc.pci._functions.values() if isinstance(f, VirtioPci)]
        text = contents(dice)
        for at in range(DATA, RAM - len(text), len(text)):
            vm.memory.write(at, text)
        script: list[Access] = []
        for number, function in enumerate(functions):
            script += bring_up(function, vm, dice, wrong, RINGS + 0x2_0000 * number)
        script += notifications(vm, functions, dice, wrong)
        prepare(vm, script)
        vm.start()
        if vm.wait(BOUND) is None:
            vm.stop()
        outcome = vm.wait(PATIENCE)
        assert outcome is not None, "the machine cannot be stopped"
        assert outcome.end is not End.ENGINE or engine == "kvm", outcome
        if wrong == 0:
            assert outcome.end is End.EXIT_STATUS, outcome
        assert not any(vm.memory.contains(address, 1) for address in (RAM, 0xE000_0000, 1 << 40))
    assert (folder / "disk").stat().st_size == MIB


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_random_rings_stop_at_most_their_guest(engine: str, tmp_path: Path, seed: int) -> None:
    play(engine, tmp_path, seed)


def test_random_rings_leave_nothing_behind(engine: str, tmp_path: Path) -> None:
    for seed in range(25):
        play(engine, tmp_path, seed)
    before = holdings()
    for seed in range(25):
        play(engine, tmp_path, seed)
    assert holdings() == before
