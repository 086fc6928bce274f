"""What becomes of a packet from a wire with headers: frames as on a cable, with checksums and of ordinary length.

A virtio device at the other end sends 64 KiB at once and leaves checksums to whoever receives it (virtio 1.2, 5.1.6);
this card's drivers take neither. Header and frame are another guest's: what does not fit together is passed on as it
is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import NET_HDR
from bivisor.platform.e1000 import registers as r
from bivisor.platform.e1000.transmit import SEGMENT_MIN, Context, checksum, frames, insert_checksum

_VLAN, _IPV4 = 0x8100, 0x0800
_TCP_CHECKSUM = 16


def frames_of(packet: memoryview) -> Iterator[memoryview]:
    """The frames of `packet`, which begins with a virtio_net_hdr."""
    if len(packet) < NET_HDR.size:
        return
    flags, kind, _, size, start, offset, _ = NET_HDR.unpack_from(packet)
    frame = packet[NET_HDR.size :]
    if not flags & abi.NET_HDR_F_NEEDS_CSUM or start + offset + 2 > len(frame):
        yield frame
        return
    made = bytearray(frame)
    kind &= ~abi.NET_HDR_GSO_ECN
    segments = kind in (abi.NET_HDR_GSO_TCPV4, abi.NET_HDR_GSO_TCPV6)
    if not segments or offset != _TCP_CHECKSUM or start + 20 > len(made) or size < SEGMENT_MIN:
        insert_checksum(made, start, start + offset, 0)
        yield memoryview(made)
        return
    for each in frames(made, _context(made, start, size), r.POPTS_IXSM | r.POPTS_TXSM, segment=True):
        yield memoryview(each)


def _context(frame: bytearray, start: int, size: int) -> Context:
    """How this card's own segmentation cuts the TCP packet `frame`, whose transport header is at `start`. It wants the
    sum of the pseudo header without the length there, and no checksum of the IPv4 header."""
    put = start + _TCP_CHECKSUM
    length = len(frame) - start & 0xFFFF
    partial = checksum(struct.pack(">H", ~length & 0xFFFF), struct.unpack_from(">H", frame, put)[0])
    struct.pack_into(">H", frame, put, partial)
    ip = 18 if struct.unpack_from(">H", frame, 12)[0] == _VLAN else 14
    is_v4 = struct.unpack_from(">H", frame, ip - 2)[0] == _IPV4
    if is_v4 and ip + 20 <= len(frame):
        frame[ip + 10 : ip + 12] = bytes(2)
    header = start + (frame[start + 12] >> 4) * 4
    # without an IPv4 header there is no checksum of it to fill in: its place is behind the frame
    return Context(ip, ip + 10 if is_v4 else 1 << 16, start - 1, start, put, 0, header, size, is_tcp=True, is_v4=is_v4)
