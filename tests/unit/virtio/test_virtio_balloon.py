"""The memory balloon and the entropy device."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import DriverQueue, RecordingTransport, bring_up

from bivisor.errors import UsageError
from bivisor.host.falloc import punch_hole
from bivisor.host.loop import ManualLoop
from bivisor.memory import GuestMemory, MemoryRegion, Slot
from bivisor.platform.virtio.balloon import VirtioBalloon
from bivisor.platform.virtio.rng import VirtioRng

LIST = 0x100000
PAGES = 4096


class Rig:
    """A balloon in 16 MiB of memory, and what it punched out of it."""

    def __init__(self) -> None:
        self.memory = GuestMemory(PAGES * 4096)
        self.loop = ManualLoop()
        self.actual: list[int] = []
        self.holes: list[tuple[int, int]] = []
        self.device = VirtioBalloon(self.loop, self._punch, reporting=True, on_actual=self.actual.append)
        self.transport: RecordingTransport
        self.queues: list[DriverQueue]
        self.transport, self.queues = bring_up(self.device, self.memory)

    def _punch(self, fd: int, offset: int, length: int) -> None:
        self.holes.append((offset, length))
        punch_hole(fd, offset, length)

    def name_pages(self, queue: int, pages: list[int]) -> None:
        self.memory.write(LIST, struct.pack(f"<{len(pages)}I", *pages))
        self.queues[queue].add([(LIST, 4 * len(pages))], [])
        self.device.notify(queue)

    def close(self) -> None:
        self.device.close()
        self.memory.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    it = Rig()
    yield it
    it.close()


def test_inflating_gives_pages_back_in_runs(rig: Rig) -> None:
    rig.memory.write(0x800000, b"in use" * 4000)
    rig.name_pages(0, [0x803, 0x801, 0x800, 0x900, 0x901])
    assert rig.holes == [(0x800000, 0x2000), (0x803000, 0x1000), (0x900000, 0x2000)]
    assert rig.memory.read(0x800000, 0x2000) == bytes(0x2000)
    assert rig.memory.read(0x802000, 6) != bytes(6)
    assert len(rig.queues[0].take()) == 1


def test_deflating_needs_nothing_of_the_host(rig: Rig) -> None:
    rig.name_pages(1, [0x800])
    assert rig.holes == []
    assert len(rig.queues[1].take()) == 1


def test_pages_that_are_no_ram_are_left_alone() -> None:
    rig = Rig()
    firmware = MemoryRegion(0x1000)
    firmware.view[:4] = b"code"
    rig.memory.add(Slot(0xFFFFF000, 0x1000, firmware))
    rig.name_pages(0, [0xFFFFF, 0xFFFFFFFF, PAGES, PAGES - 1])
    assert rig.holes == [((PAGES - 1) * 4096, 4096)]
    assert bytes(firmware.view[:4]) == b"code"
    rig.close()
    firmware.close()


@pytest.mark.parametrize("queue", [3, 4])
def test_reported_free_pages_go_back_but_not_parts_of_pages(rig: Rig, queue: int) -> None:
    rig.queues[queue].add([], [(0x400000, 0x4000), (0x600800, 0x1000)])
    rig.device.notify(queue)
    assert rig.holes == [(0x400000, 0x4000)]


def test_the_target_and_the_size_are_in_the_configuration(rig: Rig) -> None:
    rig.device.set_target(1000)
    assert rig.transport.config_changes == 1
    assert struct.unpack_from("<I", rig.device.config) == (1000,)
    rig.device.config[4:8] = struct.pack("<I", 640)
    rig.device.config_written(4, 4)
    assert rig.device.actual == 640
    assert rig.actual == [640]
    with pytest.raises(UsageError):
        rig.device.set_target(-1)


def test_figures_come_when_they_are_asked_for(rig: Rig) -> None:
    rig.memory.write(LIST, struct.pack("<HQHQHQ", 4, 123456, 5, 999, 77, 1))
    rig.queues[2].add([(LIST, 30)], [])
    rig.device.notify(2)
    assert rig.device.stats == {"free-memory": 123456, "total-memory": 999}
    assert rig.queues[2].take() == []
    rig.device.request_stats()
    assert len(rig.queues[2].take()) == 1
    rig.device.request_stats()
    assert rig.queues[2].take() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(0, PAGES + 10), st.integers(0, (1 << 32) - 1)), min_size=1, max_size=300))
def test_any_list_of_pages_leaves_the_rest_of_memory_alone(pages: list[int]) -> None:
    rig = Rig()
    del rig.queues[1:]
    guard = [page for page in range(0x800, PAGES, 37) if page not in pages]
    for page in guard:
        rig.memory.write(page * 4096, b"guard")
    rig.name_pages(0, [page for page in pages if page > 0x700] or [0x700])
    assert all(rig.memory.read(page * 4096, 5) == b"guard" for page in guard)
    rig.close()


def test_entropy_fills_the_buffer_and_differs() -> None:
    memory, loop = GuestMemory(1 << 20), ManualLoop()
    device = VirtioRng(loop)
    transport, (driver,) = bring_up(device, memory)
    for at in (0x40000, 0x50000):
        driver.add([], [(at, 64)])
    device.notify(0)
    assert [written for _, written in driver.take()] == [64, 64]
    assert memory.read(0x40000, 64) != memory.read(0x50000, 64)
    assert transport.interrupts == [0]
    driver.add([(0x40000, 64)], [])
    driver.add([], [(0x40000, 0x20000)])
    device.notify(0)
    assert [written for _, written in driver.take()] == [0, 4096]
    device.close()
    memory.close()


def test_a_source_of_ones_own_makes_entropy_repeatable() -> None:
    def source(view: memoryview) -> int:
        view[:] = b"\x42" * len(view)
        return len(view)

    memory = GuestMemory(1 << 20)
    device = VirtioRng(ManualLoop(), source)
    _, (driver,) = bring_up(device, memory)
    driver.add([], [(0x40000, 16)])
    device.notify(0)
    assert memory.read(0x40000, 16) == b"\x42" * 16
    device.close()
    memory.close()
