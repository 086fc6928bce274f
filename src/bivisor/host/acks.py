"""Repeated acknowledgements of TCP, thinned out for a peer that sends everything again for each of them.

passt does so: at a single acknowledgement that says what the one before said, it goes back and sends up to a window
again (Debian 12's release). A guest answers each segment that it has already with one more such acknowledgement
(RFC 9293, 3.10.7.4), so that a single lost segment can keep both busy with nothing else from then on.

What goes through here is what RFC 5681, 3.2, has a sender act on, the third repetition, and by RFC 6582, 3.2, not
before everything has been acknowledged that was on its way when segments were last sent again.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

from bivisor.host.loop import Clock

LONGEST = 90
"""An acknowledgement without data is not longer than that: Ethernet, IPv6, TCP with time stamps."""
FLOWS = 1024
PATIENCE_S = 1.0
"""After so long the same may be said again: it may be the answer to a question whether anybody is there."""

_REPEATS = 3
_TCP, _IPV4, _IPV6 = 6, 0x0800, 0x86DD
_SYN, _RST, _ACK = 2, 4, 16
_U32 = 0xFFFF_FFFF
_ETHERTYPE = struct.Struct(">H")
_V4 = struct.Struct(">BxH2xHxB2x4s4s2s2sIIBBH")
_V6 = struct.Struct(">B3xHBx16s16s2s2sIIBBH")
_AT = 14

Segment = tuple[tuple[bytes, bytes, bytes, bytes], int, int, int, int, int]
"""Addresses and ports, sequence number, acknowledgement, flags, window, bytes of data."""


class _Flow:
    __slots__ = ("recover", "repeats", "said", "said_at", "top")

    def __init__(self) -> None:
        self.said = (-1, -1, -1)
        self.said_at = 0.0
        self.repeats = 0
        self.top = self.recover = -1


class Thinner:
    """The connections of one guest."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._flows: OrderedDict[tuple[bytes, bytes, bytes, bytes], _Flow] = OrderedDict()

    def passes(self, frame: bytes) -> bool:
        """Whether the guest's `frame`, which has at most `LONGEST` bytes, is to be sent."""
        found = parse(frame)
        if found is None:
            return True
        key, sequence, ack, flags, window, size = found
        if flags & (_SYN | _RST):
            self._flows.pop(key, None)
            return True
        if size or flags != _ACK:
            return True
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow()
            if len(self._flows) > FLOWS:
                self._flows.popitem(last=False)
        return self._says(flow, (sequence, ack, window))

    def _says(self, flow: _Flow, said: tuple[int, int, int]) -> bool:
        now = self._clock.now()
        if said != flow.said or now - flow.said_at >= PATIENCE_S:
            flow.said, flow.repeats = said, 0
        else:
            flow.repeats += 1
            if flow.repeats != _REPEATS or not (flow.recover < 0 or _is_after(said[1], flow.recover)):
                return False
            flow.recover = flow.top
        flow.said_at = now
        return True

    def arrives(self, frame: memoryview) -> None:
        """What the other end sends to the guest."""
        found = parse(frame)
        if found is None or not found[5]:
            return
        (ours, theirs, our_port, their_port), start, _, _, _, size = found
        flow = self._flows.get((theirs, ours, their_port, our_port))
        if flow is None:
            return
        end = start + size & _U32
        if flow.top < 0:
            flow.top = end
            return
        if _is_after(flow.top, start):
            flow.recover = flow.top  # it has gone back by itself
        if _is_after(end, flow.top):
            flow.top = end


def _is_after(one: int, other: int) -> bool:
    """Whether sequence number `one` is behind `other` (RFC 9293, 3.4)."""
    return 0 < (one - other & _U32) < 1 << 31


def parse(frame: bytes | memoryview) -> Segment | None:
    """What is in a TCP segment without IP options, fragments and extension headers; None for anything else."""
    length = len(frame)
    if length < _AT + _V4.size:
        return None
    (kind,) = _ETHERTYPE.unpack_from(frame, 12)
    if kind == _IPV4:
        version, total, fragment, protocol, *fields = _V4.unpack_from(frame, _AT)
        is_plain, size = version == 0x45 and not fragment & 0x3FFF, total - 20
    elif kind == _IPV6 and length >= _AT + _V6.size:
        version, size, protocol, *fields = _V6.unpack_from(frame, _AT)
        is_plain = version >> 4 == 6
    else:
        return None
    source, target, source_port, target_port, sequence, ack, offset, flags, window = fields
    size -= (offset >> 4) * 4
    if not is_plain or protocol != _TCP or size < 0:
        return None
    return (source, target, source_port, target_port), sequence, ack, flags, window, size
