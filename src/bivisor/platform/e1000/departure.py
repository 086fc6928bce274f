"""How a packet leaves on a wire with headers (virtio 1.2, 5.1.6): whole, with the work that the driver left to the card
left to whoever receives it.

The counterpart of `arrival.py`. Descriptors and packet are the guest's: what does not fit together, the card does
itself.
"""

from __future__ import annotations

import struct

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import NET_HDR
from bivisor.platform.e1000 import registers as r
from bivisor.platform.e1000.transmit import SEGMENT_MIN, Context, checksum, insert_checksum
from bivisor.platform.virtio.net import FRAME_MAX

_TCP_CHECKSUM, _TCP_HEADER = 16, 20


def header_of(packet: bytearray, context: Context, options: int, offloads: int, *, segment: bool) -> bytes | None:
    """The virtio_net_hdr for `packet`, whose headers are completed for it; None where the wire does not take it whole.

    `offloads` is what the wire carries, a mask of virtio-net features.
    """
    offset = context.put - context.start
    if not options & r.POPTS_TXSM or context.end or not offloads >> abi.NET_F_CSUM & 1 or offset < 0:
        return None
    if context.put + 2 > len(packet):
        return None
    kind = length = size = 0
    if segment and len(packet) > context.header + context.segment:
        kind, feature = _KINDS[context.is_v4]
        if not offloads >> feature & 1 or not _complete(packet, context):
            return None
        length, size = context.header, context.segment
    elif segment:
        return None
    if options & r.POPTS_IXSM:
        insert_checksum(packet, context.ip_start, context.ip_put, context.ip_end)
    return NET_HDR.pack(abi.NET_HDR_F_NEEDS_CSUM, kind, length, size, context.start, offset, 0)


_KINDS = {
    True: (abi.NET_HDR_GSO_TCPV4, abi.NET_F_HOST_TSO4),
    False: (abi.NET_HDR_GSO_TCPV6, abi.NET_F_HOST_TSO6),
}


def _complete(packet: bytearray, context: Context) -> bool:
    """Fill in the lengths that the driver left out; False where this is no TCP packet that can be cut."""
    ip, start, size = context.ip_start, context.start, len(packet)
    fits = ip + (20 if context.is_v4 else 40) <= start and start + _TCP_HEADER <= context.header
    if not fits or not context.is_tcp or context.put != start + _TCP_CHECKSUM:
        return False
    if size > FRAME_MAX or size - ip > 0xFFFF or context.segment < SEGMENT_MIN:
        return False
    place, length = (ip + 2, size - ip) if context.is_v4 else (ip + 4, size - ip - 40)
    struct.pack_into(">H", packet, place, length)
    # the driver left the sum of the pseudo header without the length there
    (partial,) = struct.unpack_from(">H", packet, context.put)
    struct.pack_into(">H", packet, context.put, checksum(struct.pack(">H", size - start), partial))
    return True
