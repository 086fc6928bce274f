"""Segments of a TCP connection that come in a row, put together as one packet that is still to be cut.

To a guest it costs little more than one of them does.

Only for a wire whose far end is a process of this host that makes segments of a stream: the checksums that they come
with are not looked at.
"""

from __future__ import annotations

import struct

from bivisor.abi.xen.netif import XEN_NETIF_GSO_TYPE_TCPV4
from bivisor.dom0.net.frame import HEAD_MAX, TCP, Frame
from bivisor.platform.virtio.checksum import internet_checksum

_HEADERS = 54
"""Ethernet, IPv4 and TCP without options."""

_IP_MAX = 65535
_ETHERNET = 14
_ACK, _PSH = 0x10, 0x08
_FIELDS = struct.Struct(">12sHBxHHHxBH8s4sIIBBH")
_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")

Key = tuple[object, ...]


class Merger:
    """What has come of one connection so far."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._key: Key = ()
        self._next = 0
        self._size = 0
        self._count = 0
        self._is_closed = False

    def add(self, frame: memoryview) -> bool:
        """Take a copy of `frame`; False where it does not go with what is there, or with anything at all."""
        found = _parse(frame)
        if found is None:
            return False
        key, sequence, is_last = found
        payload = len(frame) - _HEADERS
        if not self._count:
            self._data[:] = frame
            self._key, self._size = key, payload
        else:
            fits = len(self._data) + payload - _ETHERNET <= _IP_MAX and payload <= self._size
            if self._is_closed or not fits or key != self._key or sequence != self._next:
                return False
            self._data += frame[_HEADERS:]
        self._next = sequence + payload & 0xFFFF_FFFF
        self._is_closed = is_last or payload < self._size
        self._count += 1
        return True

    def take(self) -> Frame | None:
        """The packet, which is good until the next is added; None where there is none."""
        count, self._count = self._count, 0
        if not count:
            return None
        data = self._data
        if count == 1:
            return Frame(bytes(data[:HEAD_MAX]), (memoryview(bytes(data)),), len(data))
        length = len(data) - _ETHERNET
        _U16.pack_into(data, 16, length)
        _U16.pack_into(data, 24, 0)
        _U16.pack_into(data, 24, internet_checksum(bytes(data[14:34])))
        pseudo = bytes(data[26:34]) + _U32.pack(TCP) + _U32.pack(length - 20)
        _U16.pack_into(data, 50, ~internet_checksum(pseudo) & 0xFFFF)
        if self._is_closed:
            data[47] |= _PSH
        whole = bytes(data)
        return Frame(
            whole[:HEAD_MAX],
            (memoryview(whole),),
            len(whole),
            blank=True,
            gso_type=XEN_NETIF_GSO_TYPE_TCPV4,
            gso_size=self._size,
        )


def _parse(frame: memoryview) -> tuple[Key, int, bool] | None:
    """What has to be the same in all segments, the sequence number, and whether it asks to be the last.

    None for what is not a segment of TCP with data and nothing special."""
    if len(frame) <= _HEADERS:
        return None
    macs, kind, version, length, _, fragment, protocol, _, hosts, ports, sequence, ack, offset, flags, window = (
        _FIELDS.unpack_from(frame)
    )
    if kind != 0x0800 or version != 0x45 or protocol != TCP or fragment & 0x3FFF or offset != 0x50:
        return None
    if length + _ETHERNET != len(frame) or flags & ~_PSH != _ACK:
        return None
    return (macs, hosts, ports, ack, window), sequence, bool(flags & _PSH)
