"""The virtio network device on a cable, and what it does with packets that do not fit."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import DriverQueue, RecordingTransport, bring_up

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import NET_HDR, bit
from bivisor.errors import UsageError
from bivisor.host.link import cable
from bivisor.host.loop import ManualLoop
from bivisor.memory import GuestMemory
from bivisor.platform.virtio.checksum import internet_checksum
from bivisor.platform.virtio.net import OFFLOADS, NetBackend, VirtioNet, parse_mac

RX, TX = 0, 1
DATA, BUFFERS = 0x200000, 0x300000
FRAME = bytes(range(60))
ALL = OFFLOADS | bit(abi.NET_F_MRG_RXBUF)


class Guest:
    """A guest's network interface, with `count` receive buffers of `length` bytes."""

    def __init__(
        self, backend: NetBackend, loop: ManualLoop, *, features: int = ALL, count: int = 64, length: int = 1536
    ) -> None:
        self.memory = GuestMemory(8 << 20)
        self.loop = loop
        self.backend = backend
        self.device = VirtioNet(backend, "52:54:00:12:34:56")
        self.transport: RecordingTransport
        self.queues: list[DriverQueue]
        self.transport, self.queues = bring_up(self.device, self.memory, size=64, features=features | bit(28) | bit(29))
        self.where: dict[int, int] = {}
        self.length = length
        self.offer(count)

    def offer(self, count: int) -> None:
        for _ in range(count):
            address = BUFFERS + 0x11000 * (self.queues[RX].avail_idx % 64)
            head = self.queues[RX].add([], [(address, self.length)], table=True)
            assert head is not None
            self.where[head] = address
        self.device.notify(RX)

    def send(self, frame: bytes, header: bytes = bytes(12)) -> None:
        self.memory.write(DATA, header + frame)
        self.queues[TX].add([(DATA, 12), (DATA + 12, len(frame))], [], table=True)
        self.device.notify(TX)

    def receive(self) -> list[tuple[bytes, bytes]]:
        """The (header, frame) of all packets that came."""
        found = []
        parts = [self.memory.read(self.where.pop(head), written) for head, written in self.queues[RX].take()]
        while parts:
            count = struct.unpack_from("<H", parts[0], 10)[0]
            assert 0 < count <= len(parts)
            packet = b"".join(parts[:count])
            found.append((packet[:12], packet[12:]))
            del parts[:count]
        return found

    def close(self) -> None:
        self.device.close()
        self.backend.close()  # type: ignore[attr-defined]
        self.memory.close()


@pytest.fixture
def guests() -> Iterator[tuple[Guest, Guest]]:
    loop = ManualLoop()
    left, right = cable(loop, loop)
    pair = Guest(left, loop), Guest(right, loop)
    yield pair
    for guest in pair:
        guest.close()


def arrive(guest: Guest) -> list[tuple[bytes, bytes]]:
    """Let the loop see what is there, and receive it."""
    watch = guest.loop.watches.get(guest.backend._fd)  # type: ignore[attr-defined]
    if watch and watch[0]:
        watch[0]()
    return guest.receive()


def test_a_frame_goes_from_guest_to_guest(guests: tuple[Guest, Guest]) -> None:
    left, right = guests
    left.send(FRAME)
    assert [frame for _, frame in arrive(right)] == [FRAME]
    assert right.transport.interrupts == [RX]
    assert len(left.queues[TX].take()) == 1


def test_a_packet_of_64_kib_is_spread_over_receive_buffers(guests: tuple[Guest, Guest]) -> None:
    left, right = guests
    header = NET_HDR.pack(1, abi.NET_HDR_GSO_TCPV4, 54, 1448, 34, 16, 0)
    frame = bytes(i % 251 for i in range(65000))
    left.send(frame, header)
    ((got, data),) = arrive(right)
    assert data == frame
    assert got[:10] == header[:10]
    assert struct.unpack_from("<H", got, 10) == (43,)


def test_a_guest_without_buffers_keeps_packets_waiting_and_loses_none() -> None:
    loop = ManualLoop()
    left, right = (Guest(end, loop, count=0) for end in cable(loop, loop))
    left.send(FRAME)
    assert arrive(right) == []
    assert right.backend._fd not in loop.watches  # type: ignore[attr-defined]
    right.offer(64)
    assert [frame for _, frame in arrive(right)] == [FRAME]
    left.close()
    right.close()


def test_a_full_wire_makes_the_sender_wait_and_loses_nothing(guests: tuple[Guest, Guest]) -> None:
    left, right = guests
    with socket.socket(fileno=os.dup(left.backend._fd)) as end:  # type: ignore[attr-defined]
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    sent = 0
    while not left.device._blocked and sent < 60:
        left.send(bytes([sent]) * 60000)
        left.memory.write(DATA, bytes(12))
        sent += 1
    assert left.device._blocked
    assert len(left.queues[TX].take()) == sent - 1
    got = []
    for _ in range(200):
        got += arrive(right)
        right.offer(len(right.queues[RX].free))
        _, writable = left.loop.watches.get(left.backend._fd, (None, None))  # type: ignore[attr-defined]
        if writable:
            writable()
    assert len(got) == sent
    assert not left.device._blocked


def test_without_mergeable_buffers_a_packet_has_one_buffer_and_a_longer_one_is_lost() -> None:
    loop = ManualLoop()
    left, right = (Guest(end, loop, features=0, length=1526) for end in cable(loop, loop))
    for length in (1514, 1515, 60):
        left.send(bytes(length))
    assert [len(frame) for _, frame in arrive(right)] == [1514, 60]
    assert right.device.dropped == 1
    left.close()
    right.close()


def test_a_guest_that_did_not_ask_for_offloads_gets_whole_checksums_and_no_large_packets() -> None:
    loop = ManualLoop()
    ends = cable(loop, loop)
    left, right = Guest(ends[0], loop), Guest(ends[1], loop, features=bit(abi.NET_F_MRG_RXBUF))
    left.send(FRAME, NET_HDR.pack(1, 0, 0, 0, 14, 16, 0))
    left.send(FRAME, NET_HDR.pack(1, abi.NET_HDR_GSO_TCPV4, 54, 1448, 14, 16, 0))
    left.send(FRAME, NET_HDR.pack(1, 0, 0, 0, 14, 1000, 0))
    ((header, frame),) = arrive(right)
    assert header == NET_HDR.pack(0, 0, 0, 0, 0, 0, 1)
    assert frame[:30] == FRAME[:30] and frame[32:] == FRAME[32:]
    assert frame[30:32] == struct.pack(">H", internet_checksum(FRAME[14:]))
    assert right.device.dropped == 2
    left.close()
    right.close()


@pytest.mark.parametrize("length", [0, 1, 13, 65551, 100000])
def test_what_is_no_frame_is_not_sent(guests: tuple[Guest, Guest], length: int) -> None:
    left, right = guests
    left.memory.write(DATA, bytes(12))
    left.queues[TX].add([(DATA, 12 + length)], [])
    left.device.notify(TX)
    assert left.device.dropped == 1
    assert arrive(right) == []
    assert len(left.queues[TX].take()) == 1


def test_a_receive_buffer_without_room_for_the_header_asks_for_a_reset() -> None:
    loop = ManualLoop()
    left, right = (Guest(end, loop, count=1, length=11) for end in cable(loop, loop))
    assert len(right.transport.reasons) == 1
    left.send(FRAME)
    assert arrive(right) == []
    left.close()
    right.close()


def test_when_the_other_end_goes_the_link_is_down(guests: tuple[Guest, Guest]) -> None:
    left, right = guests
    left.backend.close()  # type: ignore[attr-defined]
    assert arrive(right) == []
    assert struct.unpack_from("<H", right.device.config, 6) == (0,)
    right.send(FRAME)
    assert len(right.queues[TX].take()) == 1


@pytest.mark.parametrize("text", ["", "52:54:00", "52:54:00:12:34:zz", "ff:ff:ff:ff:ff:ff", "0:0:0:0:0:0", "1" * 17])
def test_an_address_of_no_station_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_mac(text)


def test_the_checksum_is_that_of_rfc_1071() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    assert internet_checksum(bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")) == 0


@settings(max_examples=60, deadline=None)
@given(
    packets=st.lists(st.tuples(st.binary(min_size=12, max_size=12), st.integers(1, 3000)), max_size=12),
    features=st.sampled_from([0, ALL, bit(abi.NET_F_MRG_RXBUF), OFFLOADS]),
    length=st.integers(12, 4000),
)
def test_any_packets_at_all_arrive_or_are_counted_as_lost(
    packets: list[tuple[bytes, int]], features: int, length: int
) -> None:
    loop = ManualLoop()
    ends = cable(loop, loop)
    left, right = Guest(ends[0], loop), Guest(ends[1], loop, features=features, length=length)
    for header, size in packets:
        left.send(bytes(size), header)
    got = []
    for _ in packets:
        got += arrive(right)
        right.offer(len(right.queues[RX].free))
    got += right.receive()
    assert not right.transport.reasons
    assert len(got) + left.device.dropped + right.device.dropped == len(packets)
    left.close()
    right.close()
