"""The far end of the guest's wire: it takes one TCP connection after another, throws the data away and counts it.

It speaks just enough of RFC 9293 for a wire that loses nothing: it acknowledges what came in order, and closes when it
has what it wants, or when the guest does. It takes every offload that a wire can, and looks at headers alone, so that
what is measured is the guest's side. Frames are those of RFC 894 and 791; the header in front of each is virtio's
(virtio 1.2, section 5.1.6).
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

from bivisor.abi.virtio import NET_HDR
from bivisor.host.loop import Callback, Loop
from bivisor.platform.virtio.net import OFFLOADS
from bivisor.toolstack.compare.moment import NEVER, Moment

ADDRESS, MAC = "10.0.0.1", "52:54:00:00:00:01"
GUEST_ADDRESS, GUEST_MAC = "10.0.0.2", "52:54:00:12:34:56"
PORT = 9  # discard

_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_TCP = struct.Struct(">HHIIBBHHH")
_ETHERNET = 14
_LEAST = _ETHERNET + 20 + 20
_ETH_IPV4 = b"\x08\x00"
_FIN, _SYN, _ACK = 1, 2, 16
_OPTIONS = bytes((2, 4, 1460 >> 8, 1460 & 255, 1, 3, 3, 7))  # MSS 1460, window scale 7
_FIRST = 1000
_HEAD = 128
_MODULUS = 1 << 32
_NO_OFFLOAD = bytes(NET_HDR.size)


def checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Peer:
    """A `platform.virtio.net.NetBackend`. A connection is closed after `enough` bytes. `frames` counts what came,
    `size` the bytes of the last connection, which came between `first` and `last`. `on_edge` is
    called when the first and when `enough` of them have come."""

    has_header = True
    frame_max = 0
    offloads = OFFLOADS

    def __init__(self, loop: Loop, enough: int) -> None:
        self._loop = loop
        self._enough = enough
        self._answers: deque[bytes] = deque()
        self._readable: Callback | None = None
        self._writable: Callback | None = None
        self._expected = 0
        self._sent = _FIRST
        self._is_open = False
        self.frames = self.size = 0
        self.first = self.last = NEVER
        self.on_edge: Callable[[], None] = lambda: None

    # What a device asks of a wire

    def set_offloads(self, features: int) -> None:
        """See `NetBackend`: its answers need none."""

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """See `NetBackend`."""
        self._readable, self._writable = readable, writable
        if (readable is not None and self._answers) or writable is not None:
            self._loop.call_soon(self._wake)

    def send(self, views: Sequence[memoryview]) -> bool:
        """See `NetBackend`."""
        head = bytearray()
        for view in views:
            head += view[: _HEAD - len(head)]
            if len(head) == _HEAD:
                break
        answer = self._take(bytes(head[NET_HDR.size :]))
        if answer is not None:
            self._answers.append(_NO_OFFLOAD + answer)
            self._loop.call_soon(self._wake)
        return True

    def receive(self, views: Sequence[memoryview]) -> int:
        """See `NetBackend`."""
        if not self._answers:
            return 0
        frame = self._answers.popleft()
        at = 0
        for view in views:
            part = frame[at : at + len(view)]
            view[: len(part)] = part
            at += len(part)
        return len(frame)

    def close(self) -> None:
        """Hang up."""
        self._readable = self._writable = None
        self._answers.clear()

    def _wake(self) -> None:
        if self._readable is not None and self._answers:
            self._readable()
        writable, self._writable = self._writable, None
        if writable is not None:
            writable()

    # TCP

    def _take(self, frame: bytes) -> bytes | None:
        """Take a frame, of which `frame` is the head; the answer to it."""
        self.frames += 1
        if len(frame) < _LEAST or frame[12:14] != _ETH_IPV4 or frame[23] != socket.IPPROTO_TCP:
            return None
        start = _ETHERNET + 4 * (frame[_ETHERNET] & 15)
        if start + _TCP.size > len(frame):
            return None
        _, _, sequence, _, offset, flags, _, _, _ = _TCP.unpack_from(frame, start)
        size = int.from_bytes(frame[16:18], "big") - (start - _ETHERNET) - 4 * (offset >> 4)
        if flags & _SYN:
            self._expected = (sequence + 1) % _MODULUS
            self._is_open, self._sent, self.size = True, _FIRST, 0
            return self._answer(frame, start, _SYN | _ACK, _OPTIONS, sequence=_FIRST - 1)
        if not self._is_open or not (size or flags & _FIN):
            return None
        if sequence != self._expected:  # sent again: it has not heard of the last answer
            return self._answer(frame, start, _ACK)
        self._expected = (self._expected + size + bool(flags & _FIN)) % _MODULUS
        if size:
            self.last = Moment.now()
            if not self.size:
                self.first = self.last
                self.on_edge()
            self.size += size
        if flags & _FIN:
            self._is_open = False
        if (flags & _FIN or self.size >= self._enough) and self._sent == _FIRST:
            self._sent += 1
            self.on_edge()
            return self._answer(frame, start, _FIN | _ACK, sequence=_FIRST)
        return self._answer(frame, start, _ACK)

    def _answer(
        self, frame: bytes, start: int, flags: int, options: bytes = b"", *, sequence: int | None = None
    ) -> bytes:
        number = self._sent if sequence is None else sequence
        source, target = struct.unpack_from(">HH", frame, start)
        words = (5 + len(options) // 4) << 4
        tcp = _TCP.pack(target, source, number, self._expected, words, flags, 0xFFFF, 0, 0) + options
        addresses = frame[30:34] + frame[26:30]
        tcp_sum = checksum(addresses + struct.pack(">HH", socket.IPPROTO_TCP, len(tcp)) + tcp)
        tcp = tcp[:16] + tcp_sum.to_bytes(2, "big") + tcp[18:]
        ip = _IPV4.pack(0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0, addresses[:4], addresses[4:])
        ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
        return frame[6:12] + frame[:6] + _ETH_IPV4 + ip + tcp
