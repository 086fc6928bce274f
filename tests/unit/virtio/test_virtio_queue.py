"""The device's side of a split virtqueue, against rings that obey virtio 1.2 and rings that do not."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from virtio_driver import DriverQueue

from bivisor.abi.virtio import DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from bivisor.memory import GuestMemory
from bivisor.platform.virtio.queue import Chain, VirtQueue

SIZE = 8
RAM = 1 << 20
DATA = 0x40000


class Setup:
    """A queue and its driver in one megabyte of memory."""

    def __init__(self, *, indirect: bool = True, event_index: bool = True, size: int = SIZE) -> None:
        self.memory = GuestMemory(RAM)
        self.broken: list[str] = []
        self.queue = VirtQueue(0, 16, self.memory, lambda _, reason: self.broken.append(reason))
        self.driver = DriverQueue(self.memory, 0x1000, size, indirect=indirect, event_index=event_index)

    def place(self) -> Setup:
        self.driver.place(self.queue)
        return self

    def descriptor(self, index: int, address: int, length: int, flags: int, following: int = 0) -> None:
        DESC.pack_into(self.memory.view(self.driver.desc + 16 * index, 16), 0, address, length, flags, following)

    def close(self) -> None:
        self.queue.reset()
        self.memory.close()


@pytest.fixture
def setup() -> Iterator[Setup]:
    it = Setup()
    yield it.place()
    it.close()


@pytest.mark.parametrize("table", [False, True])
def test_a_chain_comes_out_as_views_of_the_guests_own_bytes(setup: Setup, table: bool) -> None:
    setup.memory.write(DATA, b"question")
    head = setup.driver.add([(DATA, 8)], [(DATA + 0x100, 4), (DATA + 0x104, 4)], table=table)
    chain = setup.queue.pop()
    assert chain is not None
    assert [bytes(view) for view in chain.readable] == [b"question"]
    assert chain.writable_size == 8
    assert chain.spans == [(DATA + 0x100, 8)]
    chain.writable[0][:] = b"answ"
    chain.writable[1][:] = b"ered"
    setup.queue.push(chain, 8)
    assert setup.driver.take() == []
    setup.queue.flush()
    assert setup.driver.take() == [(head, 8)]
    assert setup.memory.read(DATA + 0x100, 8) == b"answered"
    assert setup.queue.pop() is None
    del chain


def test_listeners_hear_of_what_was_written_and_only_of_that(setup: Setup) -> None:
    heard: list[tuple[int, int]] = []
    setup.memory.listen(lambda gpa, length: heard.append((gpa, length)))
    setup.driver.add([], [(DATA, 16), (DATA + 16, 16), (DATA + 0x1000, 16)])
    chain = setup.queue.pop()
    assert chain is not None
    setup.queue.push(chain, 40)
    assert heard == [(DATA, 32), (DATA + 0x1000, 8)]


def test_the_index_wraps_at_16_bits(setup: Setup) -> None:
    for _ in range(70_000 // SIZE):
        for _ in range(SIZE):
            setup.driver.add([(DATA, 1)], [])
        for _ in range(SIZE):
            chain = setup.queue.pop()
            assert chain is not None
            setup.queue.push(chain)
        setup.queue.flush()
        assert len(setup.driver.take()) == SIZE
    assert not setup.broken


def test_without_event_index_the_flags_say_who_wants_to_be_told() -> None:
    it = Setup(event_index=False).place()
    it.queue.hush()
    it.driver.add([(DATA, 1)], [])
    assert not it.driver.wants_kick()
    assert it.queue.listen()
    it.driver.add([(DATA, 1)], [])
    assert it.driver.wants_kick()
    chain = it.queue.pop()
    assert chain is not None
    it.queue.push(chain)
    assert it.queue.flush()
    chain = it.queue.pop()
    assert chain is not None
    struct.pack_into("<H", it.memory.view(it.driver.avail, 2), 0, 1)
    it.queue.push(chain)
    assert not it.queue.flush()
    del chain
    it.close()


def loop(it: Setup) -> None:
    it.descriptor(0, DATA, 1, DESC_F_NEXT, 1)
    it.descriptor(1, DATA, 1, DESC_F_NEXT, 0)
    it.driver.offer(0)


def far_head(it: Setup) -> None:
    it.driver.offer(SIZE)


def far_next(it: Setup) -> None:
    it.descriptor(0, DATA, 1, DESC_F_NEXT, SIZE)
    it.driver.offer(0)


def empty(it: Setup) -> None:
    it.descriptor(0, DATA, 0, 0)
    it.driver.offer(0)


def outside(it: Setup) -> None:
    it.descriptor(0, RAM - 4, 5, 0)
    it.driver.offer(0)


def wraps(it: Setup) -> None:
    it.descriptor(0, (1 << 64) - 4, 8, DESC_F_WRITE)
    it.driver.offer(0)


def backwards(it: Setup) -> None:
    it.descriptor(0, DATA, 1, DESC_F_NEXT | DESC_F_WRITE, 1)
    it.descriptor(1, DATA, 1, 0)
    it.driver.offer(0)


def odd_table(it: Setup) -> None:
    it.descriptor(0, DATA, 24, DESC_F_INDIRECT)
    it.driver.offer(0)


def no_table(it: Setup) -> None:
    it.descriptor(0, DATA, 0, DESC_F_INDIRECT)
    it.driver.offer(0)


def table_and_next(it: Setup) -> None:
    it.descriptor(0, DATA, 16, DESC_F_INDIRECT | DESC_F_NEXT, 1)
    it.driver.offer(0)


def table_after_plain(it: Setup) -> None:
    it.descriptor(0, DATA, 1, DESC_F_NEXT, 1)
    it.descriptor(1, DATA, 16, DESC_F_INDIRECT)
    it.driver.offer(0)


def nested_table(it: Setup) -> None:
    DESC.pack_into(it.memory.view(DATA, 16), 0, DATA, 16, DESC_F_INDIRECT, 0)
    it.descriptor(0, DATA, 16, DESC_F_INDIRECT)
    it.driver.offer(0)


def table_in_a_circle(it: Setup) -> None:
    DESC.pack_into(it.memory.view(DATA, 16), 0, DATA, 1, DESC_F_NEXT, 0)
    it.descriptor(0, DATA, 16, DESC_F_INDIRECT)
    it.driver.offer(0)


def jump(it: Setup) -> None:
    struct.pack_into("<H", it.memory.view(it.driver.avail + 2, 2), 0, SIZE + 1)


ABUSES = [loop, far_head, far_next, empty, outside, wraps, backwards, odd_table, no_table, table_and_next]
ABUSES += [table_after_plain, nested_table, table_in_a_circle, jump]


@pytest.mark.parametrize("abuse", ABUSES)
def test_an_abuse_breaks_the_queue_once_and_for_all(setup: Setup, abuse: Callable[[Setup], None]) -> None:
    abuse(setup)
    assert setup.queue.pop() is None
    assert len(setup.broken) == 1
    setup.driver.add([(DATA, 1)], [])
    assert setup.queue.pop() is None
    assert not setup.queue.listen()
    assert not setup.queue.flush()
    assert len(setup.broken) == 1


def test_a_chain_of_more_than_4_gib_is_refused() -> None:
    memory = GuestMemory(1 << 30)
    broken: list[str] = []
    queue = VirtQueue(0, 16, memory, lambda _, reason: broken.append(reason))
    driver = DriverQueue(memory, 0x1000, 16)
    driver.place(queue)
    driver.add([(0, 1 << 30)] * 5, [])
    assert queue.pop() is None
    assert "2^32" in broken[0]
    queue.reset()
    memory.close()


@pytest.mark.parametrize(
    "change",
    [
        {"size": 3},
        {"size": 0},
        {"size": 32},
        {"desc_address": 0x1008},
        {"driver_address": 0x1001},
        {"device_address": 0x1002},
        {"desc_address": RAM - 16},
        {"driver_address": RAM - 8},
        {"device_address": 1 << 63},
    ],
)
def test_a_ring_that_cannot_be_is_refused_when_it_is_enabled(change: dict[str, int]) -> None:
    it = Setup()
    it.queue.size = SIZE
    it.queue.desc_address, it.queue.driver_address, it.queue.device_address = 0x1000, 0x2000, 0x3000
    for name, value in change.items():
        setattr(it.queue, name, value)
    it.queue.enable(indirect=True, event_index=True)
    assert len(it.broken) == 1
    assert it.queue.pop() is None
    it.close()


def test_an_indirect_table_needs_the_feature() -> None:
    it = Setup(indirect=False).place()
    it.descriptor(0, DATA, 16, DESC_F_INDIRECT)
    it.driver.offer(0)
    assert it.queue.pop() is None
    assert it.broken
    it.close()


def test_a_reset_gives_the_memory_back(setup: Setup) -> None:
    setup.driver.add([(DATA, 1)], [])
    chain = setup.queue.pop()
    del chain
    setup.queue.reset()
    setup.memory.close()


descriptors = st.tuples(
    st.one_of(st.integers(0, RAM), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 256), st.sampled_from([16, 32, 48]), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)),
    st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ring=st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    table=st.lists(descriptors, max_size=8),
    heads=st.lists(st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)), min_size=SIZE, max_size=SIZE),
    idx=st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)),
    event_index=st.booleans(),
)
def test_rubbish_in_a_ring_never_raises_and_never_leaves_memory(
    ring: list[tuple[int, int, int, int]],
    table: list[tuple[int, int, int, int]],
    heads: list[int],
    idx: int,
    event_index: bool,
) -> None:
    it = Setup(event_index=event_index).place()
    for i, entry in enumerate(ring):
        it.descriptor(i, *entry)
    for i, entry in enumerate(table):
        DESC.pack_into(it.memory.view(DATA + 16 * i, 16), 0, *entry)
    it.memory.write(it.driver.avail, struct.pack(f"<HH{SIZE}H", 0, idx, *heads))
    popped = 0
    while (chain := it.queue.pop()) is not None:
        popped += 1
        assert len(chain.readable) + len(chain.writable) <= 16
        assert all(gpa + length <= RAM for gpa, length in chain.spans)
        it.queue.push(chain, chain.writable_size)
        del chain
    assert popped <= SIZE
    it.queue.flush()
    it.queue.listen()
    it.close()


class QueueModel(RuleBasedStateMachine):
    """A driver and a device that take turns at random: every buffer comes back once, with what the device wrote, and
    neither side sleeps while the other waits for it."""

    @initialize(indirect=st.booleans(), event_index=st.booleans(), size=st.sampled_from([1, 2, 4, 8, 16]))
    def start(self, indirect: bool, event_index: bool, size: int) -> None:
        self.it = Setup(indirect=indirect, event_index=event_index, size=size).place()
        self.sent: dict[int, tuple[int, int]] = {}
        self.held: list[Chain] = []
        self.done: dict[int, int] = {}
        self.device_awake = False
        self.device_told = True
        self.driver_told = False

    @rule(out=st.integers(0, 3), into=st.integers(0, 3), table=st.booleans(), length=st.integers(1, 64))
    def add(self, out: int, into: int, table: bool, length: int) -> None:
        if out + into:
            parts = [(DATA + 0x1000 * i, length) for i in range(out + into)]
            head = self.it.driver.add(parts[:out], parts[out:], table=table)
            if head is not None:
                self.sent[head] = (out * length, into * length)
        self.device_told |= self.it.driver.wants_kick()

    @precondition(lambda self: self.device_told)
    @rule(count=st.integers(1, 8), drain=st.booleans())
    def serve(self, count: int, drain: bool) -> None:
        self.it.queue.hush()
        while count or drain:
            chain = self.it.queue.pop()
            if chain is None:
                if self.it.queue.listen():
                    continue
                self.device_told = False
                return
            assert (chain.readable_size, chain.writable_size) == self.sent[chain.head]
            self.held.append(chain)
            count = max(0, count - 1)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: Any) -> None:
        for _ in range(data.draw(st.integers(1, len(self.held)))):
            chain = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            written = data.draw(st.integers(0, chain.writable_size))
            self.done[chain.head] = written
            self.it.queue.push(chain, written)
        self.driver_told |= self.it.queue.flush()

    @precondition(lambda self: self.driver_told)
    @rule()
    def interrupt(self) -> None:
        for head, written in self.it.driver.take():
            assert self.done.pop(head) == written
            del self.sent[head]
        self.driver_told = False

    @invariant()
    def nobody_sleeps_over_work(self) -> None:
        if not hasattr(self, "it"):
            return
        assert not self.it.broken
        if len(self.sent) > len(self.held) + len(self.done):
            assert self.device_told
        if self.done:
            assert self.driver_told

    def teardown(self) -> None:
        if hasattr(self, "it"):
            self.held.clear()
            self.it.close()


QueueModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestQueueModel = QueueModel.TestCase
