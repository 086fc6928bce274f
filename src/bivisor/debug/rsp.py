"""The frames of gdb's remote serial protocol (GDB manual, appendix E.1 "Overview" and E.9 "Packet acknowledgment")."""

from __future__ import annotations

from collections.abc import Iterator

BREAK = b"\x03"
ACK, NAK = b"+", b"-"
_LONGEST = 1 << 20
_ESCAPED = frozenset(b"#$}*")


class Framing:
    """Finds packets in what gdb sends. `acks` is False once both ends have agreed to do without."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.acks = True

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """The contents of each packet that is complete now; `BREAK` for Ctrl-C, None for a packet that came broken."""
        self._buffer += data
        while self._buffer:
            first = self._buffer[0]
            if first == 3:
                del self._buffer[0]
                yield BREAK
            elif first != ord("$"):  # an acknowledgment, or noise between packets
                del self._buffer[0]
            else:
                end = self._buffer.find(b"#")
                if end < 0 or len(self._buffer) < end + 3:
                    if len(self._buffer) > _LONGEST:
                        self._buffer.clear()
                    return
                body, check = bytes(self._buffer[1:end]), bytes(self._buffer[end + 1 : end + 3])
                del self._buffer[: end + 3]
                yield unescape(body) if check.lower() == checksum(body) else None


def checksum(body: bytes) -> bytes:
    """The two digits behind a packet's '#'."""
    return b"%02x" % (sum(body) & 0xFF)


def frame(body: bytes) -> bytes:
    """`body` as a packet, escaped where it must be."""
    if not _ESCAPED.isdisjoint(body):
        body = b"".join(b"}%c" % (byte ^ 0x20) if byte in _ESCAPED else b"%c" % byte for byte in body)
    return b"$" + body + b"#" + checksum(body)


def unescape(body: bytes) -> bytes:
    """What a packet's contents mean: '}' and a byte stand for that byte with bit 5 turned over."""
    if b"}" not in body:
        return body
    found, escaped = bytearray(), False
    for byte in body:
        if escaped:
            found.append(byte ^ 0x20)
        elif byte != ord("}"):
            found.append(byte)
        escaped = byte == ord("}") and not escaped
    return bytes(found)
