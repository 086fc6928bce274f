"""The e1000: rings, checksums, segmentation, and drivers that break the rules."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import pytest
from board_bench import Bench, bench
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.abi.virtio import NET_HDR
from bivisor.platform.e1000 import E1000
from bivisor.platform.e1000 import registers as r
from bivisor.platform.e1000.arrival import frames_of
from bivisor.platform.e1000.card import SENT_INTERVAL_S, TURN_FRAMES
from bivisor.platform.e1000.departure import header_of
from bivisor.platform.e1000.transmit import Context, checksum, frames
from bivisor.platform.virtio.net import OFFLOADS

BASE, TX, RX, BUFFERS = 0xE000_0000, 0x1000, 0x2000, 0x8000
MAC = "52:54:00:12:34:56"


class Wire:
    has_header = False
    frame_max = 0
    offloads = 0

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.waiting: list[bytes] = []
        self.readable: Callable[[], None] | None = None
        self.writable: Callable[[], None] | None = None
        self.is_full = False

    def set_offloads(self, features: int) -> None:
        pass

    def watch(self, readable: Callable[[], None] | None, writable: Callable[[], None] | None) -> None:
        self.readable, self.writable = readable, writable

    def send(self, views: Sequence[memoryview]) -> bool:
        if not self.is_full:
            self.sent.append(b"".join(views))
        return not self.is_full

    def waits(self) -> bool:
        return self.writable is not None

    def receive(self, views: Sequence[memoryview]) -> int:
        if not self.waiting:
            return 0
        frame = self.waiting.pop(0)
        views[0][: len(frame)] = frame
        return len(frame)


class Driver:
    def __init__(self, made: Bench) -> None:
        self.made, self.wire = made, Wire()
        made.board.add(E1000(made.memory, self.wire, MAC, made.loop), 3)
        made.config(1, 0, 0x60 + 2, 0x0B, 1)  # slot 3, pin A: PIRQ C
        made.config(3, 0, 0x10, BASE)
        made.config(3, 0, 0x04, 7, 2)
        for low, place, count in ((r.TDBAL, TX, 8), (r.RDBAL, RX, 8)):
            self[low], self[low + 8] = place, count * 16
        self[r.TCTL], self[r.RCTL] = r.TCTL_EN, r.RCTL_EN | r.RCTL_BAM
        self[r.IMS] = 0x1FFFF
        self.tail = 0

    def __setitem__(self, offset: int, value: int) -> None:
        self.made.mmio.write(BASE + offset, 4, value)

    def __getitem__(self, offset: int) -> int:
        return self.made.mmio.read(BASE + offset, 4)

    def put(self, descriptor: bytes) -> None:
        self.made.memory.write(TX + 16 * self.tail, descriptor)
        self.tail = (self.tail + 1) % 8

    def go(self) -> None:
        self[r.TDT] = self.tail


@pytest.fixture
def driver() -> Iterator[Driver]:
    with bench() as made:
        yield Driver(made)


def test_the_address_is_in_the_eeprom_whose_sum_is_right(driver: Driver) -> None:
    words = []
    for at in range(64):
        driver[r.EERD] = at << 8 | 1
        assert driver[r.EERD] & r.EERD_DONE
        words.append(driver[r.EERD] >> 16)
    assert struct.pack("<3H", *words[:3]).hex(":") == MAC
    assert sum(words) & 0xFFFF == 0xBABA


def test_a_frame_in_two_pieces_is_sent_and_the_guest_told(driver: Driver) -> None:
    driver.made.memory.write(BUFFERS, bytes(range(100)))
    driver.put(r.TX_LEGACY.pack(BUFFERS, 60, 0, 0, 0, 0, 0))
    driver.put(r.TX_LEGACY.pack(BUFFERS + 60, 40, 0, r.CMD_EOP | r.CMD_RS, 0, 0, 0))
    driver.go()
    assert driver.wire.sent == [bytes(range(100))]
    assert driver.made.lines[11]
    assert driver[r.ICR] & r.INT_TXDW
    assert not driver.made.lines[11]
    assert driver[r.TDH] == 2
    assert driver.made.memory.read(TX + 16 + 12, 1) == b"\x01"


def test_interrupts_that_only_say_what_was_sent_are_moderated(driver: Driver) -> None:
    def send() -> None:
        driver.put(r.TX_LEGACY.pack(BUFFERS, 60, 0, r.CMD_EOP | r.CMD_RS, 0, 0, 0))
        driver.go()

    assert driver[r.ICR] & r.INT_TXQE  # that nothing was to be sent yet
    driver.made.loop.advance(1)
    send()
    assert driver.made.lines[11]
    assert driver[r.ICR] & r.INT_TXDW
    send()
    assert not driver.made.lines[11]
    driver.made.loop.advance(SENT_INTERVAL_S)
    assert driver.made.lines[11]
    assert driver[r.ICR] & r.INT_TXDW
    for _ in range(4):
        send()
        assert not driver.made.lines[11]
    send()  # more than half of the ring
    assert driver.made.lines[11]
    assert driver[r.TDH] == 7
    assert driver[r.ICR] & r.INT_TXDW
    send()
    driver[r.ICS] = r.INT_RXT0
    assert driver.made.lines[11], "what arrives is told at once"


def test_a_long_segment_is_cut_into_frames_with_right_checksums(driver: Driver) -> None:
    payload = bytes(n * 7 & 0xFF for n in range(3000))
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 100, 0, 64, 6, 0, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)))
    pseudo = checksum(ip[12:20] + struct.pack(">H", 6))
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 1000, 0, 0x50, 0x19, 512, pseudo, 0)
    packet = bytes(12) + b"\x08\0" + ip + tcp + payload
    driver.made.memory.write(BUFFERS, packet)
    flags = (r.TUCMD_TCP | r.TUCMD_IP | r.CMD_TSE | r.CMD_DEXT) << 24
    driver.put(r.TX_CONTEXT.pack(14, 24, 33, 34, 50, 0, flags | len(payload), 0, 54, 1460))
    word = (r.CMD_DEXT | r.CMD_TSE | r.CMD_EOP | r.CMD_RS) << 24 | 1 << 20 | len(packet)
    driver.put(r.TX_EXTENDED.pack(BUFFERS, word, 0, r.POPTS_IXSM | r.POPTS_TXSM, 0))
    driver.go()
    sent = driver.wire.sent
    assert [len(frame) for frame in sent] == [1514, 1514, 134]
    assert b"".join(frame[54:] for frame in sent) == payload
    for number, frame in enumerate(sent):
        assert checksum(frame[14:34]) == 0xFFFF
        length = len(frame) - 34
        assert checksum(frame[26:34] + struct.pack(">HH", 6, length) + frame[34:]) == 0xFFFF
        assert struct.unpack_from(">H", frame, 18)[0] == 100 + number
        assert struct.unpack_from(">I", frame, 38)[0] == 1000 + 1460 * number
        assert bool(frame[47] & 0x09) == (number == 2)


def test_packets_that_become_thousands_of_frames_are_sent_in_turns(driver: Driver) -> None:
    driver.put(r.TX_CONTEXT.pack(14, 24, 33, 34, 50, 0, (r.CMD_DEXT | r.TUCMD_TCP | r.TUCMD_IP) << 24, 0, 54, 48))
    command = r.CMD_DEXT | r.CMD_EOP | r.CMD_TSE
    for _ in range(5):
        driver.put(r.TX_EXTENDED.pack(BUFFERS, 65_000 | 1 << 20 | command << 24, 0, 3, 0))
    driver.go()
    each = -(-(65_000 - 54) // 48)
    assert 0 < len(driver.wire.sent) <= TURN_FRAMES + each
    turns = 1
    while driver.wire.waits():
        assert driver.wire.writable is not None
        driver.wire.writable()
        turns += 1
    assert len(driver.wire.sent) == 5 * each
    assert turns >= 5 and driver[r.TDH] == driver.tail


def test_a_wire_with_headers_takes_a_long_segment_whole_and_it_becomes_the_same_frames_elsewhere(
    driver: Driver,
) -> None:
    driver.wire.has_header, driver.wire.offloads = True, OFFLOADS
    payload = bytes(n * 7 & 0xFF for n in range(3000))
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 100, 0, 64, 6, 0, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)))
    pseudo = checksum(ip[12:20] + struct.pack(">H", 6))
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 1000, 0, 0x50, 0x19, 512, pseudo, 0)
    packet = bytearray(bytes(12) + b"\x08\0" + ip + tcp + payload)
    driver.made.memory.write(BUFFERS, packet)
    flags = (r.TUCMD_TCP | r.TUCMD_IP | r.CMD_TSE | r.CMD_DEXT) << 24
    context = r.TX_CONTEXT.pack(14, 24, 33, 34, 50, 0, flags | len(payload), 0, 54, 1460)
    driver.put(context)
    word = (r.CMD_DEXT | r.CMD_TSE | r.CMD_EOP | r.CMD_RS) << 24 | 1 << 20 | len(packet)
    driver.put(r.TX_EXTENDED.pack(BUFFERS, word, 0, r.POPTS_IXSM | r.POPTS_TXSM, 0))
    driver.go()
    (sent,) = driver.wire.sent
    assert NET_HDR.unpack_from(sent) == (1, 1, 54, 1460, 34, 16, 0)
    assert checksum(sent[12 + 14 : 12 + 34]) == 0xFFFF
    cut = [bytes(each) for each in frames(packet, Context.parse(context), 3, segment=True)]
    assert [bytes(each) for each in frames_of(memoryview(bytearray(sent)))] == cut


@given(
    *(st.integers(0, 255) for _ in range(4)),
    st.sampled_from([0, 65, 1000]),
    st.integers(0, 255),
    st.sampled_from([0, 48, 1460, 65535]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.booleans(),
    st.binary(max_size=300),
)
def test_no_context_of_a_driver_makes_a_header_that_leaves_its_packet(
    ip: int, ip_put: int, start: int, put: int, end: int, length: int, size: int,
    is_tcp: bool, is_v4: bool, options: int, segment: bool, packet: bytes,
) -> None:  # fmt: skip
    context = Context(ip, ip_put, 0, start, put, end, length, size, is_tcp, is_v4)
    made = bytearray(packet)
    header = header_of(made, context, options, OFFLOADS, segment=segment)
    assert len(made) == len(packet)
    if header is not None:
        flags, _, _, _, begin, offset, _ = NET_HDR.unpack(header)
        assert flags == 1
        assert begin + offset + 2 <= len(packet)


def test_a_frame_arrives_in_the_guests_buffer(driver: Driver) -> None:
    for at in range(8):
        driver.made.memory.write(RX + 16 * at, struct.pack("<QQ", BUFFERS + 2048 * at, 0))
    driver[r.RDT] = 7
    ours = bytes.fromhex(MAC.replace(":", "")) + bytes(94)
    driver.wire.waiting += [bytes((2,)) + bytes(99), ours]  # the first is for somebody else
    assert driver.wire.readable is not None
    driver.wire.readable()
    assert driver[r.RDH] == 1
    assert driver.made.memory.read(BUFFERS, 100) == ours
    _, length, _, status, _, _ = r.RX_DESCRIPTOR.unpack(driver.made.memory.read(RX, 16))
    assert (length, status) == (104, r.DD | r.RX_EOP)
    assert driver[r.ICR] & r.INT_RXT0


def test_nobody_listens_to_a_card_without_buffers(driver: Driver) -> None:
    driver[r.RDT] = 0
    assert driver.wire.readable is None


@pytest.mark.parametrize("last", [r.RCTL, r.RDH])
def test_whichever_register_makes_room_last_the_frames_that_wait_arrive(driver: Driver, last: int) -> None:
    for at in range(8):
        driver.made.memory.write(RX + 16 * at, struct.pack("<QQ", BUFFERS + 2048 * at, 0))
    ours = bytes.fromhex(MAC.replace(":", "")) + bytes(94)
    driver[r.RDT] = 1
    driver.wire.waiting += [ours.ljust(5000, b"."), ours]
    assert driver.wire.readable is not None
    driver.wire.readable()
    assert driver[r.RDH] == 0 and driver.wire.waiting == [ours]
    driver[last] = {r.RCTL: 0, r.RDH: 7}[last]
    driver[r.RDT] = 7
    assert driver.wire.readable is None
    driver[last] = {r.RCTL: r.RCTL_EN, r.RDH: 0}[last]
    assert driver[r.RDH] == 3
    driver.wire.readable()
    assert driver[r.RDH] == 4


PLACES = [
    r.CTRL,
    r.EERD,
    r.MDIC,
    r.ICR,
    r.ICS,
    r.IMS,
    r.RCTL,
    r.TCTL,
    *range(0x2800, 0x281C, 4),
    *range(0x3800, 0x381C, 4),
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(PLACES), st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 4096))), max_size=40
    ),
    st.binary(max_size=256),
)
def test_no_driver_makes_the_card_raise_or_leave_memory(writes: list[tuple[int, int]], rings: bytes) -> None:
    with bench() as made:
        driver = Driver(made)
        made.memory.write(TX, rings)
        made.memory.write(RX, rings)
        for offset, value in writes:
            driver[offset] = value
            driver[offset]
            driver.wire.waiting.append(b"\xff" * 100)
            if driver.wire.readable is not None:
                driver.wire.readable()


def microwire(driver: Driver, address: int) -> int:
    """Read a word as Linux does: REQ, then CS, a start bit, a command, an address; then 16 bits."""
    driver[r.EECD] = r.EECD_REQ
    assert driver[r.EECD] & (r.EECD_GNT | r.EECD_PRES) == r.EECD_GNT | r.EECD_PRES
    for number in range(8, -1, -1):
        wires = r.EECD_REQ | r.EECD_CS | (r.EECD_DI if (0b110 << 6 | address) >> number & 1 else 0)
        driver[r.EECD] = wires
        driver[r.EECD] = wires | r.EECD_SK
    value = 0
    for _ in range(16):
        driver[r.EECD] = r.EECD_REQ | r.EECD_CS
        driver[r.EECD] = r.EECD_REQ | r.EECD_CS | r.EECD_SK
        value = value << 1 | bool(driver[r.EECD] & r.EECD_DO)
    driver[r.EECD] = 0
    return value


def test_the_eeprom_can_be_read_bit_by_bit(driver: Driver) -> None:
    assert struct.pack("<3H", *(microwire(driver, at) for at in range(3))).hex(":") == MAC
    assert sum(microwire(driver, at) for at in range(64)) & 0xFFFF == 0xBABA


def test_what_the_wire_does_not_take_waits_for_it(driver: Driver) -> None:
    driver.wire.is_full = True
    for number in range(3):
        driver.made.memory.write(BUFFERS + 64 * number, bytes((number,)) * 60)
        driver.put(r.TX_LEGACY.pack(BUFFERS + 64 * number, 60, 0, r.CMD_EOP | r.CMD_RS, 0, 0, 0))
    driver.go()
    assert driver.wire.sent == []
    assert driver[r.TDH] == 1
    assert driver.wire.waits()
    driver.wire.is_full = False
    assert driver.wire.writable is not None
    driver.wire.writable()
    assert driver.wire.sent == [bytes((number,)) * 60 for number in range(3)]
    assert driver[r.TDH] == 3
    assert not driver.wire.waits()


def test_a_packet_of_a_virtio_device_arrives_in_ordinary_frames_with_checksums() -> None:
    payload = bytes(n * 7 & 0xFF for n in range(3000))
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 7, 0, 64, 6, 0, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    )
    ip = ip[:10] + struct.pack(">H", ~checksum(ip) & 0xFFFF) + ip[12:]  # Linux leaves the whole packet's sum there
    pseudo = checksum(ip[12:20] + struct.pack(">HH", 6, 20 + len(payload)))
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 1000, 0, 0x50, 0x19, 512, pseudo, 0)
    header = NET_HDR.pack(1, 1, 54, 1460, 34, 16, 0)
    packet = bytearray(header + bytes(12) + b"\x08\0" + ip + tcp + payload)
    made = [bytes(frame) for frame in frames_of(memoryview(packet))]
    assert [len(frame) for frame in made] == [54 + 1460, 54 + 1460, 54 + 80]
    assert b"".join(frame[54:] for frame in made) == payload
    for number, frame in enumerate(made):
        size = len(frame) - 14
        assert struct.unpack_from(">HH", frame, 16) == (size, 7 + number)
        assert checksum(frame[14:34]) == 0xFFFF
        assert checksum(frame[26:34] + struct.pack(">HH", 6, size - 20) + frame[34:]) == 0xFFFF
        assert struct.unpack_from(">I", frame, 38) == (1000 + 1460 * number,)
    (whole,) = frames_of(memoryview(bytearray(NET_HDR.pack(1, 0, 0, 0, 34, 16, 0)) + packet[12:]))
    assert checksum(bytes(whole[26:34]) + struct.pack(">HH", 6, 20 + len(payload)) + bytes(whole[34:])) == 0xFFFF


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_no_header_of_another_guest_raises(header: bytes, frame: bytes) -> None:
    made = list(frames_of(memoryview(bytearray(header[:12] + frame))))
    assert sum(map(len, made)) <= 1 << 20


@given(*(st.integers(0, limit) for limit in (255, 255, 65535, 65535, 400, 400)), st.binary(max_size=300))
def test_no_claim_of_another_guest_raises(
    flags: int, kind: int, length: int, size: int, start: int, offset: int, frame: bytes
) -> None:
    packet = NET_HDR.pack(flags, kind, length, size, start, offset, 0) + frame
    assert len(list(frames_of(memoryview(bytearray(packet))))) <= 1 + len(frame) // 48


def test_a_large_packet_waits_for_buffers(driver: Driver) -> None:
    """The ring has seven free buffers, and eleven frames arrive at once."""
    for at in range(8):
        driver.made.memory.write(RX + 16 * at, struct.pack("<QQ", BUFFERS + 2048 * at, 0))
    driver[r.RDT] = 7
    driver.wire.has_header = True
    ethernet = bytes.fromhex(MAC.replace(":", "")) + bytes(6) + b"\x08\0"
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 7, 0, 64, 6, 0, bytes(4), bytes(4))
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 1000, 0, 0x50, 0x19, 512, 0, 0)
    driver.wire.waiting.append(NET_HDR.pack(1, 1, 54, 1000, 34, 16, 0) + ethernet + ip + tcp + bytes(11_000))
    assert driver.wire.readable is not None
    driver.wire.readable()
    assert (driver[r.RDH], driver[r.ICR] & r.INT_RXT0) == (7, r.INT_RXT0)
    assert driver.made.memory.read(BUFFERS + 38, 4) == struct.pack(">I", 1000)
    driver[r.RDT] = 6
    assert (driver[r.RDH], driver[r.ICR] & r.INT_RXT0) == (3, r.INT_RXT0)
    assert driver.made.memory.read(BUFFERS + 2048 * 2 + 38, 4) == struct.pack(">I", 1000 + 10_000)
