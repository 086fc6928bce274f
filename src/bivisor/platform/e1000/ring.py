"""The descriptors of a ring, and frames on their way into the buffers of the receive ring.

Specification: Intel 317453, section 3.2 (receive), 3.4 (transmit ring). A turn maps its ring once, and tells of what it
wrote there once. Addresses are the guest's.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from bivisor.errors import GuestAddressError
from bivisor.platform.e1000 import registers as r
from bivisor.platform.fwcfg import Memory

SHORTEST = 60
_ADDRESS = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Ring:
    """`count` descriptors at address `base`. Those from `head` to before `tail` are the card's."""

    base: int
    count: int
    head: int
    tail: int

    @property
    def held(self) -> int:
        """How many descriptors the card has."""
        return (self.tail - self.head) % self.count if self.head < self.count and self.tail < self.count else 0

    def view(self, memory: Memory) -> memoryview:
        """All descriptors. GuestAddressError."""
        return memory.view(self.base, self.count * r.DESCRIPTOR)

    def written(self, memory: Memory, head: int) -> None:
        """The card wrote into descriptors up to before `head`, which is its new one."""
        end = head if head >= self.head else self.count
        memory.written(self.base + self.head * r.DESCRIPTOR, (end - self.head) * r.DESCRIPTOR)
        if head < self.head:
            memory.written(self.base, head * r.DESCRIPTOR)


def store(memory: Memory, ring: Ring, arrived: deque[bytes], room: int, crc: int) -> tuple[int, int]:
    """Put frames into the guest's buffers of `room` bytes, each behind the other, as far as those suffice; `crc` bytes
    stand for the checksum behind each. What has no place but in a larger ring, or in memory that is not there, is lost.

    The new head, and the causes of interrupts.
    """
    head, causes = ring.head, 0
    try:
        descriptors = ring.view(memory)
    except GuestAddressError:
        arrived.clear()
        return head, r.INT_RXO
    while arrived:
        size = max(len(arrived[0]), SHORTEST) + crc
        pieces = -(-size // room)
        if pieces >= ring.count:
            causes |= r.INT_RXO
        elif pieces > (ring.tail - head) % ring.count:
            break
        else:
            try:
                head = _place(memory, ring, descriptors, head, arrived[0], size, room)
                causes |= r.INT_RXT0
            except GuestAddressError:
                causes |= r.INT_RXO
        arrived.popleft()
    ring.written(memory, head)
    return head, causes


def _place(memory: Memory, ring: Ring, descriptors: memoryview, head: int, frame: bytes, size: int, room: int) -> int:
    """Put a frame into the next buffers, with zeroes behind it up to `size`; the head after it."""
    for start in range(0, size, room):
        end = min(start + room, size)
        at = head * r.DESCRIPTOR
        (address,) = _ADDRESS.unpack_from(descriptors, at)
        buffer = memory.view(address, end - start)
        piece = frame[start:end]
        buffer[: len(piece)] = piece
        if len(piece) < end - start:
            buffer[len(piece) :] = bytes(end - start - len(piece))
        memory.written(address, end - start)
        status = r.DD | r.RX_EOP if end == size else r.DD
        descriptors[at : at + r.DESCRIPTOR] = r.RX_DESCRIPTOR.pack(address, end - start, 0, status, 0, 0)
        head = (head + 1) % ring.count
    return head
