"""What every virtio device is (virtio 1.2 section 2), apart from the transport that carries it.

A device owns its queues and its configuration space; the transport drives its life: `attach` once, then `activate`
(DRIVER_OK) and `reset` as the driver wishes, `close` at the end. All of it runs with the device lock held.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import ClassVar, Protocol

from bivisor.abi.virtio import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, bit
from bivisor.memory import GuestMemory
from bivisor.platform.virtio.queue import Chain, VirtQueue

TRANSPORT_FEATURES = bit(F_VERSION_1) | bit(F_INDIRECT_DESC) | bit(F_EVENT_IDX)


class Transport(Protocol):
    """What a device asks of its transport."""

    def interrupt(self, queue: VirtQueue) -> None:
        """Tell the driver that `queue` has used buffers."""

    def config_changed(self) -> None:
        """Tell the driver that the configuration space changed."""

    def needs_reset(self, reason: str) -> None:
        """The driver broke the rules: set DEVICE_NEEDS_RESET and tell it. Nothing is served until it resets."""


class VirtioDevice:
    """A device with `queue_sizes` queues that offers `features` (a mask), and whose configuration space is `config`.

    A device of one's own overrides `notify(index)`, and the rest where it has something to say.
    """

    device_id: ClassVar[int] = 0
    pci_class: ClassVar[int] = 0xFF0000
    name: ClassVar[str] = "virtio"

    def __init__(self, features: int, queue_sizes: Sequence[int], config: bytes = b"") -> None:
        self.offered = features | TRANSPORT_FEATURES
        self.queue_sizes = tuple(queue_sizes)
        self.config = bytearray(config)
        self.queues: list[VirtQueue] = []
        self.features = 0
        self.active = False
        self.broken = ""

    def attach(self, memory: GuestMemory, transport: Transport) -> None:
        """Called once by the transport: where the rings are, and whom to tell."""
        self.memory = memory
        self.transport = transport
        self.queues = [VirtQueue(i, size, memory, self._queue_broken) for i, size in enumerate(self.queue_sizes)]

    def has(self, feature: int) -> bool:
        """Whether the driver accepted feature bit `feature`."""
        return bool(self.features >> feature & 1)

    def activate(self) -> None:
        """The driver set DRIVER_OK: `features` are settled and enabled queues may be served."""

    def notify(self, index: int) -> None:
        """The driver made buffers available in queue `index`."""

    def describe(self, chain: Chain) -> tuple[str, int, int]:
        """What a buffer of the driver's asks for, for who looks at requests: a word, bytes, and a sector or -1."""
        return "buffer", chain.readable_size + chain.writable_size, -1

    def config_written(self, offset: int, size: int) -> None:
        """The driver wrote `size` bytes of `config` at `offset`; only what `writable_config` allows arrives."""

    def writable_config(self) -> range:
        """The offsets of `config` that the driver may write."""
        return range(0)

    def reset(self) -> None:
        """Forget all state of the driver, and every chain and view of guest memory."""
        self.active = False
        self.broken = ""
        self.features = 0
        for queue in self.queues:
            queue.reset()

    def close(self) -> None:
        """Give everything back; the device's back-end stays its owner's."""
        self.reset()

    def fail(self, reason: str) -> None:
        """The driver sent what cannot be answered (2.1.2): stop, and ask for a reset."""
        if not self.broken:
            self.broken = reason
            self.active = False
            self.transport.needs_reset(f"{self.name}: {reason}")

    def finish(self, queue: VirtQueue) -> None:
        """Publish the used buffers of `queue` and interrupt the driver if it wants to know."""
        if queue.flush():
            self.transport.interrupt(queue)

    def change_config(self, offset: int, layout: str, *values: int) -> None:
        """Change fields of `config` at `offset` (`layout` as in `struct`), and tell a driver that is there."""
        struct.pack_into(layout, self.config, offset, *values)
        if self.queues:
            self.transport.config_changed()

    def _queue_broken(self, queue: VirtQueue, reason: str) -> None:
        self.fail(reason)


def gather(views: Sequence[memoryview], limit: int) -> bytes:
    """The first `limit` bytes of `views` in one piece: 2.7.4 lets a driver cut a message wherever it likes."""
    if views and len(views[0]) >= limit:
        return bytes(views[0][:limit])
    out = bytearray()
    for view in views:
        out += view[: limit - len(out)]
        if len(out) == limit:
            break
    return bytes(out)


def scatter(views: Sequence[memoryview], data: bytes | bytearray | memoryview) -> int:
    """Copy `data` into `views` as far as it fits, and return how much did."""
    source = memoryview(data)
    at = 0
    for view in views:
        part = source[at : at + len(view)]
        if not part:
            break
        view[: len(part)] = part
        at += len(part)
    return at


def skip(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """`views` without their first `count` bytes."""
    for index, view in enumerate(views):
        if count < len(view):
            return [view[count:] if count else view, *views[index + 1 :]]
        count -= len(view)
    return []


__all__ = ["TRANSPORT_FEATURES", "Chain", "Transport", "VirtQueue", "VirtioDevice", "gather", "scatter", "skip"]
