"""The virtio block device, driven as a driver would, in front of a real image."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtio_driver import DriverQueue, RecordingTransport, bring_up

from bivisor.abi import virtio as abi
from bivisor.host.disk import Disk
from bivisor.host.loop import EventLoop, ManualLoop
from bivisor.memory import GuestMemory
from bivisor.platform.virtio.blk import VirtioBlk

SECTORS = 64
HEADER, STATUS, DATA = 0x100000, 0x100100, 0x101000


class Rig:
    """A disk of 64 sectors, its device and a driver in 2 MiB of memory."""

    def __init__(self, path: Path, *, read_only: bool = False, queues: int = 1) -> None:
        self.path = path
        self.memory = GuestMemory(2 << 20)
        self.loop = ManualLoop()
        self.disk = Disk(path, read_only=read_only)
        self.device = VirtioBlk(self.disk, self.loop, queues=queues, serial="vda-1")
        self.transport: RecordingTransport
        self.queues: list[DriverQueue]
        self.transport, self.queues = bring_up(self.device, self.memory)

    def request(self, kind: int, sector: int = 0, out: bytes = b"", into: int = 0, queue: int = 0) -> tuple[int, bytes]:
        """Carry out one request and wait for it: its status, and what came in."""
        self.memory.write(HEADER, struct.pack("<IIQ", kind, 0, sector))
        self.memory.write(STATUS, b"\xff")
        self.memory.write(DATA, out + bytes(into))
        reads = [(HEADER, 16)] + ([(DATA, len(out))] if out else [])
        writes = ([(DATA, into)] if into else []) + [(STATUS, 1)]
        driver = self.queues[queue]
        head = driver.add(reads, writes, table=True)
        self.device.notify(queue)
        done = driver.take()
        while not done:
            self.loop.run_soon()
            done = driver.take()
        assert done == [(head, into + 1)]
        return self.memory.read(STATUS, 1)[0], self.memory.read(DATA, into)

    def close(self) -> None:
        self.device.close()
        self.disk.close()
        self.memory.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([i]) * 512 for i in range(SECTORS)))
    return path


@pytest.fixture
def rig(image: Path) -> Iterator[Rig]:
    it = Rig(image)
    yield it
    it.close()


def test_sectors_are_read(rig: Rig) -> None:
    assert rig.request(abi.BLK_T_IN, 5, into=1024) == (abi.BLK_S_OK, bytes([5]) * 512 + bytes([6]) * 512)
    assert rig.transport.interrupts == [0]


def test_sectors_are_written_and_flushed(rig: Rig) -> None:
    assert rig.request(abi.BLK_T_OUT, 7, out=b"seven..." * 64)[0] == abi.BLK_S_OK
    assert rig.request(abi.BLK_T_FLUSH)[0] == abi.BLK_S_OK
    assert rig.path.read_bytes()[7 * 512 : 8 * 512] == b"seven..." * 64


def test_the_identity_is_told(rig: Rig) -> None:
    assert rig.request(abi.BLK_T_GET_ID, into=20) == (abi.BLK_S_OK, b"vda-1".ljust(20, b"\0"))


def test_the_configuration_tells_the_capacity(rig: Rig) -> None:
    assert struct.unpack_from("<Q", rig.device.config) == (SECTORS,)
    assert len(rig.device.config) == 60


@pytest.mark.parametrize("kind", [abi.BLK_T_DISCARD, abi.BLK_T_WRITE_ZEROES])
def test_a_range_is_given_back_and_reads_as_zero(rig: Rig, kind: int) -> None:
    flags = abi.BLK_RANGE_F_UNMAP if kind == abi.BLK_T_WRITE_ZEROES else 0
    assert rig.request(kind, out=struct.pack("<QII", 8, 8, flags))[0] == abi.BLK_S_OK
    assert rig.path.read_bytes()[8 * 512 : 16 * 512] == bytes(8 * 512)
    assert rig.path.stat().st_size == SECTORS * 512


@pytest.mark.parametrize(
    ("kind", "sector", "out", "into", "status"),
    [
        (abi.BLK_T_IN, SECTORS, b"", 512, abi.BLK_S_IOERR),
        (abi.BLK_T_IN, SECTORS - 1, b"", 1024, abi.BLK_S_IOERR),
        (abi.BLK_T_IN, (1 << 64) - 1, b"", 512, abi.BLK_S_IOERR),
        (abi.BLK_T_IN, 0, b"", 100, abi.BLK_S_IOERR),
        (abi.BLK_T_IN, 0, b"", 0, abi.BLK_S_IOERR),
        (abi.BLK_T_OUT, SECTORS, bytes(512), 0, abi.BLK_S_IOERR),
        (abi.BLK_T_OUT, 0, bytes(511), 0, abi.BLK_S_IOERR),
        (abi.BLK_T_DISCARD, 0, struct.pack("<QII", SECTORS - 1, 2, 0), 0, abi.BLK_S_IOERR),
        (abi.BLK_T_DISCARD, 0, struct.pack("<QII", 0, 1, 1), 0, abi.BLK_S_UNSUPP),
        (abi.BLK_T_DISCARD, 0, bytes(15), 0, abi.BLK_S_IOERR),
        (abi.BLK_T_DISCARD, 0, bytes(16 * 65), 0, abi.BLK_S_IOERR),
        (abi.BLK_T_WRITE_ZEROES, 0, struct.pack("<QII", 0, 0xFFFFFFFF, 0), 0, abi.BLK_S_IOERR),
        (99, 0, b"", 0, abi.BLK_S_UNSUPP),
    ],
)
def test_what_cannot_be_done_has_its_status(
    rig: Rig, kind: int, sector: int, out: bytes, into: int, status: int
) -> None:
    before = rig.path.read_bytes()
    assert rig.request(kind, sector, out, into)[0] == status
    assert rig.path.read_bytes() == before
    assert not rig.transport.reasons


def test_a_read_only_disk_takes_no_writes(image: Path) -> None:
    rig = Rig(image, read_only=True)
    assert rig.device.offered >> abi.BLK_F_RO & 1
    assert rig.request(abi.BLK_T_OUT, 0, out=bytes(512))[0] == abi.BLK_S_IOERR
    assert rig.request(abi.BLK_T_WRITE_ZEROES, 0, out=struct.pack("<QII", 0, 1, 0))[0] == abi.BLK_S_IOERR
    rig.close()


def test_several_queues_serve_the_same_disk(image: Path) -> None:
    rig = Rig(image, queues=3)
    assert struct.unpack_from("<H", rig.device.config, 34) == (3,)
    for queue in range(3):
        assert rig.request(abi.BLK_T_IN, queue, into=512, queue=queue)[1] == bytes([queue]) * 512
    rig.close()


@pytest.mark.parametrize("cut", [1, 7, 15])
def test_a_header_in_two_pieces_is_one_header(rig: Rig, cut: int) -> None:
    rig.memory.write(HEADER, struct.pack("<IIQ", abi.BLK_T_IN, 0, 3))
    rig.queues[0].add([(HEADER, cut), (HEADER + cut, 16 - cut)], [(DATA, 513)])
    rig.device.notify(0)
    assert rig.memory.read(DATA, 513) == bytes([3]) * 512 + b"\0"


@pytest.mark.parametrize(("out", "into"), [([(HEADER, 15)], [(DATA, 1)]), ([(HEADER, 16)], []), ([], [(DATA, 1)])])
def test_a_request_that_cannot_be_answered_asks_for_a_reset(
    rig: Rig, out: list[tuple[int, int]], into: list[tuple[int, int]]
) -> None:
    rig.queues[0].add(out, into)
    rig.device.notify(0)
    assert len(rig.transport.reasons) == 1
    rig.device.notify(0)
    assert len(rig.transport.reasons) == 1


def test_a_disk_that_fails_is_an_io_error(rig: Rig) -> None:
    os.truncate(rig.path, 512)
    assert rig.request(abi.BLK_T_IN, 1, into=512)[0] == abi.BLK_S_IOERR


def test_a_reset_with_a_flush_under_way_writes_nothing_afterwards(rig: Rig) -> None:
    rig.memory.write(HEADER, struct.pack("<IIQ", abi.BLK_T_FLUSH, 0, 0))
    rig.memory.write(STATUS, b"\xff")
    rig.queues[0].add([(HEADER, 16)], [(STATUS, 1)])
    rig.device.notify(0)
    rig.device.reset()
    rig.loop.run_soon()
    assert rig.memory.read(STATUS, 1) == b"\xff"
    assert rig.queues[0].take() == []


requests = st.tuples(
    st.sampled_from([0, 1, 4, 8, 11, 13, 99]),
    st.one_of(st.integers(0, SECTORS + 4), st.integers(0, (1 << 64) - 1)),
    st.lists(st.tuples(st.integers(0, 0x3000), st.integers(1, 1500)), max_size=4),
    st.lists(st.tuples(st.integers(0, 0x3000), st.integers(1, 1500)), max_size=4),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(todo=st.lists(requests, min_size=1, max_size=6))
def test_any_requests_at_all_are_answered_or_end_in_a_reset(
    image: Path, todo: list[tuple[int, int, list[tuple[int, int]], list[tuple[int, int]]]]
) -> None:
    rig = Rig(image)
    sent = 0
    for kind, sector, out, into in todo:
        rig.memory.write(HEADER + 16 * sent, struct.pack("<IIQ", kind, 0, sector))
        parts = [(HEADER + 16 * sent, 16)] + [(DATA + at, length) for at, length in out]
        if rig.queues[0].add(parts, [(DATA + at, length) for at, length in into], table=True) is not None:
            sent += 1
    rig.device.notify(0)
    while rig.device._flushing:
        rig.loop.run_soon()
    assert rig.transport.reasons or len(rig.queues[0].take()) == sent
    assert image.stat().st_size == SECTORS * 512
    rig.close()


class SlowDisk(Disk):
    """A disk whose flush waits until the test lets it go."""

    def __init__(self, path: Path) -> None:
        self.gate = threading.Event()
        super().__init__(path)

    def flush(self) -> None:
        self.gate.wait(30)


def test_a_device_is_closed_under_the_lock_while_a_flush_ends(image: Path) -> None:
    loop = EventLoop()
    before = threading.active_count()
    disk = SlowDisk(image)
    with GuestMemory(2 << 20) as memory, disk:
        device = VirtioBlk(disk, loop)
        _, (driver,) = bring_up(device, memory)
        memory.write(HEADER, struct.pack("<IIQ", abi.BLK_T_FLUSH, 0, 0))
        driver.add([(HEADER, 16)], [(STATUS, 1)])
        with loop.lock:
            device.notify(0)
            disk.gate.set()
            device.close()
    assert threading.active_count() == before
    loop.close()
