"""Repeated acknowledgements, thinned out: what a sender acts on goes through, and nothing else is held back."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from bivisor.host.acks import FLOWS, PATIENCE_S, Thinner, parse
from bivisor.host.loop import ManualLoop

SEGMENT = 1460


class Talk:
    """A connection of a guest, over IPv4 or IPv6."""

    def __init__(self, *, is_v4: bool = True) -> None:
        self.loop = ManualLoop()
        self.thinner = Thinner(self.loop)
        self.is_v4 = is_v4

    def frame(self, source: int, target: int, sequence: int, ack: int, flags: int, window: int, size: int) -> bytes:
        tcp = struct.pack(">HHIIBBHHH", source, target, sequence, ack, 0x50, flags, window, 0, 0) + bytes(size)
        if self.is_v4:
            ip = struct.pack(">BBHHHBBHII", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0, source, target)
            return bytes(12) + b"\x08\0" + ip + tcp
        ip = struct.pack(
            ">IHBB16s16s", 6 << 28, len(tcp), 6, 64, bytes([source & 255] * 16), bytes([target & 255] * 16)
        )
        return bytes(12) + b"\x86\xdd" + ip + tcp

    def ack(self, number: int, window: int = 100, *, flags: int = 0x10, size: int = 0, port: int = 1) -> bool:
        return self.thinner.passes(self.frame(port, 2, 7, number & 0xFFFF_FFFF, flags, window, size))

    def data(self, start: int, size: int = SEGMENT) -> None:
        self.thinner.arrives(memoryview(self.frame(2, 1, start & 0xFFFF_FFFF, 7, 0x10, 100, size)))


@given(st.booleans(), st.sampled_from([1000, 0xFFFF_F000]))
def test_the_third_repetition_goes_through_once_until_all_that_was_on_its_way_is_acknowledged(
    is_v4: bool, first: int
) -> None:
    talk = Talk(is_v4=is_v4)
    assert talk.ack(first)
    for number in range(10):
        talk.data(first + SEGMENT * number)
    assert [talk.ack(first) for _ in range(9)] == [False, False, True] + [False] * 6
    for number in range(10):
        talk.data(first + SEGMENT * number)
    for acknowledged in (1, 10):  # all of which the guest has already: it says so for each segment
        assert talk.ack(first + SEGMENT * acknowledged)
        assert not any(talk.ack(first + SEGMENT * acknowledged) for _ in range(9))
    talk.data(first + SEGMENT * 10)
    talk.data(first + SEGMENT * 11)
    assert talk.ack(first + SEGMENT * 11)
    assert [talk.ack(first + SEGMENT * 11) for _ in range(4)] == [False, False, True, False]


def test_what_a_sender_that_went_back_by_itself_causes_does_not_send_it_back_again() -> None:
    talk = Talk()
    assert talk.ack(0)
    for start in (0, SEGMENT, 0, SEGMENT):
        talk.data(start)
    assert talk.ack(2 * SEGMENT)
    assert not any(talk.ack(2 * SEGMENT) for _ in range(5))


def test_only_the_same_is_a_repetition_and_after_a_while_not_even_that() -> None:
    talk = Talk()
    assert talk.ack(10)
    assert talk.ack(10, window=200)
    assert talk.ack(10, window=200, port=9)
    assert talk.ack(10, window=200, size=5)
    assert talk.ack(10, window=200, flags=0x11)
    assert not talk.ack(10, window=200)
    talk.loop.advance(PATIENCE_S)
    assert talk.ack(10, window=200)
    assert not talk.ack(10, window=200)
    assert talk.ack(0, flags=0x02)
    assert talk.ack(10, window=200), "a new connection from the same port"


def test_a_guest_with_many_connections_costs_no_more_than_some() -> None:
    talk = Talk()
    assert all(talk.ack(10, port=number) for number in range(3, FLOWS + 10))
    assert len(talk.thinner._flows) == FLOWS


@given(st.binary(max_size=90), st.booleans())
def test_any_frame_is_told_apart(data: bytes, is_v4: bool) -> None:
    template = Talk(is_v4=is_v4).frame(1, 2, 3, 4, 0x10, 5, 0)
    for frame in (data, data[:6] + template[6:], template[: len(data)], template[: 90 - len(data)] + data):
        parse(frame)
        talk = Talk()
        talk.thinner.passes(frame)
        talk.thinner.arrives(memoryview(frame))
