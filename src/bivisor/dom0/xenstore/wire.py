"""Bytes to requests and replies to bytes (docs/misc/xenstore.txt, io/xs_wire.h). Pure functions.

A message is a header and at most 4096 bytes of payload; a payload is mostly strings, each ended by a NUL.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from bivisor.abi.xen.xs_wire import SOCKMSG, XENSTORE_PAYLOAD_MAX, XSD_ERRORS, MessageType
from bivisor.dom0.xenstore.errors import ProtocolError, XenStoreError

HEADER_SIZE = SOCKMSG.size
MESSAGE_MAX = HEADER_SIZE + XENSTORE_PAYLOAD_MAX

_ERROR = int(MessageType.ERROR)
_WATCH_EVENT = int(MessageType.WATCH_EVENT)


class Message(NamedTuple):
    """One message in either direction. `type` is any 32-bit number: what a client sends need not be a MessageType."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes


def decode(buffer: bytes | bytearray | memoryview, at: int = 0) -> Message | None:
    """The message that begins at `at`, or None where it is not complete. ProtocolError where it is too long."""
    available = len(buffer) - at
    if available < HEADER_SIZE:
        return None
    type_, req_id, tx_id, length = SOCKMSG.unpack_from(buffer, at)
    # A longer one would have to be buffered whole: a client could fill the host's memory.
    if length > XENSTORE_PAYLOAD_MAX:
        raise ProtocolError(f"payload of {length} bytes, and at most {XENSTORE_PAYLOAD_MAX} are allowed")
    start = at + HEADER_SIZE
    if available - HEADER_SIZE < length:
        return None
    return Message(type_, req_id, tx_id, bytes(buffer[start : start + length]))


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    type_, req_id, tx_id, payload = message
    return SOCKMSG.pack(type_, req_id, tx_id, len(payload)) + payload


def reply(request: Message, payload: bytes) -> bytes:
    """The answer to a request: the same type, request and transaction. E2BIG where the payload is too long."""
    if len(payload) > XENSTORE_PAYLOAD_MAX:
        return error(request, errno.E2BIG)
    return SOCKMSG.pack(request.type, request.req_id, request.tx_id, len(payload)) + payload


def error(request: Message, number: int) -> bytes:
    """The refusal of a request. An errno that has no name in the protocol goes as EINVAL."""
    payload = XSD_ERRORS.get(number) or XSD_ERRORS[errno.EINVAL]
    return SOCKMSG.pack(_ERROR, request.req_id, request.tx_id, len(payload)) + payload


def watch_event(path: bytes, token: bytes) -> bytes | None:
    """An unsolicited WATCH_EVENT, or None where path and token are together too long for a message."""
    payload = b"%s\0%s\0" % (path, token)
    if len(payload) > XENSTORE_PAYLOAD_MAX:
        return None
    return SOCKMSG.pack(_WATCH_EVENT, 0, 0, len(payload)) + payload


def only_string(payload: bytes) -> bytes:
    """The string of a payload that is one string with its NUL, and nothing else. EINVAL otherwise."""
    if payload.find(b"\0") != len(payload) - 1 or not payload:
        raise XenStoreError(errno.EINVAL)
    return payload[:-1]


def strings(payload: bytes) -> list[bytes]:
    """The strings that end with a NUL; what follows the last NUL is not one."""
    found = payload.split(b"\0")
    found.pop()
    return found


def path_and_value(payload: bytes) -> tuple[bytes, bytes]:
    """The payload of WRITE: a string with its NUL, then any bytes. EINVAL without a NUL."""
    path, separator, value = payload.partition(b"\0")
    if not separator:
        raise XenStoreError(errno.EINVAL)
    return path, value


def number(string: bytes, limit: int = 1 << 32) -> int:
    """A decimal number below `limit`, which is at most 2^64. EINVAL where the string is none."""
    # Length first: int() of thousands of digits costs time quadratic in them.
    if not 0 < len(string) <= 20 or not string.isdigit() or int(string) >= limit:
        raise XenStoreError(errno.EINVAL)
    return int(string)
