"""What a request costs in the device, without a guest: microseconds a block request and a network packet of virtio
devices, and a packet of the e1000.

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
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit" / "board"))

from board_bench import bench
from virtio_driver import DriverQueue, bring_up

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import NET_F_MRG_RXBUF, bit
from bivisor.host.disk import Disk
from bivisor.host.link import cable
from bivisor.host.loop import ManualLoop
from bivisor.memory import GuestMemory
from bivisor.platform.e1000 import E1000
from bivisor.platform.e1000 import registers as r
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


MAC = bytes.fromhex("525400000001")
RING, BUFFERS, SLOTS = 0x1_0000, 0x10_0000, 256
_CONTEXT = r.TX_CONTEXT.pack(
    14, 24, 33, 34, 50, 0, (r.TUCMD_TCP | r.TUCMD_IP | r.CMD_TSE | r.CMD_DEXT) << 24, 0, 54, 1460
)


def tcp_frame(size: int) -> bytes:
    """An IPv4 packet as a driver hands it to the card: without its sums."""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size - 14, 7, 0, 64, 6, 0, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)))
    return (
        MAC
        + bytes(6)
        + b"\x08\0"
        + ip
        + struct.pack(">HHIIBBHHH", 1, 2, 9, 0, 0x50, 0x10, 512, 0, 0)
        + bytes(size - 54)
    )


def card() -> None:
    """The e1000, as Linux drives it: pieces of 4096 bytes, a report for each packet, buffers of 2048 bytes."""
    with bench() as made:
        ends = cable(made.loop, made.loop)
        device = E1000(made.memory, ends[0], MAC.hex(":"), made.loop)
        made.board.add(device, 3)
        made.config(3, 0, 0x04, 7, 2)
        for low, place in ((r.TDBAL, RING), (r.RDBAL, RING + 16 * SLOTS)):
            for offset, value in ((0, place), (8, 16 * SLOTS)):
                device.write(low + offset, 4, value)
        for offset, value in ((r.TCTL, r.TCTL_EN), (r.RCTL, r.RCTL_EN), (r.IMS, 0x9F)):
            device.write(offset, 4, value)
        for at in range(SLOTS):
            made.memory.write(RING + 16 * SLOTS + 16 * at, struct.pack("<QQ", BUFFERS + 2048 * at, 0))
        for size, count in ((60, 32), (1514, 32), (64054, 4)):
            made.memory.write(BUFFERS, tcp_frame(size))
            packets = [struct.pack("<BBHHHHH", 1, size > 1514, 54, 1460, 34, 16, 0) + tcp_frame(size)] * count
            sent, got = [], []
            for _ in range(ROUNDS * 4):
                sent.append(card_send(made.memory, device, size, count))
                for _ in range(count):
                    assert ends[1].receive([memoryview(bytearray(1 << 17))]) > 0
                while ends[1].receive([memoryview(bytearray(1 << 17))]):
                    pass
                for packet in packets:
                    assert ends[1].send([memoryview(packet)])
                got.append(card_receive(device, count * -(-(size - 54) // 1460 or 1)))
            timed(f"e1000 send    of {size:5d}", count, size, sent)
            timed(f"e1000 receive of {size:5d}", count, size, got)
    for end in ends:
        end.close()


def card_send(memory: GuestMemory, device: E1000, size: int, count: int) -> float:
    tail = device.read(r.TDT, 4)
    command = (r.CMD_DEXT | r.CMD_IFCS | (r.CMD_TSE if size > 1514 else 0)) << 24 | 1 << 20
    pieces = range(0, size, 4096)
    for _ in range(count):
        made = [_CONTEXT]
        for at in pieces:
            last = (r.CMD_EOP | r.CMD_RS) << 24 if at + 4096 >= size else 0
            word = command | last | min(4096, size - at)
            made.append(r.TX_EXTENDED.pack(BUFFERS + at, word, 0, r.POPTS_IXSM | r.POPTS_TXSM, 0))
        for descriptor in made:
            memory.write(RING + 16 * tail, descriptor)
            tail = (tail + 1) % SLOTS
    elapsed = clock(lambda: device.write(r.TDT, 4, tail))
    while device.read(r.TDH, 4) != tail:
        elapsed += clock(device._wire_ready)
    return elapsed


def card_receive(device: E1000, frames: int) -> float:
    """Until all that was sent has arrived; the buffers are the driver's again meanwhile."""
    head = device.read(r.RDH, 4)
    device.write(r.RDT, 4, (head - 1) % SLOTS)
    elapsed = 0.0
    while (device.read(r.RDH, 4) - head) % SLOTS < frames % SLOTS:
        elapsed += clock(device._receive)
    device.read(r.ICR, 4)
    return elapsed


def clock(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    block()
    network()
    card()
