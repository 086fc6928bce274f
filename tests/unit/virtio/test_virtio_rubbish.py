"""Every virtio device with a driver that makes no sense: nothing raises, and every turn ends."""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.abi.virtio import BLK_REQ, DESC, DESC_F_NEXT, DESC_F_WRITE, F_VERSION_1, bit
from bivisor.host.disk import Disk
from bivisor.host.falloc import punch_hole
from bivisor.host.link import cable
from bivisor.host.loop import ManualLoop
from bivisor.host.memstream import MemoryStream
from bivisor.host.shared_folder import SharedFolder
from bivisor.memory import GuestMemory
from bivisor.platform.virtio import registers as reg
from bivisor.platform.virtio.balloon import VirtioBalloon
from bivisor.platform.virtio.blk import VirtioBlk
from bivisor.platform.virtio.console import Port, VirtioConsole
from bivisor.platform.virtio.device import VirtioDevice
from bivisor.platform.virtio.fs import VirtioFs
from bivisor.platform.virtio.net import VirtioNet
from bivisor.platform.virtio.registers import VirtioRegisters
from bivisor.platform.virtio.rng import VirtioRng

RAM = 1 << 20


class NoSignals:
    """A function that interrupts nobody."""

    vectors = 4
    messages_enabled = True

    def send_message(self, vector: int) -> None:
        assert 0 <= vector < self.vectors

    def set_intx(self, level: bool) -> None:
        pass


def make_blk(stack: ExitStack, loop: ManualLoop) -> VirtioDevice:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    image = Path(folder, "disk.img")
    image.write_bytes(bytes(1 << 20))
    return VirtioBlk(stack.enter_context(Disk(image)), loop, queues=2)


def make_console(stack: ExitStack, loop: ManualLoop) -> VirtioDevice:
    streams = [MemoryStream(loop) for _ in range(3)]
    for stream in streams:
        stream.send(b"input" * 100)
    return VirtioConsole([Port(stream, name) for stream, name in zip(streams, ("", "a", "b"), strict=True)])


def make_net(stack: ExitStack, loop: ManualLoop) -> VirtioDevice:
    left, right = cable(loop, loop)
    stack.callback(left.close)
    stack.callback(right.close)
    for size in (0, 10, 60, 5000):
        right.send([memoryview(bytes(12 + size))])
    return VirtioNet(left, "52:54:00:12:34:56")


def make_balloon(stack: ExitStack, loop: ManualLoop) -> VirtioDevice:
    return VirtioBalloon(loop, punch_hole, reporting=True)


def make_rng(stack: ExitStack, loop: ManualLoop) -> VirtioDevice:
    return VirtioRng(loop)


def make_fs(stack: ExitStack, loop: ManualLoop) -> VirtioDevice:
    shared = SharedFolder(stack.enter_context(tempfile.TemporaryDirectory()))
    stack.callback(shared.close)
    return VirtioFs(shared, loop, "files")


MAKERS = [make_blk, make_console, make_net, make_balloon, make_rng, make_fs]


DATA = 0x80000


def ring_bytes(dice: random.Random, size: int, wrong: float) -> bytes:
    """Chains of readable and then writable descriptors, in which a share of the fields is `wrong`."""
    out = bytearray()
    for index in range(size):
        last = index % 4 == 3 or index == size - 1
        address, following = DATA + 16 * dice.randrange(0x4000), index + 1
        length = dice.choice([1, 8, 16, 17, 64, 513, 1600, 70000])
        flags = (0 if last else DESC_F_NEXT) | (DESC_F_WRITE if index % 4 >= dice.randrange(1, 4) else 0)
        if index % 4 == 0:
            length, flags = max(length, 16), flags & ~DESC_F_WRITE if dice.randrange(3) else flags
        if dice.random() < wrong:
            address = dice.choice([dice.randrange(RAM), dice.randrange(1 << 64), RAM - 8])
        if dice.random() < wrong:
            length = dice.choice([0, dice.randrange(1 << 32)])
        if dice.random() < wrong:
            flags = dice.randrange(8)
        if dice.random() < wrong:
            following = dice.choice([dice.randrange(size), dice.randrange(1 << 16)])
        out += DESC.pack(address, length, flags, following)
    return bytes(out)


def contents(dice: random.Random) -> bytes:
    """Block requests, which are port numbers and page numbers to others, and rubbish in between."""
    kinds = [0, 1, 4, 8, 11, 13, 99, 3, 6]
    parts = [BLK_REQ.pack(dice.choice(kinds), dice.randrange(8), dice.randrange(4096)) for _ in range(200)]
    parts += [dice.randbytes(16) for _ in range(20)]
    dice.shuffle(parts)
    return b"".join(parts)


@pytest.mark.parametrize("make", MAKERS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_driver_that_makes_no_sense_stops_at_most_its_device(
    make: Callable[[ExitStack, ManualLoop], VirtioDevice], seed: int
) -> None:
    dice = random.Random(seed)
    loop = ManualLoop()
    with GuestMemory(RAM) as memory, ExitStack() as stack:
        device = make(stack, loop)
        registers = VirtioRegisters(device, memory, NoSignals())
        write = registers.write
        wrong = dice.choice([0, 0, 0.02, 0.2])
        text = contents(dice)
        for at in range(DATA, RAM - len(text), len(text)):
            memory.write(at, text)
        write(0x14, 1, 3)
        features = dice.choice([device.offered, device.offered & dice.randrange(1 << 40)]) | bit(F_VERSION_1)
        for half in (0, 1):
            write(0x08, 4, half)
            write(0x0C, 4, features >> 32 * half & 0xFFFFFFFF)
        write(0x14, 1, 11)
        for index in range(len(device.queues)):
            write(0x16, 2, index)
            size = min(16, registers.read(0x18, 2))
            write(0x18, 2, size)
            base = 0x2000 * (index + 1)
            memory.write(base, ring_bytes(dice, size, wrong))
            heads = [4 * dice.randrange(size // 4) for _ in range(size)]
            count = size
            if dice.random() < wrong:
                heads[0] = dice.randrange(1 << 16)
            if dice.random() < wrong:
                count = dice.randrange(1 << 16)
            memory.write(base + 0x1000, struct.pack(f"<HH{size}HH", 0, count, *heads, 0))
            for offset, address in ((0x20, base), (0x28, base + 0x1000), (0x30, base + 0x1800)):
                write(offset, 8, address if dice.random() >= wrong else dice.randrange(1 << 64))
            write(0x1C, 2, 1)
        write(0x14, 1, 15)
        for _ in range(40):
            write(reg.NOTIFY + 4 * dice.randrange(8), 2, 0)
            for fd, (readable, writable) in list(loop.watches.items()):
                if fd in loop.watches and readable:
                    readable()
                if fd in loop.watches and writable:
                    writable()
            for _ in range(min(10, len(loop._soon))):
                loop._soon.popleft()()
            if dice.random() < wrong:
                write(dice.randrange(reg.BAR_SIZE), dice.choice([1, 2, 4]), dice.randrange(256))
        device.close()
        loop._soon.clear()
        loop.watches.clear()
