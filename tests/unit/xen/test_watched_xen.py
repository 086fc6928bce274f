"""Hypercalls, events and grants of domains that somebody listens to or interferes with."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.event_channel import ALLOC_UNBOUND, SEND, EvtchnOp
from bivisor.abi.xen.grant_table import GRANT_ENTRY_V1, GTF_PERMIT_ACCESS, GrantStatus
from bivisor.abi.xen.xen import MULTICALL_ENTRY, VersionOp
from bivisor.abi.xen.xen import Hypercall as Number
from bivisor.events import Answer, Delay, Deny, Drop, Event, EventSend, Grant, Hypercall, Kind
from bivisor.memory import PAGE, GuestMemory, Slot
from bivisor.xen import grant_ops
from bivisor.xen.call import Call, Identity
from bivisor.xen.errors import GrantError, XenError
from bivisor.xen.hypervisor import Xen
from bivisor.xen.table import TABLE, hypercall
from bivisor.xen.watched import watch_hypercalls

SIZE = 64 * PAGE


class Nobody:
    """Runs no code."""

    def event(self, vcpu: int) -> None: ...

    def wake(self, vcpu: int) -> None: ...

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None: ...

    def set_timer(self, vcpu: int, deadline: int | None) -> None: ...

    def add_slot(self, slot: Slot) -> None: ...

    def populated(self, gfn: int, count: int) -> None: ...

    def released(self, gfn: int, count: int) -> None: ...

    def time_info(self) -> bytes:
        return bytes(abi.VCPU_TIME_INFO.size)


class World:
    """Dom0 and a domain whose hypercalls are watched."""

    def __init__(self) -> None:
        self.xen = Xen()
        self.events = self.xen.events
        self.memories = [GuestMemory(SIZE) for _ in range(2)]
        self.dom0 = self.xen.create_domain(self.memories[0], upcall=Nobody(), privileged=True)
        self.domain = self.xen.create_domain(self.memories[1], upcall=Nobody())
        self.call = Call(self.xen, self.domain, 0, Identity())
        watch_hypercalls(self.call, TABLE)
        self.later: list[tuple[float, object]] = []
        self.xen.call_later = lambda seconds, work: self.later.append((seconds, work))

    def ask(self, nr: int, *arguments: int) -> int:
        return hypercall(self.call, nr, (*arguments, 0, 0, 0, 0, 0)[:6])

    def write(self, at: int, data: bytes) -> int:
        self.memories[1].write(at, data)
        return at

    def close(self) -> None:
        for domain in (self.domain, self.dom0):
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


def heard(events: list[Event]) -> list[tuple[str, int | None]]:
    return [(event.name, event.result) for event in events if isinstance(event, Hypercall)]


def test_hypercalls_are_told_by_name_with_arguments_and_result_and_only_while_somebody_listens(world: World) -> None:
    at = world.write(0x100, ALLOC_UNBOUND.pack(abi.DOMID_SELF, 0, 0))
    assert world.call.watched is None
    with world.events.subscribe([Kind.HYPERCALL], domains=[world.domain.domid]) as calls:
        assert world.ask(Number.XEN_VERSION, VersionOp.VERSION) == abi.XEN_VERSION
        assert world.ask(Number.EVENT_CHANNEL_OP, EvtchnOp.ALLOC_UNBOUND, at) == 0
        assert world.ask(Number.EVENT_CHANNEL_OP, EvtchnOp.SEND, SIZE) == -Errno.EFAULT
        assert world.ask(Number.SCHED_OP, 99) == -Errno.ENOSYS
        found = calls.take()
    assert heard(found) == [
        ("xen_version.version", abi.XEN_VERSION),
        ("event_channel_op.alloc_unbound", 0),
        ("event_channel_op.send", -Errno.EFAULT),
        ("sched_op.99", -Errno.ENOSYS),
    ]
    first = found[1]
    assert isinstance(first, Hypercall)
    assert first.details == {"arg": 0x100, "dom": abi.DOMID_SELF, "remote_dom": 0}
    assert first.duration > 0
    assert world.call.watched is None


def test_a_hypercall_that_nobody_asks_for_by_name_is_left_alone(world: World) -> None:
    def wrapped(*names: str) -> set[str]:
        with world.events.subscribe([Kind.HYPERCALL], names=names):
            assert world.call.watched is not None
            return {Number(nr).name.lower() for nr in TABLE if world.call.watched[nr] is not TABLE[nr]}

    assert wrapped("sched_op") == wrapped("sched_op.b*") == {"sched_op"}
    assert wrapped("*_op.send") == {name for name in wrapped("*") if name.endswith("_op")}
    assert wrapped("block") == wrapped("*") == {Number(nr).name.lower() for nr in TABLE}
    with world.events.subscribe([Kind.HYPERCALL], names=["sched_op"]), world.events.subscribe([Kind.HYPERCALL]):
        assert world.call.watched is not None
        assert all(world.call.watched[nr] is not function for nr, function in TABLE.items())


def test_the_calls_of_a_multicall_are_told_one_by_one(world: World) -> None:
    entries = [(Number.XEN_VERSION, 0, VersionOp.VERSION), (Number.XEN_VERSION, 0, VersionOp.PAGESIZE)]
    data = b"".join(MULTICALL_ENTRY.pack(op, result, argument, 0, 0, 0, 0, 0) for op, result, argument in entries)
    at = world.write(0x200, data)
    with world.events.subscribe([Kind.HYPERCALL]) as calls:
        assert world.ask(Number.MULTICALL, at, 2) == 0
        assert [name for name, _ in heard(calls.take())] == ["xen_version.version", "xen_version.pagesize", "multicall"]


def test_a_hypercall_can_be_denied_answered_dropped_and_changed(world: World) -> None:
    verdicts: list[Deny | Answer | Drop | None] = [Deny(22), Answer(7), Answer(b"\xff" * 8), Drop(), None]

    def before(event: Event) -> Deny | Answer | Drop | None:
        assert isinstance(event, Hypercall)
        event.args[0] = VersionOp.PAGESIZE
        return verdicts.pop(0)

    with world.events.intercept(Kind.HYPERCALL, before, names=["xen_version"]):
        found = [world.ask(Number.XEN_VERSION, VersionOp.VERSION) for _ in range(5)]
    assert found == [-22, 7, -1, 0, PAGE]

    def after(event: Event) -> None:
        assert isinstance(event, Hypercall)
        event.result = 42

    with world.events.intercept(Kind.HYPERCALL, after=after):
        assert world.ask(Number.XEN_VERSION, VersionOp.VERSION) == 42
    assert world.ask(Number.XEN_VERSION, VersionOp.VERSION) == abi.XEN_VERSION


def test_a_hypercall_that_is_delayed_lets_go_of_the_lock_and_is_then_carried_out_once(world: World) -> None:
    asked: list[bool] = []

    def before(event: Event) -> Delay:
        asked.append(True)
        return Delay(0.001)

    free: list[bool] = []
    world.call.give_way = lambda: free.append(True) or True  # type: ignore[func-returns-value]
    with world.events.subscribe([Kind.HYPERCALL]) as calls, world.events.intercept(Kind.HYPERCALL, before):
        assert world.ask(Number.XEN_VERSION, VersionOp.VERSION) == abi.XEN_VERSION
        told = [(event.preempted, event.result) for event in calls.take() if isinstance(event, Hypercall)]
    assert (asked, free) == ([True], [True])
    assert told == [(True, None), (False, abi.XEN_VERSION)]


def bound(world: World) -> tuple[int, int]:
    """A channel: the domain's port, and Dom0's."""
    port = world.domain.events.alloc_unbound(abi.DOMID_SELF, 0)
    return port, world.dom0.events.bind_interdomain(world.domain.domid, port)


def pending(world: World, port: int) -> bool:
    return bool(world.dom0.shared_info[abi.SHARED_EVTCHN_PENDING + port // 8] & 1 << port % 8)


def clear(world: World, port: int) -> None:
    world.dom0.shared_info[abi.SHARED_EVTCHN_PENDING + port // 8] = 0


def test_events_are_told_with_both_ends_and_can_be_lost_refused_and_late(world: World) -> None:
    port, there = bound(world)
    clear(world, there)
    at = world.write(0x300, SEND.pack(port))
    with world.events.subscribe([Kind.EVENT]) as events:
        assert world.ask(Number.EVENT_CHANNEL_OP, EvtchnOp.SEND, at) == 0
        (event,) = events.take()
    assert isinstance(event, EventSend) and pending(world, there)
    assert (event.domain, event.from_port, event.to, event.port) == (world.domain.domid, port, 0, there)
    clear(world, there)
    for verdict, result in ((Drop(), 0), (Deny(Errno.EPERM), -Errno.EPERM), (Delay(2.5), 0)):
        with world.events.intercept(Kind.EVENT, lambda _, verdict=verdict: verdict):  # type: ignore[misc]
            assert world.ask(Number.EVENT_CHANNEL_OP, EvtchnOp.SEND, at) == result
        assert not pending(world, there)
    ((seconds, work),) = world.later
    assert seconds == 2.5 and callable(work)
    work()
    assert pending(world, there)


def test_grants_are_told_and_can_be_refused_and_exchanged(world: World) -> None:
    frame = world.domain.grants.frame(0)
    for ref, gfn in ((8, 5), (9, 6)):
        GRANT_ENTRY_V1.pack_into(frame, ref * 8, GTF_PERMIT_ACCESS, 0, gfn)
    world.memories[1].write(6 * PAGE, b"six")
    domid = world.domain.domid
    with world.events.subscribe([Kind.GRANT]) as grants:
        mapping = grant_ops.map_grant_ref(world.dom0, domid, 8)
        grant_ops.unmap_grant_ref(world.dom0, mapping.handle)
        grant_ops.copy_from(world.dom0, grant_ops.GrantEnd(domid, 9, 0), memoryview(bytearray(3)))
        with pytest.raises(GrantError):
            grant_ops.map_grant_ref(world.dom0, domid, 77)
        found = [event for event in grants.take() if isinstance(event, Grant)]
    assert [(event.op, event.granter, event.ref, event.status) for event in found] == [
        ("map", domid, 8, 0),
        ("unmap", domid, 8, 0),
        ("copy", domid, 9, 0),
        ("map", domid, 77, int(GrantStatus.GENERAL_ERROR)),
    ]
    with world.events.intercept(Kind.GRANT, lambda _: Deny(3)), pytest.raises(GrantError) as refused:
        grant_ops.map_grant_ref(world.dom0, domid, 8)
    assert refused.value.status is GrantStatus.BAD_GNTREF

    def exchange(event: Event) -> None:
        assert isinstance(event, Grant)
        event.ref = 9

    with world.events.intercept(Kind.GRANT, exchange):
        other = grant_ops.map_grant_ref(world.dom0, domid, 8)
    assert bytes(other.view[:3]) == b"six"
    grant_ops.unmap_grant_ref(world.dom0, other.handle)


def test_a_domain_that_is_gone_leaves_no_place_behind(world: World) -> None:
    memory = GuestMemory(SIZE)
    domain = world.xen.create_domain(memory, upcall=Nobody())
    world.events.subscribe([Kind.EVENT, Kind.GRANT])
    assert domain.grants.probe is not None and domain.events.on_send is not None
    world.xen.destroy(domain)
    assert domain.grants.probe is None and domain.events.on_send is None
    domain.shared_info = memoryview(bytearray(PAGE))
    for vcpu in domain.vcpus:
        vcpu.info = memoryview(bytearray(abi.SHARED_VCPU_INFO_SIZE))
    memory.close()


def test_what_a_hypercall_says_in_memory_that_is_not_there_is_left_out(world: World) -> None:
    with world.events.subscribe([Kind.HYPERCALL]) as calls:
        world.ask(Number.EVENT_CHANNEL_OP, EvtchnOp.SEND, 1 << 40)
        world.ask(Number.DOMCTL, 1 << 40)
        world.write(0x400, struct.pack("<Q", 1))
        world.ask(Number.SCHED_OP, abi.SchedOp.POLL, 1 << 40)
        first, second, third = (event for event in calls.take() if isinstance(event, Hypercall))
    assert (first.op, first.details) == ("send", {"arg": 1 << 40})
    assert (second.op, second.name) == ("", "domctl")
    assert third.result in (-Errno.EFAULT, -Errno.ENOSYS)


def test_an_error_number_that_is_none_is_a_refusal_all_the_same(world: World) -> None:
    port, _ = bound(world)
    with world.events.intercept(Kind.EVENT, lambda _: Deny(4711)), pytest.raises(XenError) as refused:
        world.domain.events.send(port)
    assert refused.value.errno is Errno.EPERM


def test_a_hypercall_that_xen_does_not_have_is_a_hook_s_own(world: World) -> None:
    assert hypercall(world.call, 60, (5, 6)) == -Errno.ENOSYS

    def add(event: Event) -> Answer:
        assert isinstance(event, Hypercall)
        return Answer(event.args[0] + event.args[1])

    with world.events.intercept(Kind.HYPERCALL, add, names=["hypercall_60"]):
        assert hypercall(world.call, 60, (5, 6)) == 11
        assert hypercall(world.call, 61, (5, 6)) == -Errno.ENOSYS
        assert hypercall(world.call, 6400, (5, 6)) == -Errno.ENOSYS
    assert hypercall(world.call, 60, (5, 6)) == -Errno.ENOSYS
