"""Frames of gdb's remote protocol."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bivisor.debug.rsp import BREAK, Framing, frame, unescape


@given(st.lists(st.binary(max_size=64), max_size=5), st.integers(1, 7))
def test_packets_come_back_however_the_stream_is_cut(packets: list[bytes], step: int) -> None:
    stream = b"+".join(map(frame, packets))
    framing = Framing()
    found: list[bytes | None] = []
    for at in range(0, len(stream), step):
        found += framing.feed(stream[at : at + step])
    assert found == packets


@given(st.binary(max_size=200))
def test_noise_raises_nothing(data: bytes) -> None:
    list(Framing().feed(data))


def test_a_broken_packet_is_none_and_ctrl_c_is_heard_between_packets() -> None:
    assert list(Framing().feed(b"$g#00\x03+$g#67")) == [None, BREAK, b"g"]


def test_escaped_bytes_are_what_they_stand_for() -> None:
    assert frame(b"a#$}*") == b"$a}\x03}\x04}]}\x0a#" + b"%02x" % (sum(b"a}\x03}\x04}]}\x0a") & 0xFF)
    assert unescape(b"}\x03}]") == b"#}"
