"""The Internet checksum that a virtio_net_hdr leaves to somebody else: virtio 1.2 section 5.1.6.2, RFC 1071."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bivisor.abi.virtio import NET_HDR, NET_HDR_F_NEEDS_CSUM
from bivisor.platform.virtio.device import gather, scatter, skip


def internet_checksum(data: bytes) -> int:
    """RFC 1071 over `data`, as a number whose big-endian bytes go into the packet."""
    if len(data) & 1:
        data += b"\0"
    # 2^16 is 1 modulo 2^16 - 1: the sum of all words with the carries added again is one remainder of a large number.
    number = int.from_bytes(data, "big")
    rest = number % 0xFFFF
    return ~rest & 0xFFFF if rest or not number else 0


def complete_checksum(views: Sequence[memoryview], size: int) -> bool:
    """Fill in the checksum that the header in front of the packet of `size` bytes in `views` asks for, if it does.

    False where the header names a place that is not in the frame.
    """
    packet = gather(views, size)
    flags, _, _, _, start, offset, _ = NET_HDR.unpack_from(packet)
    if not flags & NET_HDR_F_NEEDS_CSUM:
        return True
    frame = packet[NET_HDR.size :]
    # The header comes from another guest: a place behind the frame would be written all the same.
    if start + offset + 2 > len(frame):
        return False
    checksum = internet_checksum(frame[start:])
    scatter(skip(views, NET_HDR.size + start + offset), struct.pack(">H", checksum or 0xFFFF))
    return True
