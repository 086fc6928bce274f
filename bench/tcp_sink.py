"""The far end of a guest's wire: a peer that takes one TCP connection, throws the data away and counts it.

It speaks just enough of RFC 9293 for a wire that loses nothing: it acknowledges what came in order, and closes when the
guest does. Frames stand behind their length in four bytes, as in QEMU's `-netdev socket`.
"""

from __future__ import annotations

import socket
import struct
import threading
import time

_ETHERNET = struct.Struct(">6s6sH")
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_TCP = struct.Struct(">HHIIBBHHH")
_LENGTH = struct.Struct(">I")
_FIN, _SYN, _ACK = 1, 2, 16
_OPTIONS = bytes((2, 4, 1460 >> 8, 1460 & 255, 1, 3, 3, 7))  # MSS 1460, window scale 7


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class TcpSink:
    """Reads `end` in a thread of its own until the wire is cut. `size` is the data that came, up to time `last`."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._buffer = b""
        self._expected = 0
        self._sent = 1000
        self._is_open = False
        self.size = 0
        self.last = 0.0
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the guest to cut the wire."""
        self._thread.join()
        self._end.close()

    def _main(self) -> None:
        while data := self._end.recv(1 << 20):
            self._buffer += data
            at, answer = 0, None
            while at + 4 <= len(self._buffer):
                (length,) = _LENGTH.unpack_from(self._buffer, at)
                if at + 4 + length > len(self._buffer):
                    break
                answer = self._frame(self._buffer[at + 4 : at + 4 + length]) or answer
                at += 4 + length
            self._buffer = self._buffer[at:]
            if answer is not None:
                self._end.sendall(_LENGTH.pack(len(answer)) + answer)

    def _frame(self, frame: bytes) -> bytes | None:
        """Take a frame; the answer to it, which may be left out where another follows."""
        if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
            return None
        header = 14 + 4 * (frame[14] & 15)
        source, target, sequence, _, offset, flags, _, _, _ = _TCP.unpack_from(frame, header)
        size = int.from_bytes(frame[16:18], "big") - (header - 14) - 4 * (offset >> 4)
        if flags & _SYN:
            self._expected = sequence + 1 & 0xFFFF_FFFF
            self._is_open = True
            return self._answer(frame, source, target, _SYN | _ACK, _OPTIONS, self._sent - 1)
        if sequence != self._expected or not (size or flags & _FIN) or not self._is_open:
            return None
        self.last = time.perf_counter()
        self.size += size
        self._expected = self._expected + size + bool(flags & _FIN) & 0xFFFF_FFFF
        if flags & _FIN:
            self._is_open = False
            return self._answer(frame, source, target, _FIN | _ACK, b"", self._sent)
        return self._answer(frame, source, target, _ACK, b"", self._sent)

    def _answer(self, frame: bytes, source: int, target: int, flags: int, options: bytes, sequence: int) -> bytes:
        words = (5 + len(options) // 4) << 4
        tcp = _TCP.pack(target, source, sequence, self._expected, words, flags, 0xFFFF, 0, 0) + options
        addresses = frame[30:34] + frame[26:30]
        tcp_sum = checksum(addresses + struct.pack(">HH", socket.IPPROTO_TCP, len(tcp)) + tcp)
        tcp = tcp[:16] + tcp_sum.to_bytes(2, "big") + tcp[18:]
        ip = _IPV4.pack(0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0, addresses[:4], addresses[4:])
        ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
        return _ETHERNET.pack(frame[6:12], frame[:6], 0x0800) + ip + tcp
