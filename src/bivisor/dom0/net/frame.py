"""An Ethernet frame on its way through a bridge, with what its sender left to others: checksum and segmentation.

A frame's bytes are in the buffer of whoever received it (an interface, a wire) while it is forwarded, and nobody keeps
them afterwards: who wants to copies. Its head is there as `bytes`, for decisions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from bivisor.abi.xen.netif import XEN_NETIF_GSO_TYPE_NONE, XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6

HEAD_MAX = 256
"""The bytes of a frame that are copied first: every header that offloads need fits (14 + 4 + 60 + 60, or IPv6 with
options)."""

ETH_HLEN = 14
TCP, UDP = 6, 17

_ETH_IPV4, _ETH_IPV6 = 0x0800, 0x86DD
_VLANS = (0x8100, 0x88A8)
_U16 = struct.Struct(">H")
_IPV4 = struct.Struct(">BxHxxHxB")  # version and header length, total length, flags and fragment offset, protocol
_IPV6 = struct.Struct(">4xHB")  # payload length, next header
_SKIPPED = (0, 43, 60)  # hop-by-hop options, routing, destination options (RFC 8200 section 4)
_CHECKSUM_AT = {TCP: 16, UDP: 6}


@dataclass(frozen=True, slots=True)
class Layers:
    """Where the headers of a TCP or UDP packet are in its frame, in bytes from the frame's start."""

    version: int
    """4 or 6"""
    network: int
    transport: int
    protocol: int
    payload: int
    """The first byte behind the TCP or UDP header."""
    end: int
    """The first byte behind the packet, as its IP header says; what follows is padding."""

    @property
    def checksum(self) -> int:
        """Where the checksum of TCP or UDP is."""
        return self.transport + _CHECKSUM_AT[self.protocol]


class Frame:
    """`size` bytes in `parts`, of which the first is `head`, at most HEAD_MAX bytes.

    `blank`: the TCP or UDP checksum covers only the pseudo header as yet. `validated`: somebody who is trusted has
    checked it. `gso_type` (XEN_NETIF_GSO_TYPE_*) and `gso_size`: it is to be cut into segments with so much payload.
    """

    __slots__ = ("blank", "gso_size", "gso_type", "head", "parts", "size", "validated")

    def __init__(
        self,
        head: bytes,
        parts: Sequence[memoryview],
        size: int,
        *,
        blank: bool = False,
        validated: bool = False,
        gso_type: int = XEN_NETIF_GSO_TYPE_NONE,
        gso_size: int = 0,
    ) -> None:
        self.head = head
        self.parts = parts
        self.size = size
        self.blank = blank
        self.validated = validated
        self.gso_type = gso_type
        self.gso_size = gso_size

    @classmethod
    def of(cls, data: bytes, **offloads: int) -> Frame:
        """A frame of its own bytes. `offloads` as for the class."""
        return cls(data[:HEAD_MAX], (memoryview(data),), len(data), **offloads)  # type: ignore[arg-type]

    def copy(self) -> Frame:
        """The same frame, with bytes of its own that may be kept."""
        data = b"".join(self.parts)
        return Frame(
            self.head,
            (memoryview(data),),
            self.size,
            blank=self.blank,
            validated=self.validated,
            gso_type=self.gso_type,
            gso_size=self.gso_size,
        )

    def layers(self) -> Layers | None:
        """Its headers, if it is a whole TCP or UDP packet in IPv4 or IPv6 and they are within the head."""
        return _layers(self.head, self.size)


def _layers(head: bytes, size: int) -> Layers | None:
    try:
        at = ETH_HLEN
        (kind,) = _U16.unpack_from(head, 12)
        if kind in _VLANS:
            (kind,) = _U16.unpack_from(head, 16)
            at += 4
        if kind == _ETH_IPV4:
            return _ipv4(head, at, size)
        if kind == _ETH_IPV6:
            return _ipv6(head, at, size)
    except (struct.error, IndexError):  # the head ends before the headers do
        pass
    return None


def _ipv4(head: bytes, at: int, size: int) -> Layers | None:
    first, total, fragment, protocol = _IPV4.unpack_from(head, at)
    length = 4 * (first & 15)
    # A fragment has no checksum of its own that could be missing.
    if first >> 4 != 4 or length < 20 or total < length or fragment & 0x3FFF:
        return None
    return _transport(head, size, 4, at, at + length, protocol, at + total)


def _ipv6(head: bytes, at: int, size: int) -> Layers | None:
    if head[at] >> 4 != 6:
        return None
    length, following = _IPV6.unpack_from(head, at)
    transport = at + 40
    while following in _SKIPPED:
        following, units = head[transport], head[transport + 1]
        transport += 8 * (units + 1)
    return _transport(head, size, 6, at, transport, following, at + 40 + length)


def _transport(
    head: bytes, size: int, version: int, network: int, transport: int, protocol: int, end: int
) -> Layers | None:
    if protocol == TCP:
        length = 4 * (head[transport + 12] >> 4)
        if length < 20:
            return None
    elif protocol == UDP:
        length = 8
    else:
        return None
    payload = transport + length
    # Every later step trusts these: the headers are in the head, and the packet is in the frame.
    if payload > len(head) or not payload <= end <= size:
        return None
    return Layers(version, network, transport, protocol, payload, end)


GSO_TYPES = {4: XEN_NETIF_GSO_TYPE_TCPV4, 6: XEN_NETIF_GSO_TYPE_TCPV6}
"""The segmentation that belongs to a version of IP."""
