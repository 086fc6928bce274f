"""What a frame's sender left to others, done in software: checksums (RFC 1071), and TCP segments (RFC 9293, 791, 8200).

Most frames never come here: from one guest to another they pass with their offloads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bivisor.abi.xen.netif import XEN_NETIF_GSO_TYPE_NONE
from bivisor.dom0.net.frame import GSO_TYPES, TCP, Frame, Layers
from bivisor.platform.virtio.checksum import internet_checksum

SEGMENTS_MAX = 128
"""How many segments a frame is cut into here at most: 64 KiB in the smallest that a network needs (536 bytes) are 123,
and a guest that asks for more asks for our time."""

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_CWR, _PSH, _FIN = 0x80, 0x08, 0x01


@dataclass(frozen=True, slots=True)
class Takes:
    """What a receiver can do itself: complete checksums of packets in IPv4 and in IPv6, take packets that are still to
    be cut (a set of XEN_NETIF_GSO_TYPE_*). `frame_max`: segments may be cut so long that their frames have up to this
    many bytes, whatever their sender says."""

    ipv4_checksum: bool = False
    ipv6_checksum: bool = False
    gso: frozenset[int] = frozenset()
    frame_max: int = 0

    def takes(self, frame: Frame, layers: Layers) -> bool:
        """Whether it takes `frame`, which wants something done, as it is."""
        if frame.gso_type and frame.gso_type not in self.gso:
            return False
        return self.ipv4_checksum if layers.version == 4 else self.ipv6_checksum


def check(frame: Frame) -> bool:
    """Whether what `frame` wants done can be: asked once, where a frame enters. One that is to be cut and says nothing
    of its checksum is brought into order, for some front-ends send such."""
    if not frame.blank and not frame.gso_type:
        return True
    layers = frame.layers()
    if layers is None:
        return False
    if frame.gso_type:
        if layers.protocol != TCP or GSO_TYPES[layers.version] != frame.gso_type or not frame.gso_size:
            return False
        if not frame.blank:
            _seed(frame, layers)
    return True


def adapt(frame: Frame, takes: Takes) -> Iterable[Frame]:
    """What of `frame` goes to a receiver that takes `takes`: the frame itself, one with its checksum, or segments.

    Nothing, as an empty tuple, where it would be more than SEGMENTS_MAX segments.
    """
    if not frame.blank:
        return (frame,)
    layers = frame.layers()
    assert layers is not None  # see `check`
    if takes.takes(frame, layers):
        return (frame,)
    if not frame.gso_type:
        return (_completed(frame, layers),)
    size = frame.gso_size * max(1, (takes.frame_max - layers.payload) // frame.gso_size)
    count = max(1, -(-(layers.end - layers.payload) // size))
    return _segments(frame, layers, count, size) if count <= SEGMENTS_MAX else ()


def _pseudo(head: bytes | bytearray, layers: Layers, length: int) -> bytes:
    """The pseudo header of a packet with `length` bytes of TCP or UDP (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    at = layers.network
    addresses = head[at + 12 : at + 20] if layers.version == 4 else head[at + 8 : at + 40]
    return bytes(addresses) + _U32.pack(layers.protocol) + _U32.pack(length)


def _seed(frame: Frame, layers: Layers) -> None:
    """Put the sum of the pseudo header where the checksum will be, as a blank checksum has it."""
    seed = ~internet_checksum(_pseudo(frame.head, layers, layers.end - layers.transport)) & 0xFFFF
    head = bytearray(frame.head)
    _U16.pack_into(head, layers.checksum, seed)
    before = len(frame.head)
    frame.head = bytes(head)
    frame.parts = (memoryview(frame.head), *skip(frame, before))
    frame.blank = True


def skip(frame: Frame, count: int) -> list[memoryview]:
    """The parts of `frame` behind its first `count` bytes."""
    rest = []
    for part in frame.parts:
        if count < len(part):
            rest.append(part[count:] if count else part)
            count = 0
        else:
            count -= len(part)
    return rest


def _fill_in(packet: bytearray, layers: Layers, payload: bytes | memoryview = b"") -> None:
    """Compute the checksum of the TCP or UDP packet in `packet`, which goes on with `payload`."""
    at = layers.checksum
    packet[at : at + 2] = b"\0\0"
    length = len(packet) - layers.transport + len(payload)
    data = b"".join((_pseudo(packet, layers, length), packet[layers.transport :], payload))
    _U16.pack_into(packet, at, internet_checksum(data) or 0xFFFF)


def _completed(frame: Frame, layers: Layers) -> Frame:
    packet = bytearray().join(frame.parts)
    padding = bytes(packet[layers.end :])
    del packet[layers.end :]
    _fill_in(packet, layers)
    return Frame.of(bytes(packet + padding), validated=True)


def _segments(frame: Frame, layers: Layers, count: int, size: int) -> Iterator[Frame]:
    packet = memoryview(b"".join(frame.parts))
    start, end = layers.payload, layers.end
    header = bytes(frame.head[:start])
    for index in range(count):
        first = start + index * size
        payload = packet[first : min(first + size, end)]
        own = _segment_header(header, layers, index, last=index == count - 1, done=index * size, length=len(payload))
        _fill_in(own, layers, payload)
        yield Frame(
            bytes(own),
            (memoryview(own), payload),
            start + len(payload),
            validated=True,
            gso_type=XEN_NETIF_GSO_TYPE_NONE,
        )


def _segment_header(header: bytes, layers: Layers, index: int, *, last: bool, done: int, length: int) -> bytearray:
    """The headers of segment `index`, which carries `length` bytes after `done` before it, without the TCP checksum."""
    own = bytearray(header)
    network, transport = layers.network, layers.transport
    total = layers.payload - network + length
    if layers.version == 4:
        _U16.pack_into(own, network + 2, total)
        (identification,) = _U16.unpack_from(own, network + 4)
        _U16.pack_into(own, network + 4, identification + index & 0xFFFF)
        own[network + 10 : network + 12] = b"\0\0"
        _U16.pack_into(own, network + 10, internet_checksum(bytes(own[network:transport])))
    else:
        _U16.pack_into(own, network + 4, total - 40)
    (sequence,) = _U32.unpack_from(own, transport + 4)
    _U32.pack_into(own, transport + 4, sequence + done & 0xFFFF_FFFF)
    # The end of the data, and the push, belong to the last; the answer to a congestion mark to the first.
    if not last:
        own[transport + 13] &= ~(_PSH | _FIN)
    if index:
        own[transport + 13] &= ~_CWR
    return own
