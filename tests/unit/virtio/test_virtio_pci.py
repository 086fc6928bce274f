"""A virtio device as a PCI function: what a driver finds, how it is set up, and what it makes of rubbish."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import DriverQueue

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, bit
from bivisor.errors import EngineError
from bivisor.host.loop import ManualLoop
from bivisor.memory import GuestMemory
from bivisor.platform.bus import mmio_bus, port_bus
from bivisor.platform.pci import PciBus
from bivisor.platform.pci.bus import FIRST_GSI
from bivisor.platform.virtio import registers as reg
from bivisor.platform.virtio.device import VirtioDevice
from bivisor.platform.virtio.pci import VirtioPci

SLOT = 3
MSI = 0xFEE0_0000


class Echo(VirtioDevice):
    """Two queues; whatever a chain brings is answered with its length. One configuration field can be written."""

    device_id = 42
    name = "virtio-echo"

    def __init__(self) -> None:
        super().__init__(bit(5), [16, 8], bytes(range(8)))

    def writable_config(self) -> range:
        return range(4, 8)

    def notify(self, index: int) -> None:
        queue = self.queues[index]
        while (chain := queue.pop()) is not None:
            written = min(chain.writable_size, chain.readable_size)
            queue.push(chain, written)
        queue.listen()
        self.finish(queue)


class Rig:
    """A PCI bus with one virtio function in slot 3."""

    def __init__(self) -> None:
        self.memory = GuestMemory(1 << 20)
        self.mmio = mmio_bus()
        self.messages: list[tuple[int, int]] = []
        self.line: list[bool] = []
        self.bus = PciBus(
            port_bus(),
            self.mmio,
            set_irq=lambda gsi, level: self.line.append(level) if gsi >= FIRST_GSI else None,
            signal_msi=lambda address, data: self.messages.append((address, data)),
        )
        self.device = Echo()
        self.function = VirtioPci(self.device, self.memory)
        self.bus.add(self.function, SLOT)
        self.bus.assign()
        self.config_write(4, 2, 6)
        mapped = self.function.bars[0].mapped
        assert mapped is not None
        self.base = mapped
        table = self.function.bars[1].mapped
        assert table is not None
        self.table = table

    def config_read(self, offset: int, size: int) -> int:
        return self.bus.config_read(0x8000_0000 | SLOT << 11 | offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        self.bus.config_write(0x8000_0000 | SLOT << 11 | offset, size, value)

    def read(self, offset: int, size: int) -> int:
        return self.mmio.read(self.base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.mmio.write(self.base + offset, size, value)

    def capabilities(self) -> dict[int, tuple[int, int, int]]:
        """The virtio capabilities by type: where, offset in the BAR, length."""
        found = {}
        at = self.config_read(0x34, 1)
        while at:
            if self.config_read(at, 1) == 9:
                where = (at, self.config_read(at + 8, 4), self.config_read(at + 12, 4))
                found[self.config_read(at + 3, 1)] = where
            at = self.config_read(at + 1, 1)
        return found

    def negotiate(self, features: int) -> int:
        """Reset, set `features` and FEATURES_OK; the status then."""
        self.write(0x14, 1, 0)
        self.write(0x14, 1, abi.STATUS_ACKNOWLEDGE | abi.STATUS_DRIVER)
        for half in (0, 1):
            self.write(0x08, 4, half)
            self.write(0x0C, 4, features >> 32 * half & 0xFFFFFFFF)
        self.write(0x14, 1, 11)
        return self.read(0x14, 1)

    def place(self, index: int, vector: int = abi.MSI_NO_VECTOR) -> DriverQueue:
        """Set up queue `index` with 8 descriptors."""
        driver = DriverQueue(self.memory, 0x10000 * (index + 1), 8)
        self.write(0x16, 2, index)
        self.write(0x18, 2, 8)
        self.write(0x1A, 2, vector)
        for offset, address in ((0x20, driver.desc), (0x28, driver.avail), (0x30, driver.used)):
            self.write(offset, 4, address)
            self.write(offset + 4, 4, 0)
        self.write(0x1C, 2, 1)
        return driver

    def start(self, vector: int = abi.MSI_NO_VECTOR) -> DriverQueue:
        """Bring the device up with queue 0."""
        assert self.negotiate(bit(F_VERSION_1) | bit(F_INDIRECT_DESC) | bit(F_EVENT_IDX)) == 11
        driver = self.place(0, vector)
        self.write(0x14, 1, 15)
        return driver

    def enable_msix(self) -> None:
        at = self.config_read(0x34, 1)
        while self.config_read(at, 1) != 0x11:
            at = self.config_read(at + 1, 1)
        self.config_write(at + 2, 2, 0x8000)
        for vector in range(3):
            for offset, value in ((0, MSI), (4, 0), (8, 0x40 + vector), (12, 0)):
                self.mmio.write(self.table + 16 * vector + offset, 4, value)

    def close(self) -> None:
        self.bus.close()
        self.memory.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    it = Rig()
    yield it
    it.close()


def test_the_function_says_what_it_is(rig: Rig) -> None:
    assert rig.config_read(0, 4) == 0x106A_1AF4
    assert rig.config_read(8, 1) == 1
    found = rig.capabilities()
    assert {kind: offset for kind, (_, offset, _) in found.items()} == {1: 0, 3: 0x1000, 4: 0x2000, 2: 0x3000, 5: 0}


def test_features_are_offered_in_two_halves_and_nothing_beyond(rig: Rig) -> None:
    halves = []
    for half in (0, 1, 2, 0xFFFFFFFF):
        rig.write(0, 4, half)
        halves.append(rig.read(4, 4))
    assert halves == [1 << 5 | 1 << 28 | 1 << 29, 1, 0, 0]


@pytest.mark.parametrize("features", [0, bit(5), bit(F_VERSION_1) | bit(6), bit(F_VERSION_1) | bit(40)])
def test_features_that_were_not_offered_are_not_ok(rig: Rig, features: int) -> None:
    assert rig.negotiate(features) == 3
    rig.write(0x14, 1, 7)
    assert not rig.device.active


def test_a_buffer_is_served_and_interrupts_through_msix(rig: Rig) -> None:
    rig.enable_msix()
    driver = rig.start(vector=1)
    head = driver.add([(0x40000, 10)], [(0x41000, 20)])
    rig.write(reg.NOTIFY, 2, 0)
    assert driver.take() == [(head, 10)]
    assert rig.messages == [(MSI, 0x41)]
    assert rig.line == []


def test_without_msix_the_line_goes_up_until_the_isr_is_read(rig: Rig) -> None:
    driver = rig.start()
    driver.add([(0x40000, 10)], [])
    rig.write(reg.NOTIFY, 2, 0)
    assert rig.line == [True]
    assert rig.read(reg.ISR, 1) == 1
    assert rig.line == [True, False]
    assert rig.read(reg.ISR, 1) == 0


def test_a_vector_that_does_not_exist_reads_back_as_none(rig: Rig) -> None:
    rig.write(0x10, 2, 2)
    assert rig.read(0x10, 2) == 2
    rig.write(0x10, 2, 3)
    assert rig.read(0x10, 2) == 0xFFFF


def test_a_driver_that_breaks_the_rules_is_told_to_reset(rig: Rig) -> None:
    rig.enable_msix()
    driver = rig.start(vector=1)
    rig.write(0x10, 2, 2)
    driver.offer(99)
    rig.write(reg.NOTIFY, 2, 0)
    assert rig.read(0x14, 1) == 15 | abi.STATUS_DEVICE_NEEDS_RESET
    assert rig.messages == [(MSI, 0x42)]
    rig.write(reg.NOTIFY, 2, 0)
    assert len(rig.messages) == 1
    rig.messages.clear()
    driver = rig.start(vector=1)
    driver.add([(0x40000, 1)], [])
    rig.write(reg.NOTIFY, 2, 0)
    assert rig.messages == [(MSI, 0x41)]


def test_a_live_queue_does_not_move(rig: Rig) -> None:
    rig.start()
    rig.write(0x16, 2, 0)
    rig.write(0x20, 4, 0x666000)
    rig.write(0x18, 2, 4)
    assert rig.read(0x20, 4) == 0x10000
    assert rig.read(0x18, 2) == 8


def test_only_the_writable_part_of_the_configuration_changes(rig: Rig) -> None:
    rig.write(reg.DEVICE, 4, 0xFFFFFFFF)
    rig.write(reg.DEVICE + 2, 4, 0xFFFFFFFF)
    rig.write(reg.DEVICE + 4, 4, 0x11223344)
    assert rig.read(reg.DEVICE, 8) == 0x11223344_03020100
    assert rig.read(reg.DEVICE + 6, 4) == 0x1122


def test_a_change_of_the_configuration_counts_up_and_interrupts(rig: Rig) -> None:
    rig.start()
    before = rig.read(0x15, 1)
    rig.device.change_config(0, "<I", 7)
    assert rig.read(0x15, 1) == before + 1
    assert rig.read(reg.ISR, 1) == abi.ISR_CONFIG


def test_configuration_space_has_a_window_into_the_bar(rig: Rig) -> None:
    at = rig.capabilities()[5][0]
    for offset, size, value in ((4, 1, 0), (8, 4, 0x12), (12, 4, 2)):
        rig.config_write(at + offset, size, value)
    assert rig.config_read(at + 16, 2) == 2
    rig.config_write(at + 8, 4, 0x16)
    rig.config_write(at + 16, 2, 1)
    assert rig.read(0x16, 2) == 1
    rig.config_write(at + 8, 4, 0xFFFFFFFE)
    assert rig.config_read(at + 16, 4) == 1


class FakeMachine:
    """Remembers its ioeventfds."""

    def __init__(self, *, works: bool = True) -> None:
        self.works = works
        self.places: dict[int, tuple[int, int]] = {}

    def ioeventfd(self, fd: int, address: int, length: int) -> None:
        if not self.works:
            raise EngineError("no ioeventfd here")
        assert address not in self.places
        self.places[address] = (fd, length)

    def remove_ioeventfd(self, fd: int, address: int, length: int) -> None:
        assert self.places.pop(address) == (fd, length)


def test_notifications_come_by_eventfd_and_follow_the_bar(rig: Rig) -> None:
    machine, loop = FakeMachine(), ManualLoop()
    assert rig.function.attach_notifiers(machine, loop)  # type: ignore[arg-type]
    driver = rig.start()
    assert sorted(machine.places) == [rig.base + 0x3000, rig.base + 0x3004]
    rig.config_write(0x10, 4, 0xE800_0000)
    assert sorted(machine.places) == [0xE800_3000, 0xE800_3004]
    driver.add([(0x40000, 1)], [])
    fd = machine.places[0xE800_3000][0]
    os.eventfd_write(fd, 3)
    loop.poll(fd)
    assert len(driver.take()) == 1
    loop.poll(fd)
    rig.config_write(4, 2, 0)
    assert not machine.places
    rig.config_write(4, 2, 6)
    rig.function.close()
    assert not machine.places
    assert not loop.watches


def test_an_engine_without_eventfds_leaves_notifications_to_mmio(rig: Rig) -> None:
    assert not rig.function.attach_notifiers(FakeMachine(works=False), ManualLoop())  # type: ignore[arg-type]
    driver = rig.start()
    driver.add([(0x40000, 1)], [])
    rig.write(reg.NOTIFY, 2, 0)
    assert len(driver.take()) == 1


accesses = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 0x40), st.sampled_from([0x1000, 0x2000, 0x3000, 0x3004]), st.integers(0, 0x3FFF)),
        st.sampled_from([1, 2, 4, 8]),
        st.one_of(st.integers(0, 255), st.sampled_from([0x1000, 0x2000, 0x10000]), st.integers(0, (1 << 64) - 1)),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(accesses)
def test_rubbish_in_every_register_stops_at_most_the_device(todo: list[tuple[int, int, int, bool]]) -> None:
    rig = Rig()
    rig.memory.write(0x1000, struct.pack("<QIHH", 0x2000, 64, 3, 1) * 64)
    rig.start()
    for offset, size, value, is_write in todo:
        value &= (1 << 8 * size) - 1
        if is_write:
            rig.write(offset, size, value)
        else:
            assert 0 <= rig.read(offset, size) < 1 << 8 * size
    rig.negotiate(bit(F_VERSION_1))
    assert rig.place(0)
    rig.close()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0xFC), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)), max_size=40))
def test_rubbish_in_configuration_space_stops_at_most_the_device(todo: list[tuple[int, int, int]]) -> None:
    rig = Rig()
    rig.function.attach_notifiers(FakeMachine(), ManualLoop())  # type: ignore[arg-type]
    for offset, size, value in todo:
        offset -= offset % size
        rig.config_write(offset, size, value & (1 << 8 * size) - 1)
        rig.config_read(offset, size)
    rig.close()
