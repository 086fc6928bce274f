from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xenstore_client import Client, Refused, World

from bivisor.abi.xen.xs_wire import MessageType
from bivisor.dom0.xenstore import wire
from bivisor.dom0.xenstore.errors import ProtocolError, XenStoreError
from bivisor.dom0.xenstore.wire import Message

WORDS = st.integers(0, 0xFFFF_FFFF)
MESSAGES = st.builds(Message, WORDS, WORDS, WORDS, st.binary(max_size=4096))


@given(MESSAGES, st.binary(max_size=20))
def test_a_message_comes_back_as_it_was(message: Message, more: bytes) -> None:
    assert wire.decode(wire.encode(message) + more) == message


@given(MESSAGES)
def test_an_incomplete_message_is_none_yet(message: Message) -> None:
    data = wire.encode(message)
    assert wire.decode(data[:-1]) is None
    assert wire.decode(data[:15]) is None


def test_a_payload_beyond_4096_bytes_breaks_the_connection() -> None:
    assert wire.decode(struct.pack("<4I", 2, 0, 0, 4096)) is None
    with pytest.raises(ProtocolError):
        wire.decode(struct.pack("<4I", 2, 0, 0, 4097))


@given(st.binary(max_size=8192))
def test_random_bytes_are_messages_or_break_the_connection(data: bytes) -> None:
    at = 0
    try:
        while (message := wire.decode(data, at)) is not None:
            at += wire.HEADER_SIZE + len(message.payload)
    except ProtocolError:
        pass


def test_an_error_goes_by_its_name_and_an_unnamed_one_as_einval() -> None:
    request = Message(MessageType.READ, 7, 9, b"")
    assert wire.error(request, errno.ENOENT) == struct.pack("<4I", 16, 7, 9, 7) + b"ENOENT\0"
    assert wire.error(request, errno.EXDEV).endswith(b"EINVAL\0")


def test_an_answer_that_is_too_long_is_e2big() -> None:
    assert wire.reply(Message(MessageType.DIRECTORY, 1, 0, b""), b"x" * 4097).endswith(b"E2BIG\0")


@pytest.mark.parametrize("payload", [b"", b"a", b"a\0b", b"a\0b\0", b"\0\0"])
def test_one_string_is_one_nul_at_the_end(payload: bytes) -> None:
    with pytest.raises(XenStoreError):
        wire.only_string(payload)


@pytest.mark.parametrize("string", [b"", b"-1", b"1x", b"4294967296", b"9" * 4000, b" 1"])
def test_what_is_no_number_of_32_bits_is_refused(string: bytes) -> None:
    with pytest.raises(XenStoreError):
        wire.number(string)


WORDS_OF_REQUESTS = (
    b"/ a /a /a/b b tool @releaseDomain 1 0 7 n1 b1 T F /local/domain/1 set quota check 99999999999 nodes"
)
PIECES = st.sampled_from([*WORDS_OF_REQUESTS.split(b" "), b"\xff", b"\0", b""])
PAYLOADS = st.one_of(st.lists(PIECES, max_size=8).map(b"\0".join), st.lists(PIECES, max_size=8).map(b"".join))
REQUESTS = st.tuples(st.sampled_from([0, 1, 2]), st.integers(0, 25), st.integers(0, 3), PAYLOADS)


@given(st.lists(REQUESTS, max_size=40))
def test_every_request_has_one_reply_whatever_is_in_it(requests: list[tuple[int, int, int, bytes]]) -> None:
    world = World(1, 2)
    clients = {0: world.tool, 1: world[1], 2: world[2]}
    for who, type_, tx, payload in requests:
        client = clients[who]
        if who and who not in world.server.domains:
            client = clients[who] = Client(world.server, who)
        try:
            client.ask(type_, payload, tx)
        except Refused:
            pass
    world.check()
