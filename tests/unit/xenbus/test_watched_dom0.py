"""What Dom0's services tell of requests, and what hooks make of them: the store, and a block ring."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from blk_front import MIB, BlkFront, Response, disk, service
from fake_domu import FakeDomU, FakeHost, fake_host

from bivisor.abi.xen.blkif import BlkifOp
from bivisor.abi.xen.xs_wire import MessageType
from bivisor.dom0.xenstore.client import StoreClient
from bivisor.dom0.xenstore.connection import Connection
from bivisor.dom0.xenstore.errors import XenStoreError
from bivisor.dom0.xenstore.wire import Message, decode
from bivisor.events import Answer, Delay, Deny, Drop, Event, Kind, Ring, Verdict, XenBus, XenStore
from bivisor.memory import PAGE
from bivisor.toolstack import xendevices

SIZE = MIB


@pytest.fixture
def host() -> Iterator[FakeHost]:
    with fake_host() as host:
        yield host


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(2).randbytes(SIZE))
    return path


@pytest.fixture
def front(host: FakeHost, image: Path) -> Iterator[BlkFront]:
    backend = service(host)
    domu = FakeDomU(host)
    device = disk(domu.domid, image)
    xendevices.add(host.store, device)
    host.settle()
    front = BlkFront(domu, device)
    front.connect()
    yield front
    backend.close()


class Reader:
    """Reads of the first sectors, one after the other."""

    def __init__(self, front: BlkFront) -> None:
        self.front = front
        self.gfn = front.domu.new_page()
        self.ref = front.domu.grant(self.gfn)

    def ask(self, sector: int = 0) -> None:
        queue = self.front.queues[0]
        queue.put(self.front.transfer(BlkifOp.READ, sector, [(self.ref, 0, 7)]))
        queue.push()
        self.front.host.settle()

    def read(self, sector: int = 0) -> tuple[list[Response], bytes]:
        self.front.domu.page(self.gfn)[:] = bytes(PAGE)
        self.ask(sector)
        return self.front.queues[0].responses(), bytes(self.front.domu.page(self.gfn))


def test_a_disk_request_is_told_from_ring_to_ring(front: BlkFront, host: FakeHost) -> None:
    reader = Reader(front)
    with host.xen.events.subscribe([Kind.RING]) as heard:
        reader.read(8)
        request, response = (event for event in heard.take() if isinstance(event, Ring))
    assert (request.device, request.end, request.op) == (f"vbd/{front.domu.domid}/51712", "request", "read")
    assert (request.size, request.sector, request.domain) == (PAGE, 8, front.domu.domid)
    assert (response.end, response.ident, response.status) == ("response", request.ident, 0)
    assert request.port == response.port > 0


def test_a_disk_request_can_fail_vanish_come_late_and_be_another(front: BlkFront, host: FakeHost, image: Path) -> None:
    reader = Reader(front)
    data = image.read_bytes()
    events = host.xen.events

    def with_hook(verdict: Verdict | None, *, spoil: bool = False) -> list[Response]:
        def before(event: Event) -> Verdict | None:
            assert isinstance(event, Ring)
            if spoil:
                event.entry[16] = 16  # the sector
            return verdict

        with events.intercept(Kind.RING, before, names=["read"]):
            return reader.read()[0]

    assert [each.status for each in with_hook(Deny())] == [-1]
    assert [each.status for each in with_hook(Answer(-2))] == [-2]
    assert with_hook(Drop()) == []
    assert [each.status for each in with_hook(None, spoil=True)] == [0]
    assert bytes(front.domu.page(reader.gfn)) == data[16 * 512 : 16 * 512 + PAGE]
    assert with_hook(Delay(1.5)) == []
    host.loop.advance(1.6)
    (late,) = front.queues[0].responses()
    assert late.status == 0 and bytes(front.domu.page(reader.gfn)) == data[:PAGE]
    assert reader.read()[1] == data[:PAGE]


def test_states_of_both_ends_are_told(host: FakeHost, image: Path) -> None:
    with host.xen.events.subscribe([Kind.XENBUS]) as heard:
        backend = service(host)
        domu = FakeDomU(host)
        device = disk(domu.domid, image)
        xendevices.add(host.store, device)
        host.settle()
        BlkFront(domu, device).connect()
        found = [event for event in heard.take() if isinstance(event, XenBus)]
        backend.close()
    assert {(event.domain, event.device) for event in found} == {(domu.domid, f"vbd/{domu.domid}/51712")}
    told = [(event.end, event.old, event.new) for event in found]
    assert told[-4:] == [
        ("back", "INITIALISING", "INIT_WAIT"),
        ("front", "INITIALISING", "INITIALISED"),
        ("back", "INIT_WAIT", "CONNECTED"),
        ("front", "INITIALISED", "CONNECTED"),
    ]


# -------------------------------------------------------------------- the store


class Guest:
    """A domain's connection to the store."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.connection: Connection = host.server.connect(FakeDomU(host).domid)

    def ask(self, type_: MessageType, payload: bytes) -> list[Message]:
        self.host.server.receive(self.connection, Message(type_, 1, 0, payload))
        return self.messages()

    def messages(self) -> list[Message]:
        found = []
        while self.connection.has_output:
            piece = bytes(self.connection.peek(1))
            message = decode(piece)
            assert message is not None
            self.connection.sent(16 + len(message.payload))
            found.append(message)
        return found


def test_requests_of_the_store_are_told_with_reply_or_error_and_events_too(host: FakeHost) -> None:
    guest = Guest(host)
    with host.xen.events.subscribe([Kind.XENSTORE], domains=[guest.connection.domid]) as heard:
        guest.ask(MessageType.WRITE, b"data/x\0a\0b")
        guest.ask(MessageType.READ, b"data/x\0")
        guest.ask(MessageType.READ, b"data/y\0")
        guest.ask(MessageType.WATCH, b"data\0token\0")
        found = [event for event in heard.take() if isinstance(event, XenStore)]
    assert [(event.op, event.path, event.value, event.reply, event.error) for event in found] == [
        ("WRITE", "data/x", "a\0b", "OK", 0),
        ("READ", "data/x", "", "a\0b", 0),
        ("READ", "data/y", "", "", 2),
        ("WATCH", "data", "token", "OK", 0),
        ("WATCH_EVENT", "data", "token", "", 0),
    ]


def test_a_path_of_the_store_can_be_denied_lost_late_and_answered(host: FakeHost) -> None:
    guest = Guest(host)
    guest.ask(MessageType.WRITE, b"data/x\0old")
    events = host.xen.events

    def reads(verdict: Verdict | None) -> list[tuple[int, bytes]]:
        with events.intercept(Kind.XENSTORE, lambda _: verdict, names=["data/x"]):
            return [(message.type, message.payload) for message in guest.ask(MessageType.READ, b"data/x\0")]

    assert reads(Deny(13)) == [(MessageType.ERROR, b"EACCES\0")]
    assert reads(Answer(b"new")) == [(MessageType.READ, b"new")]
    assert reads(Drop()) == []
    assert reads(Delay(3.0)) == []
    host.loop.advance(3.1)
    assert [message.payload for message in guest.messages()] == [b"old"]
    assert reads(None) == [(MessageType.READ, b"old")]


def test_what_is_written_and_replied_can_be_changed(host: FakeHost) -> None:
    guest = Guest(host)

    def before(event: Event) -> None:
        assert isinstance(event, XenStore)
        event.value = event.value.upper()

    with host.xen.events.intercept(Kind.XENSTORE, before, names=["WRITE"]):
        guest.ask(MessageType.WRITE, b"data/x\0value")
    with host.xen.events.intercept(Kind.XENSTORE, after=lambda event: setattr(event, "reply", "other")):
        assert guest.ask(MessageType.READ, b"data/x\0")[0].payload == b"other"
    assert guest.ask(MessageType.READ, b"data/x\0")[0].payload == b"VALUE"


def test_a_watch_event_can_be_lost(host: FakeHost) -> None:
    guest = Guest(host)
    guest.ask(MessageType.WATCH, b"data\0t\0")
    with host.xen.events.intercept(Kind.XENSTORE, lambda _: Drop(), names=["WATCH_EVENT"]):
        assert [message.type for message in guest.ask(MessageType.WRITE, b"data/x\0")] == [MessageType.WRITE]
    assert len(guest.ask(MessageType.WRITE, b"data/x\0")) == 2


def test_a_service_of_dom0_gets_an_error_where_a_reply_would_be_lost(host: FakeHost) -> None:
    client = StoreClient(host.server)
    with (
        host.xen.events.intercept(Kind.XENSTORE, lambda _: Drop(), names=["/local/nowhere"]),
        pytest.raises(XenStoreError),
    ):
        client.read("/local/nowhere")
    client.close()
