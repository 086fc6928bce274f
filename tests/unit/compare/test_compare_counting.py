"""What counts the events of a guest, hears its console, and takes what it sends."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.abi.virtio import NET_HDR
from bivisor.errors import GuestTimeout
from bivisor.events import Events, EventSend, Exit, Grant, Hypercall, Ring
from bivisor.host.loop import ManualLoop
from bivisor.toolstack.compare import workload
from bivisor.toolstack.compare.console import Console
from bivisor.toolstack.compare.counter import DOORBELL, KINDS, TO_BACKEND, TO_GUEST, Counter
from bivisor.toolstack.compare.measure import event_cost
from bivisor.toolstack.compare.moment import Moment
from bivisor.toolstack.compare.peer import Peer, checksum
from bivisor.toolstack.compare.result import Counts

GUEST = 3


def test_exits_hypercalls_events_and_grants_of_one_domain_are_counted_by_name() -> None:
    counter, stream = Counter(GUEST), Events()
    listener = stream.listen(counter.hear, KINDS)
    for domain in (GUEST, GUEST, 4):
        listener.tell(Exit(0, domain, 0, 0, "PortIo", device="COM1"))
        listener.tell(Hypercall(0, domain, 0, 0, 29, "sched_op", "block", [], {}))
    listener.tell(Exit(0, GUEST, 0, 0, "Hypercall"))
    listener.tell(EventSend(0, GUEST, 0, 0, "send", 1, 0, 2))
    listener.tell(EventSend(0, 0, 0, 0, "send", 2, GUEST, 1))
    listener.tell(EventSend(0, 0, 0, 0, "send", 2, 4, 1))
    listener.tell(Grant(0, 0, -1, 0, "map", GUEST, 8))
    for device, end in (("vbd/3/51712", "request"), ("vbd/3/51712", "response"), ("console/3", "request")):
        listener.tell(Ring(0, GUEST, -1, 0, device, end, "read", 1, 4096))
    found = counter.counts()
    assert found == Counts(
        {"PortIo COM1": 2}, {"sched_op.block": 2}, {}, {TO_BACKEND: 1, TO_GUEST: 1}, {}, {"map": 1}, {"read": 1}, 4096
    )
    assert found.switches == 4


def test_a_multicall_is_one_switch_however_many_calls_are_in_it() -> None:
    counter = Counter(GUEST)
    counter.hear(Hypercall(10, GUEST, 0, 1, 3, "stack_switch", "", [], {}))
    for time in (21, 22):
        counter.hear(Hypercall(time, GUEST, 0, 1, 1, "mmu_update", "", [], {}))
    counter.hear(Hypercall(20, GUEST, 0, 5, 13, "multicall", "", [0, 2], {}))
    found = counter.counts()
    assert found.hypercalls == {"stack_switch": 1, "multicall": 1} and found.batched == {"mmu_update": 2}
    assert found.switches == 2


def test_a_doorbell_that_the_engine_answers_is_an_exit_all_the_same() -> None:
    engine = {"Mmio": 5}
    counter = Counter(0, lambda: engine)
    counter.hear(Exit(0, 0, 0, 0, "Mmio", device="virtio-blk BAR 0"))
    engine["Mmio"] = 9
    assert counter.counts().exits == {"Mmio virtio-blk BAR 0": 1, DOORBELL: 3}


NAMES = st.dictionaries(st.sampled_from("abc"), st.integers(0, 9))
COUNTS = st.builds(Counts, NAMES, NAMES, NAMES, NAMES, NAMES, NAMES, NAMES, st.integers(0, 9))


@given(COUNTS, COUNTS)
def test_what_happened_since_is_never_less_than_nothing(later: Counts, before: Counts) -> None:
    since = later.minus(before)
    assert all(number > 0 for number in (*since.exits.values(), *since.hypercalls.values(), *since.grants.values()))
    assert since.bytes >= 0
    assert since.switches <= later.switches


def test_counting_one_event_takes_some_time() -> None:
    assert 0 < event_cost() < 1


# ---------------------------------------------------------------- the console


def pieces(text: bytes, at: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in at), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


@given(st.lists(st.integers(0, 200), max_size=8))
def test_marks_are_noted_when_they_come_however_they_are_cut(at: list[int]) -> None:
    typed = workload.marked("true", 12)
    ticks = iter(range(1000))
    console = Console(clock=lambda: Moment(next(ticks), 0.0))
    heard: list[str] = []
    console.on_mark = heard.append
    for piece in pieces(b"~ # " + typed.encode() + b"\r\n@b12\r\nnoise @x @e12\r\n~ # ", at):
        console.hear(piece)
    assert heard == ["@b12", "@e12"] and console.marks["@b12"].wall <= console.marks["@e12"].wall
    assert console.wait_for("@e12", 1).endswith("@e12")


def test_what_is_typed_looks_like_no_mark() -> None:
    console = Console()
    for phase in workload.PHASES:
        console.hear(workload.marked(phase.command, 7).encode() + b"\r\n")
    assert console.marks == {}


def test_a_guest_that_ends_early_is_quoted() -> None:
    console = Console()
    console.has_ended = lambda: True
    console.hear(b"Kernel panic - not syncing: no\r\n\r\n")
    with pytest.raises(GuestTimeout, match="the guest ended without saying '#'; it ended with 'Kernel panic - not s"):
        console.wait_for("# ", 60)


# ---------------------------------------------------------------- the peer

SYN, ACK, FIN = 2, 16, 1
START = 5000


def frame(flags: int, sequence: int, size: int = 0) -> memoryview:
    tcp = struct.pack(">HHIIBBHHH", 40000, 9, sequence, 0, 5 << 4, flags, 1000, 0, 0) + bytes(size)
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1))
    )
    return memoryview(bytes(NET_HDR.size) + b"\x52\x54\0\0\0\1" + b"\x52\x54\0\x12\x34\x56" + b"\x08\0" + ip + tcp)


def answers(peer: Peer) -> list[tuple[int, int, int]]:
    """(flags, sequence, acknowledgement) of what the peer has to say, whose checksums have to be right."""
    found = []
    buffer = memoryview(bytearray(2000))
    while size := peer.receive((buffer[:20], buffer[20:])):
        data = bytes(buffer[NET_HDR.size : size])
        assert checksum(data[14:34]) == 0
        tcp = data[34:]
        assert checksum(data[26:34] + struct.pack(">HH", 6, len(tcp)) + tcp) == 0
        _, _, sequence, acknowledged, _, flags = struct.unpack_from(">HHIIBB", tcp)
        found.append((flags, sequence, acknowledged))
    return found


def test_a_connection_is_taken_acknowledged_and_closed_when_it_is_enough() -> None:
    peer = Peer(ManualLoop(), 3000)
    edges: list[int] = []
    peer.on_edge = lambda: edges.append(peer.size)
    assert peer.send([frame(SYN, START)[:30], frame(SYN, START)[30:]])
    assert answers(peer) == [(SYN | ACK, 999, START + 1)]
    peer.send([frame(ACK, START + 1, 2000)])
    peer.send([frame(ACK, START + 1, 2000)])  # sent again: nothing new
    assert answers(peer) == [(ACK, 1000, START + 2001)] * 2
    peer.send([frame(ACK, START + 2001, 1500)])
    assert answers(peer) == [(FIN | ACK, 1000, START + 3501)]
    peer.send([frame(FIN | ACK, START + 3501)])
    assert answers(peer) == [(ACK, 1001, START + 3502)]
    assert peer.size == 3500 and edges == [0, 3500] and peer.last.wall >= peer.first.wall > 0
    assert peer.frames == 5


def test_a_device_that_waits_is_called_when_there_is_an_answer() -> None:
    loop = ManualLoop()
    peer = Peer(loop, 1)
    called: list[str] = []
    peer.watch(lambda: called.append("readable"), lambda: called.append("writable"))
    loop.advance(0)
    assert called == ["writable"]
    peer.send([frame(SYN, START)])
    loop.advance(0)
    assert called == ["writable", "readable"]


@given(st.lists(st.binary(max_size=120), max_size=20))
def test_rubbish_on_the_wire_does_nothing(rubbish: list[bytes]) -> None:
    peer = Peer(ManualLoop(), 1)
    for data in rubbish:
        assert peer.send([memoryview(data)])
        assert peer.send([memoryview(bytes(frame(SYN, START))[: len(data)]), memoryview(data)])
    answers(peer)
