"""The few messages of Perfetto's trace format that a trace needs, as bytes (protobuf.dev, "Encoding").

Field numbers are those of perfetto/protos/perfetto/trace/perfetto_trace.proto; a test reads what is written with that
definition itself. A library of 3 MB for this would be loaded by whoever only wants to see a line of text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

_CLOCK_MONOTONIC = 3
_SEQUENCE = 1
SLICE_BEGIN, SLICE_END, INSTANT = 1, 2, 3
_FIXED64 = struct.Struct("<Q")


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1  # negative numbers are their two's complement
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(tag: int, value: int) -> bytes:
    """A field of an integer, boolean or enumeration type."""
    return _varint(tag << 3) + _varint(value)


def fixed64(tag: int, value: int) -> bytes:
    """A field of type fixed64."""
    return _varint(tag << 3 | 1) + _FIXED64.pack(value)


def text(tag: int, value: str) -> bytes:
    """A field of type string; what is no Unicode becomes a replacement character."""
    return message(tag, value.encode("utf-8", "replace"))


def message(tag: int, value: bytes) -> bytes:
    """A field of type bytes, or one that is a message."""
    return _varint(tag << 3 | 2) + _varint(len(value)) + value


def packet(body: bytes) -> bytes:
    """TracePacket `body` as a field of Trace: a file is any number of them, one after the other."""
    return message(1, body + number(10, _SEQUENCE))


def first_packet(time: int) -> bytes:
    """What a trace begins with: its clock is CLOCK_MONOTONIC, from `time` (ns) on."""
    clock = message(1, number(1, _CLOCK_MONOTONIC) + number(2, time))
    boot = message(1, number(1, 6) + number(2, time))
    return packet(message(6, clock + boot + number(2, _CLOCK_MONOTONIC)) + number(13, 1))


@dataclass(frozen=True, slots=True)
class Track:
    """A line in Perfetto's window. A process has a `pid` and no `tid`, a thread both; any other track has a parent."""

    uuid: int
    name: str
    parent: int = 0
    pid: int = 0
    tid: int = 0

    def packet(self) -> bytes:
        """Its TrackDescriptor."""
        body = number(1, self.uuid)
        if self.tid:
            body += message(4, number(1, self.pid) + number(2, self.tid) + text(5, self.name))
        elif self.pid:
            body += message(3, number(1, self.pid) + text(6, self.name))
        else:
            body += text(2, self.name)
        if self.parent:
            body += number(5, self.parent)
        return packet(message(60, body))


@dataclass(slots=True)
class Mark:
    """A slice of `duration` ns on a track, or an instant (None). `flows` are the arrows that go through it, `ends`
    those that end there."""

    time: int
    track: int
    name: str
    category: str
    duration: int | None
    details: dict[str, int | str] = field(default_factory=dict)
    flows: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def packets(self) -> Iterable[tuple[int, int, bytes]]:
        """Its TrackEvents: (time, order among those of the same time, packet)."""
        body = number(11, self.track) + text(22, self.category) + text(23, self.name)
        for name, value in self.details.items():
            said = text(6, value) if isinstance(value, str) else number(4 if value < 1 << 63 else 3, value)
            body += message(4, text(10, name) + said)
        body += b"".join(fixed64(47, flow) for flow in self.flows)
        body += b"".join(fixed64(48, flow) for flow in self.ends)
        if self.duration is None:
            yield self.time, 1, self._packet(self.time, body + number(9, INSTANT))
            return
        length = max(1, self.duration)
        yield self.time, -length, self._packet(self.time, body + number(9, SLICE_BEGIN))
        end = self.time + length
        yield end, -(1 << 62), self._packet(end, number(11, self.track) + number(9, SLICE_END))

    @staticmethod
    def _packet(time: int, event: bytes) -> bytes:
        return packet(number(8, time) + number(58, _CLOCK_MONOTONIC) + message(11, event))


def trace_bytes(tracks: Iterable[Track], marks: Iterable[Mark]) -> bytes:
    """A whole trace file."""
    events = sorted((each for mark in marks for each in mark.packets()), key=lambda each: each[:2])
    start = events[0][0] if events else 0
    return b"".join((first_packet(start), *(track.packet() for track in tracks), *(each[2] for each in events)))
