from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore_client import World

from bivisor.abi.xen import xs_wire as abi
from bivisor.abi.xen.xs_wire import MessageType
from bivisor.dom0.xenstore import wire
from bivisor.dom0.xenstore.ring import Ring
from bivisor.dom0.xenstore.wire import Message


class Guest:
    """A domain's end of its ring. `left` is what the server wants to do later."""

    def __init__(self, world: World, domid: int = 1) -> None:
        self.page = bytearray(4096)
        self.words = memoryview(self.page)[abi.INDICES : abi.INTERFACE_SIZE].cast("I")
        self.later: list[Callable[[], None]] = []
        self.notified = 0
        self.closed = 0
        self.received = bytearray()
        connection = world[domid].connection
        self.ring = Ring(world.server, connection, memoryview(self.page), self._notify, self.later.append, self._close)

    def _notify(self) -> None:
        self.notified += 1

    def _close(self) -> None:
        self.closed += 1

    def signal(self) -> None:
        """Let the server do all that it wants to after an event."""
        self.ring.handle_event()
        while self.later:
            self.later.pop(0)()

    def put(self, data: bytes) -> int:
        """As many bytes of requests as there is room for."""
        consumed, produced = self.words[abi.REQ_CONS], self.words[abi.REQ_PROD]
        room = abi.XENSTORE_RING_SIZE - ((produced - consumed) & 0xFFFF_FFFF)
        for i, byte in enumerate(data[:room]):
            self.page[abi.REQ + (produced + i) % abi.XENSTORE_RING_SIZE] = byte
        count = min(room, len(data))
        self.words[abi.REQ_PROD] = (produced + count) & 0xFFFF_FFFF
        return count

    def get(self, limit: int = 1024) -> int:
        """Take at most `limit` bytes of what came."""
        consumed, produced = self.words[abi.RSP_CONS], self.words[abi.RSP_PROD]
        count = min(limit, (produced - consumed) & 0xFFFF_FFFF)
        for i in range(count):
            self.received.append(self.page[abi.RSP + (consumed + i) % abi.XENSTORE_RING_SIZE])
        self.words[abi.RSP_CONS] = (consumed + count) & 0xFFFF_FFFF
        return count

    def messages(self) -> list[Message]:
        found = []
        while (message := wire.decode(self.received)) is not None:
            del self.received[: wire.HEADER_SIZE + len(message.payload)]
            found.append(message)
        return found

    def ask(self, *requests: Message) -> list[Message]:
        """Send requests and take all that comes."""
        data = b"".join(map(wire.encode, requests))
        for _ in range(10_000):
            data = data[self.put(data) :]
            self.signal()
            if not self.get() and not data:
                break
        return self.messages()


def test_the_page_says_what_the_server_can_do_and_the_guest_is_told() -> None:
    guest = Guest(World(1))
    assert guest.words[abi.SERVER_FEATURES] & abi.XENSTORE_SERVER_FEATURE_ERROR
    assert guest.words[abi.CONNECTION] == abi.XENSTORE_CONNECTED
    assert guest.notified == 1


def test_a_request_is_answered_through_the_ring() -> None:
    guest = Guest(World(1))
    assert guest.ask(
        Message(MessageType.WRITE, 1, 0, b"x\0hello"),
        Message(MessageType.READ, 2, 0, b"x\0"),
    ) == [Message(MessageType.WRITE, 1, 0, b"OK\0"), Message(MessageType.READ, 2, 0, b"hello")]
    assert guest.notified > 1


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 1900), st.integers(0, 3)), min_size=1, max_size=25),
    st.lists(st.tuples(st.integers(0, 1024), st.integers(0, 1024)), min_size=1, max_size=50),
    st.integers(0, 0xFFFF_FFFF),
)
def test_replies_do_not_depend_on_how_the_bytes_were_cut(
    requests: list[tuple[int, int]], cuts: list[tuple[int, int]], start: int
) -> None:
    world = World(1)
    guest = Guest(world)
    for word in (abi.REQ_CONS, abi.REQ_PROD, abi.RSP_CONS, abi.RSP_PROD):
        guest.words[word] = start
    asked = []
    expected = []
    for i, (size, name) in enumerate(requests):
        value = bytes([i % 256]) * size
        asked.append(Message(MessageType.WRITE, 2 * i, 0, b"n%d\0" % name + value))
        asked.append(Message(MessageType.READ, 2 * i + 1, 0, b"n%d\0" % name))
        expected.append(Message(MessageType.WRITE, 2 * i, 0, b"OK\0"))
        expected.append(Message(MessageType.READ, 2 * i + 1, 0, value))
    data = b"".join(map(wire.encode, asked))
    for put, get in cuts:
        data = data[guest.put(data[:put]) :]
        guest.signal()
        guest.get(get)
    for _ in range(10_000):
        data = data[guest.put(data) :]
        guest.signal()
        if not guest.get() and not data:
            break
    assert guest.messages() == expected


def test_events_come_through_the_ring_when_another_makes_them() -> None:
    world = World(1)
    guest = Guest(world)
    guest.ask(Message(MessageType.WATCH, 1, 0, b"x\0t\0"))
    before = guest.notified
    world.tool.write(b"/local/domain/1/x", b"1")
    assert len(guest.later) == 1
    guest.later.pop()()
    guest.get()
    assert guest.messages() == [Message(MessageType.WATCH_EVENT, 0, 0, b"x\0t\0")]
    assert guest.notified == before + 1


def test_a_guest_that_takes_no_replies_is_not_read_from_any_more_and_goes_on_when_it_does() -> None:
    world = World(1)
    guest = Guest(world)
    guest.ask(Message(MessageType.WRITE, 0, 0, b"x\0" + b"v" * 1000))
    read = wire.encode(Message(MessageType.READ, 1, 0, b"x\0"))
    for _ in range(60):
        if guest.put(read) < len(read):
            break
        guest.signal()
    assert world.hits[0].quota == "outstanding"
    stalled = guest.words[abi.REQ_PROD]
    guest.signal()
    assert (guest.words[abi.REQ_PROD] - guest.words[abi.REQ_CONS]) & 0xFFFF_FFFF or guest.ring._input
    assert guest.words[abi.REQ_PROD] == stalled
    answers = []
    while guest.get():
        guest.signal()
        answers += guest.messages()
    assert len(answers) >= 20
    assert {answer.payload for answer in answers} == {b"v" * 1000}


@pytest.mark.parametrize("word", [abi.REQ_PROD, abi.REQ_CONS, abi.RSP_CONS, abi.RSP_PROD])
@pytest.mark.parametrize("distance", [1025, 0x8000_0000, 0xFFFF_F000])
def test_an_impossible_index_breaks_the_connection_and_nothing_else(word: int, distance: int) -> None:
    world = World(1)
    guest = Guest(world)
    guest.ask(Message(MessageType.WATCH, 1, 0, b"x\0t\0"))
    if word in (abi.REQ_PROD, abi.RSP_PROD):
        guest.words[word] = (guest.words[word - 1] + distance) & 0xFFFF_FFFF
    else:
        guest.words[word] = (guest.words[word + 1] - distance) & 0xFFFF_FFFF
    world.tool.write(b"/local/domain/1/x", b"1")
    guest.signal()
    assert guest.ring.is_broken
    assert guest.words[abi.ERROR] == abi.XENSTORE_ERROR_RINGIDX
    assert not world[1].connection.watches
    notified = guest.notified
    guest.signal()
    assert guest.notified == notified
    world.tool.write(b"/local/domain/1/x", b"2")


def test_a_payload_that_is_too_long_breaks_the_connection() -> None:
    guest = Guest(World(1))
    guest.put(abi.SOCKMSG.pack(MessageType.WRITE, 1, 0, 4097))
    guest.signal()
    assert guest.words[abi.ERROR] == abi.XENSTORE_ERROR_PROTO


def test_a_guest_may_reconnect() -> None:
    world = World(1)
    guest = Guest(world)
    guest.ask(Message(MessageType.WATCH, 1, 0, b"x\0t\0"))
    guest.words[abi.REQ_PROD] = 99999
    guest.signal()
    assert guest.ring.is_broken
    guest.words[abi.CONNECTION] = abi.XENSTORE_RECONNECT
    guest.signal()
    assert guest.words[abi.CONNECTION] == abi.XENSTORE_CONNECTED
    assert guest.words[abi.ERROR] == abi.XENSTORE_ERROR_NONE
    assert list(guest.words[:4]) == [0, 0, 0, 0]
    guest.received.clear()
    [answer] = guest.ask(Message(MessageType.GET_DOMAIN_PATH, 1, 0, b"1\0"))
    assert answer.payload == b"/local/domain/1\0"


def test_a_busy_guest_lets_others_have_their_turn() -> None:
    world = World(1)
    guest = Guest(world)
    guest.later.clear()
    guest.ring._is_due = False
    world.server.quotas.outstanding = 1 << 20
    guest.put(wire.encode(Message(MessageType.RM, 0, 0, b"")) * 16)
    guest.ring.handle_event()
    assert guest.later


def test_closing_lets_go_of_the_page_once() -> None:
    world = World(1)
    guest = Guest(world)
    guest.ring.close()
    guest.ring.close()
    assert guest.closed == 1
    guest.signal()
    guest.words.release()
    guest.page.clear()  # which a view of it would forbid


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 0xFFFF_FFFF)), max_size=12), st.binary(max_size=1024))
def test_rubbish_in_the_page_never_raises_and_ends(words: list[tuple[int, int]], data: bytes) -> None:
    world = World(1)
    guest = Guest(world)
    guest.page[: len(data)] = data
    for word, value in words:
        guest.words[word] = value
        guest.signal()
    world.check()
    world.tool.write(b"/local/domain/1/x", b"1")
    guest.signal()
