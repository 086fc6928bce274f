"""A virtual interface between a front-end and a bridge."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netfront import ALL_FEATURES, Front, Received, Tape, Way, host
from packets import BROADCAST, STATION_A, STATION_B, ethernet, ipv4, ipv6, is_right, tcp, total, udp, with_checksum

from bivisor.abi.xen import netif as abi
from bivisor.abi.xen.grant_table import GTF_READONLY
from bivisor.abi.xen.netif import EXTRA_INFO, TX_REQUEST, NetifStatus
from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.net.frame import Frame
from bivisor.dom0.net.merge import Merger
from bivisor.dom0.net.receive import QUEUE_BYTES
from bivisor.dom0.net.wire import Wire
from bivisor.memory import PAGE

OKAY, ERROR, NULL = NetifStatus.OKAY, NetifStatus.ERROR, NetifStatus.NULL


def frame_of(size: int, seed: int = 0) -> bytes:
    return STATION_B + STATION_A + b"\x88\xb5" + random.Random(seed).randbytes(size - 14)


@pytest.mark.parametrize("size", [14, 60, 256, 257, 1514, 4096, 4097, 9014, 65535])
def test_a_frame_goes_from_one_front_end_to_the_other(size: int) -> None:
    with host() as world:
        one, other = world.front(), world.front()
        data = frame_of(size)
        statuses = one.send(data)
        assert statuses == [OKAY] * -(-size // PAGE)
        assert one.pending(one.tx_ports[0])
        assert other.pending(other.rx_ports[0])
        assert other.received() == [Received(data, 0)]


@pytest.mark.parametrize("sizes", [[14, 1, 1, 1000], [100, 100, 100, 4096], [0, 20, 300], [1] * 18 + [40]])
def test_a_frame_may_come_in_pieces_of_any_size(sizes: list[int]) -> None:
    with host() as world:
        one, other = world.front(), world.front()
        data = frame_of(sum(sizes))
        assert one.send(data, sizes=sizes) == [OKAY] * len(sizes)
        assert other.received() == [Received(data, 0)]


def test_a_broadcast_goes_to_all_but_its_sender() -> None:
    with host() as world:
        fronts = [world.front() for _ in range(3)]
        data = BROADCAST + frame_of(100)[6:]
        fronts[0].send(data)
        assert [front.received() for front in fronts] == [[], [Received(data, 0)], [Received(data, 0)]]


def test_a_packet_to_be_cut_passes_whole_with_all_that_was_left_to_others() -> None:
    with host() as world:
        one, other = world.front(), world.front()
        packet = with_checksum(ipv4(6, tcp(random.Random(1).randbytes(60000))), blank=True)
        data = ethernet(packet, 0x0800)
        flags = abi.NETTXF_CSUM_BLANK | abi.NETTXF_DATA_VALIDATED
        gso = abi.XEN_NETIF_GSO_TYPE_TCPV4, 1448
        statuses = one.send(data, flags=flags, gso=gso)
        assert statuses == [OKAY, NULL, *[OKAY] * (len(statuses) - 2)]
        (got,) = other.received()
        assert got.data == data
        assert got.gso == gso
        assert got.flags & (abi.NETRXF_CSUM_BLANK | abi.NETRXF_DATA_VALIDATED) == 3


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("missing", ["feature-sg", "feature-gso-tcpv"])
def test_a_front_end_that_cannot_take_such_a_packet_gets_its_segments(version: int, missing: str) -> None:
    with host() as world:
        features = {name: 1 for name in ALL_FEATURES if not name.startswith(missing)}
        one, other = world.front(), world.front(features=features)
        content = random.Random(2).randbytes(20000)
        whole = ipv4(6, tcp(content)) if version == 4 else ipv6(6, tcp(content))
        kind, start = (0x0800, 14 + 20 + 20) if version == 4 else (0x86DD, 14 + 40 + 20)
        data = ethernet(with_checksum(whole, blank=True), kind)
        gso_type = abi.XEN_NETIF_GSO_TYPE_TCPV4 if version == 4 else abi.XEN_NETIF_GSO_TYPE_TCPV6
        one.send(data, flags=abi.NETTXF_CSUM_BLANK, gso=(gso_type, 1400))
        got = other.received()
        assert len(got) == -(-20000 // 1400)
        assert b"".join(each.data[start:] for each in got) == content
        assert all(is_right(each.data[14:]) and each.gso is None for each in got)


@pytest.mark.parametrize("refusal", [{"feature-no-csum-offload": 1}, {"feature-ipv6-csum-offload": 0}])
def test_a_checksum_that_a_front_end_does_not_complete_is_completed_for_it(refusal: dict[str, int]) -> None:
    with host() as world:
        one, other = world.front(), world.front(features={**ALL_FEATURES, **refusal})
        is_v4 = "feature-no-csum-offload" in refusal
        packet = with_checksum(ipv4(17, udp(b"question")) if is_v4 else ipv6(17, udp(b"question")), blank=True)
        data = ethernet(packet, 0x0800 if is_v4 else 0x86DD)
        assert one.send(data, flags=abi.NETTXF_CSUM_BLANK) == [OKAY]
        (got,) = other.received()
        assert is_right(got.data[14:])
        assert not got.flags & abi.NETRXF_CSUM_BLANK


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("queues", [2, 8])
def test_every_queue_sends_and_a_flow_keeps_to_one(queues: int, split: bool) -> None:
    with host() as world:
        one, other = world.front(queues=queues, split=split), world.front(queues=queues, split=split)
        used = set()
        for flow in range(40):
            data = [
                ethernet(ipv4(17, struct.pack(">HHHH", 5000 + flow, 53, 8 + 4, 0) + bytes((n,)) * 4), 0x0800)
                for n in range(2)
            ]
            for packet in data:
                assert one.send(packet, flow % queues) == [OKAY]
            got = {queue: frames for queue in range(queues) if (frames := other.received(queue))}
            assert [[each.data for each in frames] for frames in got.values()] == [data]
            used |= set(got)
        assert used == set(range(queues))


def test_a_front_end_that_takes_nothing_costs_a_bounded_queue_and_gets_it_later() -> None:
    with host() as world:
        one, other = world.front(), world.front(supply=0)
        for number in range(60):
            assert set(one.send(frame_of(60000, number))) == {OKAY}
        kept = QUEUE_BYTES // 60000
        assert other.netback.received.dropped == 60 - kept
        found: list[Received] = []
        while len(found) < kept:
            other.supply(64)
            found += other.received()
        assert [each.data for each in found] == [frame_of(60000, number) for number in range(kept)]
        other.supply(64)
        assert other.received() == []


def test_receive_pages_that_are_not_granted_cost_only_their_own_frame() -> None:
    with host() as world:
        one, other = world.front(), world.front(supply=0)
        other.supply(1, flags=GTF_READONLY)
        other.supply(4)
        assert one.send(frame_of(100)) == [OKAY]
        assert one.send(frame_of(200)) == [OKAY]
        statuses = [struct.unpack("<HHHh", entry)[3] for entry in other.rx[0].responses()]
        assert statuses == [ERROR, 200]
        assert other.netback.received.errors == 1
        assert other.state() is XenbusState.CONNECTED


def bad_packets(one: Front) -> dict[str, list[bytes]]:
    good = one.slots(frame_of(5000))
    blank = abi.NETTXF_CSUM_BLANK
    gref, offset, flags, ident, _ = TX_REQUEST.unpack(good[0])
    return {
        "shorter than a header": one.slots(b"short"),
        "parts longer than the whole": [TX_REQUEST.pack(gref, offset, flags, ident, 100), good[1]],
        "not granted": [TX_REQUEST.pack(4000, 0, 0, 1, 100)],
        "beyond the grant table": [TX_REQUEST.pack(0xFFFFFFFF, 0, 0, 1, 100)],
        "a second part that is not granted": [good[0], TX_REQUEST.pack(4001, 0, 0, 9, 904)],
        "a checksum where there is none": one.slots(frame_of(100), flags=blank),
        "to be cut and no TCP": one.slots(ethernet(ipv4(17, udp(b"x")), 0x0800), flags=blank, gso=(1, 1000)),
        "to be cut as another IP": one.slots(ethernet(ipv4(6, tcp(b"x")), 0x0800), flags=blank, gso=(2, 1000)),
        "a hash": [
            TX_REQUEST.pack(gref, offset, abi.NETTXF_EXTRA_INFO, 3, 100),
            EXTRA_INFO.pack(abi.ExtraType.HASH, 0, bytes(6)),
        ],
        "a multicast address": [
            TX_REQUEST.pack(0, 0, abi.NETTXF_EXTRA_INFO, 3, 0),
            EXTRA_INFO.pack(abi.ExtraType.MCAST_ADD, 0, bytes(6)),
        ],
        "19 parts too many": one.slots(frame_of(200), sizes=[14, *[9] * 18, 24]),
    }


def test_a_bad_packet_is_answered_with_an_error_and_goes_nowhere() -> None:
    with host() as world:
        one, other = world.front(), world.front()
        for name, entries in bad_packets(one).items():
            statuses = one.send_slots(entries)
            extras = sum(1 for status in statuses if status == NULL)
            assert statuses.count(ERROR) == len(entries) - extras, name
            assert other.received() == [], name
            assert one.send(frame_of(99)) == [OKAY], name
            assert len(other.received()) == 1, name
        assert one.state() is XenbusState.CONNECTED


def fatal_packets(one: Front) -> dict[str, list[bytes]]:
    good = one.slots(frame_of(100))[0]
    gref, *_ = TX_REQUEST.unpack(good)
    extra = TX_REQUEST.pack(gref, 0, abi.NETTXF_EXTRA_INFO, 1, 100)
    return {
        "goes on where nothing is": [TX_REQUEST.pack(gref, 0, abi.NETTXF_MORE_DATA, 1, 100)],
        "crosses its page": [TX_REQUEST.pack(gref, 4000, 0, 1, 100)],
        "a part crosses its page": [
            TX_REQUEST.pack(gref, 0, abi.NETTXF_MORE_DATA, 1, 500),
            TX_REQUEST.pack(gref, 4096, 0, 1, 1),
        ],
        "far too many parts": one.slots(frame_of(300), sizes=[14, *[9] * 30, 16]),
        "extra information that is not there": [extra],
        "extra information of no type": [extra, EXTRA_INFO.pack(0, 0, bytes(6))],
        "extra information of a type that is none": [extra, EXTRA_INFO.pack(5, 0, bytes(6))],
        "segments of no size": [extra, abi.EXTRA_GSO.pack(1, 0, 0, 1, 0, 0)],
        "segments of no type": [extra, abi.EXTRA_GSO.pack(1, 0, 1000, 3, 0, 0)],
    }


def test_a_packet_that_no_front_end_would_send_disconnects_its_interface_alone() -> None:
    for index in range(9):
        with host() as world:
            one, other, third = (world.front() for _ in range(3))
            name, entries = list(fatal_packets(one).items())[index]
            one.send_slots(entries)
            assert one.state() is XenbusState.CLOSING, name
            assert one.error(), name
            assert other.received() == [], name
            assert third.send(frame_of(100)) == [OKAY], name
            assert len(other.received()) == 1, name


@pytest.mark.parametrize("claimed", [257, 1 << 31, 0xFFFFFFFF])
@pytest.mark.parametrize("which", ["tx", "rx"])
def test_a_ring_index_that_cannot_be_disconnects_its_interface_alone(which: str, claimed: int) -> None:
    with host() as world:
        one, other = world.front(supply=0), world.front()
        if which == "tx":
            one.tx[0].claim(claimed)
            one.domain.events.send(one.tx_ports[0])
            world.run()
        else:
            one.rx[0].claim(claimed)
            assert other.send(one.mac + frame_of(100)[6:]) == [OKAY]
        assert one.state() is XenbusState.CLOSING
        assert other.state() is XenbusState.CONNECTED


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"request-rx-copy": 0}, "flipped"),
        ({"feature-rx-notify": 0}, "feature-rx-notify"),
        ({"multi-queue-num-queues": 9}, "9 queues of at most 8"),
        ({"multi-queue-num-queues": 0}, "0 queues"),
        ({"multi-queue-num-queues": 2}, "queue-0/tx-ring-ref"),
        ({"tx-ring-ref": 4090}, "rings"),
        ({"event-channel-tx": 900}, "event channels"),
        ({"event-channel-rx": "many"}, "event-channel-rx"),
    ],
)
def test_a_front_end_that_says_what_cannot_be_is_refused_with_the_reason(
    nodes: dict[str, str | int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with host() as world:
        front = world.front(connect=False)
        monkeypatch.setattr(world.loop, "run_soon", lambda: None)
        front.connect()
        front.set(**nodes)
        monkeypatch.undo()
        world.run()
        assert front.state() is XenbusState.CLOSING
        assert words in front.error()
        assert world.bridge.ports == ()


@pytest.mark.parametrize(("node", "value"), [("bridge", "nowhere"), ("mac", "01:00:5e:00:00:01"), ("mac", "")])
def test_an_interface_that_cannot_be_offered_is_refused_with_the_reason(node: str, value: str) -> None:
    with host() as world:
        front = world.front(connect=False, nodes={node: value})
        assert front.state() is XenbusState.CLOSING
        assert (value or "address") in front.error()


def test_a_domain_that_dies_in_the_middle_leaves_nothing_mapped() -> None:
    with host() as world:
        one, other = world.front(), world.front(supply=0)
        ports = world.control.domain.events.open_ports
        for number in range(20):
            one.send(frame_of(30000, number))
        other.remove()
        world.run()
        other.close()
        assert world.bridge.ports == (one.netback,)
        assert one.send(frame_of(100)) == [OKAY]
        assert len(world.control.domain.grants.maptrack) == 2
        assert world.control.domain.events.open_ports == ports - 2


def test_frames_from_elsewhere_in_the_bridge_come_with_what_is_known_of_them() -> None:
    with host() as world:
        front, tape = world.front(), Tape()
        world.bridge.attach(tape)
        data = ethernet(with_checksum(ipv4(6, tcp(b"hello"))), 0x0800, target=front.mac)
        world.bridge.forward(tape, Frame.of(data, validated=True))
        world.bridge.flush()
        assert front.received() == [Received(data, abi.NETRXF_DATA_VALIDATED)]
        front.send(frame_of(80))
        assert [frame.size for frame in tape.frames] == [80]
        assert tape.flushed == 1


def test_a_guest_alone_on_its_network_waits_for_a_wire_without_room_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bivisor.dom0.net.wire.BUSY_BYTES", 1)
    with host(patient=True) as world:
        front, way = world.front(), Way()
        wire = Wire(world.bridge, way)
        way.waiting = [STATION_A + STATION_B + b"\x88\xb5" + bytes(50)]
        assert way.readable is not None
        way.readable()
        way.is_open = False
        assert front.send(frame_of(1000, 1)) == [OKAY]
        assert front.send(frame_of(1000, 2)) == []
        assert way.writable is not None
        way.writable()
        assert (way.sent, front.answers()) == ([], [])
        way.is_open = True
        way.writable()
        world.run()
        assert [status for _, status in front.answers()] == [OKAY]
        assert way.sent == [frame_of(1000, 1), frame_of(1000, 2)]
        assert way.writable is None
        wire.close()


def test_a_wire_waits_for_the_guest_that_is_alone_on_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bivisor.dom0.net.receive.BUSY_FRAMES", 1)
    with host(patient=True) as world:
        front, way = world.front(supply=0), Way()
        wire = Wire(world.bridge, way)
        frames = [front.mac + STATION_B + b"\x88\xb5" + bytes([number] * 50) for number in range(3)]
        way.waiting = list(frames)
        assert way.readable is not None
        way.readable()
        assert way.waiting == frames[1:]
        assert way.readable is None
        front.supply(8)
        world.run()
        assert way.readable is not None
        way.readable()
        assert [each.data for each in front.received()] == frames
        wire.close()


def test_on_a_shared_network_a_wire_without_room_keeps_a_bounded_amount_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 1 << 20
    monkeypatch.setattr("bivisor.dom0.net.wire.WAITING_BYTES", limit)
    with host() as world:
        front, way = world.front(), Way()
        wire = Wire(world.bridge, way)
        way.is_open = False
        count = limit // 60000 + 5
        for number in range(count):
            assert set(front.send(BROADCAST + frame_of(60000, number)[6:])) == {OKAY}
        kept = limit // 60000
        assert wire.dropped == count - kept
        way.is_open = True
        assert way.writable is not None
        way.writable()
        assert way.sent == [BROADCAST + frame_of(60000, number)[6:] for number in range(kept)]
        wire.close()


def test_a_wire_that_takes_long_frames_gets_a_packet_in_few_pieces() -> None:
    with host() as world:
        front, way = world.front(), Way()
        way.frame_max = 30000
        wire = Wire(world.bridge, way)
        payload = random.Random(3).randbytes(60000)
        data = ethernet(with_checksum(ipv4(6, tcp(payload)), blank=True), 0x0800)
        front.send(data, flags=abi.NETTXF_CSUM_BLANK, gso=(abi.XEN_NETIF_GSO_TYPE_TCPV4, 1460))
        assert [len(frame) for frame in way.sent] == [54 + 29200, 54 + 29200, 54 + 1600]
        assert b"".join(frame[54:] for frame in way.sent) == payload
        assert all(is_right(frame[14:]) for frame in way.sent)
        wire.close()


def test_segments_that_come_in_a_row_from_a_process_of_this_host_arrive_as_one_packet() -> None:
    with host() as world:
        front, way = world.front(), Way()
        way.frame_max = 60000
        wire = Wire(world.bridge, way)
        payload = random.Random(4).randbytes(10_000)
        pieces = []
        for at in range(0, len(payload), 1460):
            segment = tcp(payload[at : at + 1460], sequence=1000 + at, flags=0x10 if at + 1460 < len(payload) else 0x18)
            pieces.append(ethernet(with_checksum(ipv4(6, segment)), 0x0800, target=front.mac))
        other = front.mac + STATION_B + b"\x88\xb5" + bytes(50)
        way.waiting = [*pieces[:5], other, pieces[5], pieces[6], pieces[0]]
        assert way.readable is not None
        way.readable()
        first, between, second, again = front.received()
        assert first.gso == second.gso == (abi.XEN_NETIF_GSO_TYPE_TCPV4, 1460)
        assert first.data[54:] + second.data[54:] == payload
        for packet in (first, second):
            assert packet.flags & abi.NETRXF_CSUM_BLANK
            assert packet.data[14:] == with_checksum(packet.data[14:], blank=True)
            assert total(packet.data[14:34]) == 0xFFFF
            assert struct.unpack_from(">H", packet.data, 16) == (len(packet.data) - 14,)
        assert (between.data, again.data) == (other, pieces[0])
        wire.close()


@given(st.lists(st.binary(min_size=0, max_size=80), max_size=6), st.data())
def test_nothing_that_a_wire_brings_makes_the_merger_raise(frames: list[bytes], data: st.DataObject) -> None:
    merger = Merger()
    template = bytearray(ethernet(with_checksum(ipv4(6, tcp(b"x" * 26))), 0x0800))
    for each in frames:
        start = data.draw(st.integers(0, len(template)))
        frame = (template[:start] + each)[: len(template)]
        if not merger.add(memoryview(frame)):
            merger.take()
    found = merger.take()
    assert found is None or found.size == sum(map(len, found.parts))
