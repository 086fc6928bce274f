"""What a virtio request costs in the device, without a guest: microseconds a block request and a network packet.

    python bench/virtio.py

The fake driver fills a queue, and only the device's work on it is timed. The image is in /dev/shm, so that it is the
cost of the way there and not of a disk.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit" / "virtio"))

from virtio_driver import DriverQueue, bring_up

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import NET_F_MRG_RXBUF, bit
from bivisor.host.disk import Disk
from bivisor.host.link import cable
from bivisor.host.loop import ManualLoop
from bivisor.memory import GuestMemory
from bivisor.platform.virtio.blk import VirtioBlk
from bivisor.platform.virtio.net import OFFLOADS, VirtioNet

ROUNDS = 40
HEADERS, DATA = 0x200000, 0x400000
IMAGE = 64 << 20


def timed(name: str, count: int, size: int, rounds: list[float]) -> None:
    best = min(rounds)
    speed = f", {count * size / best / 1e9:.2f} GB/s" if size >= 4096 else ""
    print(f"{name}: {best / count * 1e6:.2f} µs{speed}")


def block() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(IMAGE)
        loop = ManualLoop()
        with GuestMemory(128 << 20) as memory, Disk(file.name) as disk:
            device = VirtioBlk(disk, loop)
            _, (driver,) = bring_up(device, memory, size=256)
            for kind, name in ((abi.BLK_T_OUT, "write"), (abi.BLK_T_IN, "read")):
                for size, parts in ((512, 1), (4096, 1), (131072, 1), (131072, 32)):
                    rounds = [block_round(device, memory, driver, kind, size, parts) for _ in range(ROUNDS)]
                    timed(f"blk {name} of {size:6d} in {parts:2d} part(s)", 128, size, rounds)
            device.close()


def block_round(device: VirtioBlk, memory: GuestMemory, driver: DriverQueue, kind: int, size: int, parts: int) -> float:
    for i in range(128):
        header = HEADERS + 32 * i
        memory.write(header, struct.pack("<IIQ", kind, 0, size * i // 512))
        # Every other page, so that no two parts are neighbours.
        data = [(DATA + 0x40000 * i + 2 * size // parts * part, size // parts) for part in range(parts)]
        out, into = ([], data) if kind == abi.BLK_T_IN else (data, [])
        driver.add([(header, 16), *out], [*into, (header + 16, 1)], table=True)
    start = time.perf_counter()
    device.notify(0)
    device._loop.run_soon()  # type: ignore[attr-defined]
    elapsed = time.perf_counter() - start
    assert len(driver.take()) == 128
    return elapsed


def network() -> None:
    loop = ManualLoop()
    ends = cable(loop, loop)
    features = OFFLOADS | bit(NET_F_MRG_RXBUF) | bit(abi.F_EVENT_IDX) | bit(abi.F_INDIRECT_DESC)
    with GuestMemory(64 << 20) as left, GuestMemory(64 << 20) as right:
        sender, receiver = VirtioNet(ends[0], "52:54:00:00:00:01"), VirtioNet(ends[1], "52:54:00:00:00:02")
        _, (_, transmit) = bring_up(sender, left, size=256, features=features)
        _, (receive, _) = bring_up(receiver, right, size=256, features=features)
        for size, parts, count in ((60, 1, 32), (1514, 1, 32), (64000, 17, 4)):
            rounds = [net_round(sender, receiver, transmit, receive, size, parts, count) for _ in range(ROUNDS * 4)]
            timed(f"net send    of {size:5d}", count, size, [sent for sent, _ in rounds])
            timed(f"net receive of {size:5d}", count, size, [got for _, got in rounds])
        sender.close()
        receiver.close()
    for end in ends:
        end.close()


def net_round(
    sender: VirtioNet,
    receiver: VirtioNet,
    transmit: DriverQueue,
    receive: DriverQueue,
    size: int,
    parts: int,
    count: int,
) -> tuple[float, float]:
    while receive.free:
        receive.add([], [(DATA + 0x1000 * receive.free[-1], 1536)])
    receiver.notify(0)
    for i in range(count):
        piece = size // parts
        data = [(DATA + 0x20000 * i + 2 * piece * part, piece) for part in range(parts)]
        transmit.add([(HEADERS, 12), *data], [], table=True)
    sent = clock(lambda: sender.notify(1))
    assert len(transmit.take()) == count
    got = clock(receiver._receive)
    assert receive.take()
    return sent, got


def clock(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    block()
    network()
