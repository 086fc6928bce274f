"""The device's side of a split virtqueue: virtio 1.2 section 2.7, with indirect descriptors and event index.

The ring is guest memory, so every value in it is hostile and is checked here, once; behind `pop()` a chain can be
trusted. A violation breaks the queue: it says so once through `on_broken`, and gives out nothing from then on.

Ring indices are read and written through 16-bit casts, each of which is a single access of the host: the other side may
run at the same moment. x86 keeps the order of stores; where a store must be visible before a later load, `_fence` is
used.
"""

from __future__ import annotations

from collections.abc import Callable

from bivisor.abi.virtio import (
    AVAIL_F_NO_INTERRUPT,
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    USED_F_NO_NOTIFY,
)
from bivisor.errors import GuestAddressError
from bivisor.memory import GuestMemory
from bivisor.memory.barrier import heavy_fence

CHAIN_BYTES_MAX = 1 << 32
"""2.7.5.1: a driver must not make a chain of more than 2^32 bytes in total."""


class Chain:
    """One buffer of the driver: views of guest memory that the device reads, and those that it writes, in order.

    `spans` are the guest-physical (address, length) pairs of `writable`, neighbours joined.
    """

    __slots__ = ("head", "readable", "spans", "writable", "writable_size")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.spans: list[tuple[int, int]] = []
        self.writable_size = 0

    @property
    def readable_size(self) -> int:
        """Bytes that the driver sent."""
        return sum(map(len, self.readable))


class _Violation(Exception):
    """What the driver did against section 2.7."""


class VirtQueue:
    """Virtqueue `index` with at most `max_size` descriptors.

    The transport fills in `size`, the three addresses and `vector` and then calls `enable()`. The device loops over
    `pop()` and `push()`, then calls `flush()`, which tells whether the driver wants to be interrupted.
    """

    def __init__(
        self, index: int, max_size: int, memory: GuestMemory, on_broken: Callable[[VirtQueue, str], None]
    ) -> None:
        self.index = index
        self.max_size = max_size
        self._memory = memory
        self._on_broken = on_broken
        self._fence = heavy_fence()  # for the guest too, whose own barrier `soft` leaves out
        self._views: list[memoryview] = []
        self.reset()

    def reset(self) -> None:
        """Back to the state after a device reset; gives back the views of the rings."""
        self.size = self.max_size
        self.vector = 0xFFFF
        self.desc_address = 0
        self.driver_address = 0
        self.device_address = 0
        self.enabled = False
        self.broken = ""
        self._next_avail = 0
        self._seen_avail = 0
        self._used_idx = 0
        self._flushed_idx = 0
        while self._views:  # casts before what they were cast from
            self._views.pop().release()

    def enable(self, *, indirect: bool, event_index: bool) -> None:
        """Take the rings over, as `queue_enable` asks. A ring that cannot be used breaks the queue."""
        size = self.size
        # A size that is no power of two makes the index arithmetic wrong, a larger one outgrows what was offered.
        if not 0 < size <= self.max_size or size & (size - 1):
            self._break(f"queue size {size} is not a power of two up to {self.max_size}")
            return
        # 2.7: a misaligned ring would turn the single accesses to its indices into torn ones.
        if self.desc_address & 15 or self.driver_address & 1 or self.device_address & 3:
            self._break("a ring is misaligned")
            return
        try:
            # Each ring has to be guest memory from its first to its last byte.
            desc = self._keep(self._memory.view(self.desc_address, 16 * size))
            avail = self._keep(self._memory.view(self.driver_address, 6 + 2 * size))
            used = self._keep(self._memory.view(self.device_address, 6 + 8 * size))
        except GuestAddressError as error:
            self._break(f"a ring is outside of memory: {error}")
            return
        self._desc = desc
        self._avail = self._keep(avail.cast("H"))  # flags, idx, ring[size], used_event
        self._used = self._keep(used.cast("H"))  # flags, idx, ring[size] of two u32, avail_event
        self._used_ring = self._keep(self._keep(used[4 : 4 + 8 * size]).cast("I"))
        self._mask = size - 1
        self._indirect = indirect
        self._event_index = event_index
        self.enabled = True

    def _keep(self, view: memoryview) -> memoryview:
        self._views.append(view)
        return view

    def pop(self) -> Chain | None:
        """The next buffer that the driver made available, or None: there is none, or the queue is broken."""
        at = self._next_avail
        if at == self._seen_avail and not self._look():
            return None
        try:
            chain = self._walk(self._avail[2 + (at & self._mask)])
        except _Violation as violation:
            self._break(str(violation))
            return None
        except GuestAddressError as error:
            # A device that followed such an address would read or write memory of the host.
            self._break(f"a descriptor is outside of memory: {error}")
            return None
        self._next_avail = (at + 1) & 0xFFFF
        return chain

    def unpop(self) -> None:
        """Leave the chain that `pop()` gave last in the ring: the device has no room for it yet."""
        self._next_avail = (self._next_avail - 1) & 0xFFFF

    def _look(self) -> bool:
        """Whether the driver has made more available than was seen so far."""
        if not self.enabled or self.broken:
            return False
        idx = self._avail[1]
        if idx == self._next_avail:
            return False
        # More outstanding buffers than descriptors: old entries would be served twice.
        if (idx - self._next_avail) & 0xFFFF > self.size:
            self._break(f"the available index jumped from {self._next_avail} to {idx}")
            return False
        self._seen_avail = idx
        return True

    def _walk(self, head: int) -> Chain:
        table = self._desc
        limit = self.size
        # An index past the table would read beyond the ring.
        if head >= limit:
            raise _Violation(f"descriptor {head} of {limit}")
        address, length, flags, following = DESC.unpack_from(table, head << 4)
        chain = Chain(head)
        budget = limit
        if flags & DESC_F_INDIRECT:
            table, limit = self._table(address, length, flags)
            budget = self.max_size
            address, length, flags, following = DESC.unpack_from(table, 0)
        view = self._memory.view
        readable, writable, spans = chain.readable, chain.writable, chain.spans
        end = -1
        total = written = 0
        while True:
            # An empty buffer carries nothing and would let a chain grow for free.
            if not length:
                raise _Violation("a descriptor has no length")
            # The same memory named again and again would keep the host copying for hours.
            total += length
            if total > CHAIN_BYTES_MAX:
                raise _Violation("a chain has more than 2^32 bytes")
            if flags & DESC_F_WRITE:
                writable.append(view(address, length))
                written += length
                if address == end:
                    start, before = spans[-1]
                    spans[-1] = (start, before + length)
                else:
                    spans.append((address, length))
                end = address + length
            else:
                # 2.7.4.2: all that is written follows all that is read; devices count on it.
                if written:
                    raise _Violation("a readable descriptor follows a writable one")
                readable.append(view(address, length))
            if not flags & DESC_F_NEXT:
                break
            # A chain that runs in a circle would never end.
            budget -= 1
            if not budget:
                raise _Violation("a chain is longer than the queue")
            if following >= limit:
                raise _Violation(f"descriptor {following} of {limit}")
            address, length, flags, following = DESC.unpack_from(table, following << 4)
            # 2.7.5.3.1: indirect tables do not nest, and none follows a plain descriptor: depth and work stay bounded.
            if flags & DESC_F_INDIRECT:
                raise _Violation("an indirect table inside a chain")
        chain.writable_size = written
        return chain

    def _table(self, address: int, length: int, flags: int) -> tuple[memoryview, int]:
        if not self._indirect:
            raise _Violation("an indirect table without VIRTIO_F_INDIRECT_DESC")
        if flags & DESC_F_NEXT:
            raise _Violation("an indirect table inside a chain")
        # A table that is no whole number of descriptors would be read past its end.
        if not length or length & 15:
            raise _Violation(f"an indirect table of {length} bytes")
        table = self._memory.view(address, length)
        if DESC.unpack_from(table, 0)[2] & DESC_F_INDIRECT:
            raise _Violation("an indirect table inside an indirect table")
        return table, length >> 4

    def push(self, chain: Chain, written: int = 0) -> None:
        """Give a chain back, of whose writable part the first `written` bytes are new. Published by `flush()`."""
        if self.broken or not self.enabled:
            return
        left = written
        for address, length in chain.spans:
            if left <= 0:
                break
            self._memory.written(address, min(length, left))
            left -= length
        at = (self._used_idx & self._mask) << 1
        ring = self._used_ring
        ring[at] = chain.head
        ring[at + 1] = written
        self._used_idx = (self._used_idx + 1) & 0xFFFF

    def flush(self) -> bool:
        """Publish what was pushed. True: the driver wants an interrupt for it (2.7.7 and 2.7.10)."""
        old, new = self._flushed_idx, self._used_idx
        if old == new or self.broken or not self.enabled:
            return False
        self._used[1] = new  # after the elements: the driver reads them as soon as it sees the index
        self._flushed_idx = new
        self._memory.written(self.device_address, 6 + 8 * self.size)
        self._fence()
        if self._event_index:
            event = self._avail[2 + self.size]
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._avail[0] & AVAIL_F_NO_INTERRUPT

    def hush(self) -> None:
        """The device is looking anyway: the driver need not notify."""
        if self.enabled and not self.broken and not self._event_index:
            self._used[0] = USED_F_NO_NOTIFY

    def listen(self) -> bool:
        """Ask for a notification of the next buffer. True: one is already there, so go on instead of waiting."""
        if not self.enabled or self.broken:
            return False
        if self._event_index:
            self._used[2 + 4 * self.size] = self._next_avail
        else:
            self._used[0] = 0
        self._fence()
        return self._next_avail != self._seen_avail or self._look()

    def _break(self, reason: str) -> None:
        self.broken = f"queue {self.index}: {reason}"
        self._seen_avail = self._next_avail
        self._on_broken(self, self.broken)
