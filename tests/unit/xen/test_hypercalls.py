"""The door of the hypervisor: whatever a domain asks, the answer is a number, and nobody else notices."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.grant_table import COPY, GrantTableOp
from bivisor.abi.xen.xen import Hypercall, MemoryOp, VersionOp
from bivisor.memory import PAGE, GuestMemory, Slot
from bivisor.xen.call import Call, Identity
from bivisor.xen.domain import Domain, State
from bivisor.xen.hypervisor import Xen
from bivisor.xen.table import TABLE, hypercall

SIZE = 64 * PAGE


class Nobody:
    """Runs no code: what the hypervisor asks of a domain's processors is noted and no more."""

    def __init__(self) -> None:
        self.events: list[int] = []

    def event(self, vcpu: int) -> None:
        self.events.append(vcpu)

    def wake(self, vcpu: int) -> None: ...

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None: ...

    def set_timer(self, vcpu: int, deadline: int | None) -> None: ...

    def add_slot(self, slot: Slot) -> None: ...

    def populated(self, gfn: int, count: int) -> None: ...

    def released(self, gfn: int, count: int) -> None: ...

    def time_info(self) -> bytes:
        return bytes(abi.VCPU_TIME_INFO.size)


class World:
    """Dom0, a domain that calls, and one that minds its own business."""

    def __init__(self) -> None:
        self.xen = Xen()
        self.memories = [GuestMemory(SIZE) for _ in range(3)]
        self.dom0 = self.xen.create_domain(self.memories[0], upcall=Nobody(), privileged=True)
        self.domain = self.xen.create_domain(self.memories[1], upcall=Nobody())
        self.other = self.xen.create_domain(self.memories[2], upcall=Nobody())
        self.call = Call(self.xen, self.domain, 0, Identity())

    def ask(self, nr: int, *arguments: int) -> int:
        padded = (*arguments, 0, 0, 0, 0, 0)[:6]
        return hypercall(self.call, nr, padded)

    def close(self) -> None:
        for domain in (self.domain, self.other, self.dom0):
            self.xen.destroy(domain)
            domain.shared_info = memoryview(bytearray(PAGE))
            for vcpu in domain.vcpus:
                vcpu.info = memoryview(bytearray(abi.SHARED_VCPU_INFO_SIZE))
        for memory in self.memories:
            memory.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_a_hypercall_that_does_not_exist_is_enosys(world: World) -> None:
    for nr in range(64):
        if nr not in TABLE:
            assert world.ask(nr) == -Errno.ENOSYS


def test_the_version_is_that_of_xen_4_17(world: World) -> None:
    assert world.ask(Hypercall.XEN_VERSION, VersionOp.VERSION) == 4 << 16 | 17


def test_a_handle_outside_the_guest_is_efault_and_changes_nothing(world: World) -> None:
    before = bytes(world.memories[1].view(0, SIZE))
    for address in (SIZE, SIZE - 1, 1 << 40, (1 << 64) - 8):
        assert world.ask(Hypercall.XEN_VERSION, VersionOp.CAPABILITIES, address) == -Errno.EFAULT
    assert bytes(world.memories[1].view(0, SIZE)) == before


def test_a_domain_may_not_name_another_one(world: World) -> None:
    world.memories[1].write(0x100, struct.pack("<H", world.other.domid))
    assert world.ask(Hypercall.MEMORY_OP, MemoryOp.CURRENT_RESERVATION, 0x100) == -Errno.EPERM


def test_released_frames_are_not_the_domains_until_it_populates_them(world: World) -> None:
    world.memories[1].write(0x100, abi.MEMORY_RESERVATION.pack(0x200, 2, 0, 0, abi.DOMID_SELF))
    world.memories[1].write(0x200, struct.pack("<2Q", 10, 11))
    assert world.ask(Hypercall.MEMORY_OP, MemoryOp.DECREASE_RESERVATION, 0x100) == 2
    assert world.domain.pages == SIZE // PAGE - 2
    assert world.ask(Hypercall.MEMORY_OP, MemoryOp.DECREASE_RESERVATION, 0x100) == 0, "they are gone already"
    assert world.ask(Hypercall.MEMORY_OP, MemoryOp.POPULATE_PHYSMAP, 0x100) == 2
    assert world.domain.pages == SIZE // PAGE


def test_a_multicall_carries_out_each_call_and_refuses_another_multicall(world: World) -> None:
    entries = [(Hypercall.XEN_VERSION, VersionOp.VERSION), (Hypercall.MULTICALL, 0), (63, 0)]
    for number, (op, argument) in enumerate(entries):
        entry = abi.MULTICALL_ENTRY.pack(op, 0, argument, 0, 0, 0, 0, 0)
        world.memories[1].write(0x1000 + number * abi.MULTICALL_ENTRY.size, entry)
    assert world.ask(Hypercall.MULTICALL, 0x1000, len(entries)) == 0
    results = [
        struct.unpack_from("<q", world.memories[1].view(0x1008 + number * abi.MULTICALL_ENTRY.size, 8))[0]
        for number in range(len(entries))
    ]
    assert results == [4 << 16 | 17, -Errno.EINVAL, -Errno.ENOSYS]


def test_ids_of_domains_are_not_used_again_while_one_has_them(world: World) -> None:
    memory = GuestMemory(PAGE)
    new = world.xen.create_domain(memory, upcall=Nobody())
    assert new.domid not in (0, world.domain.domid, world.other.domid)
    world.xen.destroy(new)
    assert new.state is State.GONE
    new.shared_info = memoryview(bytearray(PAGE))
    memory.close()


def parts(world: World, nr: int, *arguments: int) -> tuple[int, int]:
    """The result of a hypercall, and how often it let go of the hypervisor's lock on its way."""
    others: list[bool] = []

    def another() -> None:
        others.append(world.xen.lock.acquire(blocking=False))
        if others[-1]:
            world.xen.lock.release()

    def give_way() -> bool:
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
        return True

    call = Call(world.xen, world.domain, 0, Identity(), give_way)
    result = hypercall(call, nr, (*arguments, 0, 0, 0, 0, 0)[:6])
    assert all(others), "the lock is held"
    return result, len(others)


def test_a_long_hypercall_lets_others_in(world: World) -> None:
    memory = world.memories[1]
    copies = COPY.pack(2, abi.DOMID_SELF, 0, 3, abi.DOMID_SELF, 0, 8, 0, 9)
    memory.write(0x10000, copies * 200)
    memory.write(2 * PAGE, b"12345678")
    assert parts(world, Hypercall.GRANT_TABLE_OP, GrantTableOp.COPY, 0x10000, 200) == (0, 3)
    assert memory.read(3 * PAGE, 8) == b"12345678"
    assert memory.read(0x10000 + 199 * COPY.size, COPY.size) == copies[:-4] + bytes(4)
    memory.write(0x10000, abi.MULTICALL_ENTRY.pack(Hypercall.XEN_VERSION, 0, 0, 0, 0, 0, 0, 0) * 40)
    assert parts(world, Hypercall.MULTICALL, 0x10000, 40) == (0, 2)
    assert memory.read_u64(0x10000 + 39 * abi.MULTICALL_ENTRY.size + 8) == abi.XEN_VERSION


def test_a_long_hypercall_within_a_multicall_lets_others_in(world: World) -> None:
    memory = world.memories[1]
    memory.write(0x10000, COPY.pack(2, abi.DOMID_SELF, 0, 3, abi.DOMID_SELF, 0, 8, 0, 9) * 200)
    entries = (
        (Hypercall.GRANT_TABLE_OP, 0, GrantTableOp.COPY, 0x10000, 200, 0, 0, 0),
        (Hypercall.XEN_VERSION, 0, 0, 0, 0, 0, 0, 0),
    )
    memory.write(0x9000, b"".join(abi.MULTICALL_ENTRY.pack(*entry) for entry in entries))
    assert parts(world, Hypercall.MULTICALL, 0x9000, 2) == (0, 3)
    assert [memory.read_u64(0x9008), memory.read_u64(0x9048)] == [0, abi.XEN_VERSION]
    assert memory.read(0x10000 + 199 * COPY.size + 36, 4) == bytes(4)


def test_a_long_hypercall_of_a_domain_that_is_to_stop_is_abandoned(world: World) -> None:
    world.memories[1].write(0x10000, abi.MULTICALL_ENTRY.pack(Hypercall.XEN_VERSION, 0, 0, 0, 0, 0, 0, 0) * 40)
    call = Call(world.xen, world.domain, 0, Identity(), lambda: False)
    assert hypercall(call, Hypercall.MULTICALL, (0x10000, 40, 0, 0, 0, 0)) == -Errno.EINTR
    world.xen.destroy(world.domain)
    assert hypercall(call, Hypercall.XEN_VERSION, (0, 0, 0, 0, 0, 0)) == -Errno.EINTR


WORDS = st.one_of(st.integers(0, 64), st.integers(0, SIZE), st.integers(0, (1 << 64) - 1))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(TABLE)), st.lists(WORDS, min_size=6, max_size=6)), max_size=20))
def test_random_hypercalls_answer_with_a_number_and_touch_nobody_else(calls: list[tuple[int, list[int]]]) -> None:
    world = World()
    try:
        fill = random.Random(len(calls))
        world.memories[1].write(0, fill.randbytes(SIZE))
        others = [bytes(memory.view(0, SIZE)) for memory in (world.memories[0], world.memories[2])]
        for nr, arguments in calls:
            assert isinstance(world.ask(nr, *arguments), int)
        assert [bytes(memory.view(0, SIZE)) for memory in (world.memories[0], world.memories[2])] == others
        assert is_well(world.other)
    finally:
        world.close()


def is_well(domain: Domain) -> bool:
    """Whether a domain that did nothing is as it was."""
    return domain.state is State.PAUSED and domain.pages == SIZE // PAGE
