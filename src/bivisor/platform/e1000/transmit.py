"""What the card makes of transmit descriptors: frames, with checksums filled in and long TCP segments cut up.

Specification: Intel 317453, section 3.3 (descriptors), 3.5 (TCP segmentation), 3.6 (checksum offload). Every number in
here is the guest's: offsets that leave a frame are passed over, and a packet has at most `PACKET_MAX` bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bivisor.platform.e1000 import registers as r

PACKET_MAX = 0x1_0000 + 256
FRAME_MIN, FRAME_MAX = 14, 16288
SEGMENT_MIN = 48
"""Shorter segments are not cut: no TCP sends them, and 64 KiB in single bytes would keep the host busy for seconds."""

_FIN_PSH = 0x09


@dataclass(slots=True)
class Context:
    """A context descriptor: where checksums begin (CSS), are put (CSO) and end (CSE), and how to cut segments."""

    ip_start: int = 0
    ip_put: int = 0
    ip_end: int = 0
    start: int = 0
    put: int = 0
    end: int = 0
    header: int = 0
    segment: int = 0
    is_tcp: bool = False
    is_v4: bool = False

    @classmethod
    def parse(cls, descriptor: bytes) -> Context:
        """From the 16 bytes of the descriptor."""
        ip_start, ip_put, ip_end, start, put, end, command, _, header, mss = r.TX_CONTEXT.unpack(descriptor)
        flags = command >> 24
        return cls(
            ip_start, ip_put, ip_end, start, put, end, header, mss, bool(flags & r.TUCMD_TCP), bool(flags & r.TUCMD_IP)
        )


def checksum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071), not yet inverted."""
    if len(data) & 1:
        data = bytes(data) + b"\0"
    # 2^16 is 1 modulo 2^16 - 1: the sum of all words with the carries added again is one remainder of a large number
    number = int.from_bytes(data, "big")
    total = initial + (number % 0xFFFF or (0xFFFF if number else 0))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def insert_checksum(frame: bytearray, start: int, put: int, end: int) -> None:
    """Put the checksum of `frame` from `start` to `end` (0: to its end) at `put`, whose old value is part of it."""
    last = len(frame) if end == 0 else min(end + 1, len(frame))
    if start < last and put + 2 <= len(frame):
        value = ~checksum(frame[start:last]) & 0xFFFF
        struct.pack_into(">H", frame, put, value or 0xFFFF)


def frames(packet: bytearray, context: Context, options: int, *, segment: bool) -> Iterator[bytearray]:
    """The frames that `packet` becomes."""
    if not segment or context.segment < SEGMENT_MIN or not 0 < context.header < len(packet):
        if options & r.POPTS_IXSM:
            insert_checksum(packet, context.ip_start, context.ip_put, context.ip_end)
        if options & r.POPTS_TXSM:
            insert_checksum(packet, context.start, context.put, context.end)
        yield packet
        return
    header, payload = packet[: context.header], memoryview(packet)[context.header :]
    for number, at in enumerate(range(0, len(payload), context.segment)):
        piece = payload[at : at + context.segment]
        is_last = at + len(piece) == len(payload)
        yield _segment(bytearray(header) + piece, context, options, number, at, is_last)


def _segment(frame: bytearray, context: Context, options: int, number: int, at: int, is_last: bool) -> bytearray:
    """One frame of a segmented packet: lengths, IP identification, TCP sequence and flags, checksums."""
    ip, transport, size = context.ip_start, context.start, len(frame)
    if context.is_v4 and ip + 20 <= size:
        struct.pack_into(">H", frame, ip + 2, size - ip & 0xFFFF)
        identity = struct.unpack_from(">H", frame, ip + 4)[0]
        struct.pack_into(">H", frame, ip + 4, identity + number & 0xFFFF)
    elif not context.is_v4 and ip + 40 <= size:
        struct.pack_into(">H", frame, ip + 4, size - ip - 40 & 0xFFFF)
    length = size - transport
    if context.is_tcp and transport + 20 <= size:
        sequence = struct.unpack_from(">I", frame, transport + 4)[0]
        struct.pack_into(">I", frame, transport + 4, sequence + at & 0xFFFF_FFFF)
        if not is_last:
            frame[transport + 13] &= ~_FIN_PSH
    elif not context.is_tcp and transport + 8 <= size:
        struct.pack_into(">H", frame, transport + 4, length & 0xFFFF)
    if options & r.POPTS_TXSM and context.put + 2 <= size:
        # the driver left the sum of the pseudo header without the length there
        partial = checksum(struct.pack(">H", length & 0xFFFF), struct.unpack_from(">H", frame, context.put)[0])
        struct.pack_into(">H", frame, context.put, partial)
        insert_checksum(frame, context.start, context.put, context.end)
    if options & r.POPTS_IXSM:
        insert_checksum(frame, ip, context.ip_put, context.ip_end)
    return frame
