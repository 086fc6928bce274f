"""The driver's side of virtio, for tests: a split virtqueue in guest memory, and a transport that records."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from bivisor.abi.virtio import DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, F_EVENT_IDX, F_INDIRECT_DESC, bit
from bivisor.memory import GuestMemory
from bivisor.platform.virtio.device import TRANSPORT_FEATURES, VirtioDevice
from bivisor.platform.virtio.queue import VirtQueue

TABLE_ENTRIES = 64
Part = tuple[int, int]


@dataclass
class RecordingTransport:
    """A transport that remembers what the device said."""

    interrupts: list[int] = field(default_factory=list)
    config_changes: int = 0
    reasons: list[str] = field(default_factory=list)

    def interrupt(self, queue: VirtQueue) -> None:
        self.interrupts.append(queue.index)

    def config_changed(self) -> None:
        self.config_changes += 1

    def needs_reset(self, reason: str) -> None:
        self.reasons.append(reason)


class DriverQueue:
    """What a driver keeps of one virtqueue. Rings live at `base`, indirect tables behind them."""

    def __init__(
        self, memory: GuestMemory, base: int, size: int, *, indirect: bool = True, event_index: bool = True
    ) -> None:
        self.memory = memory
        self.size = size
        self.desc = base
        self.avail = base + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.tables = (self.used + 6 + 8 * size + 15) & ~15
        self.indirect = indirect
        self.event_index = event_index
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.avail_idx = 0
        self.kicked_idx = 0
        self.used_idx = 0
        memory.view(base, self.tables - base)[:] = bytes(self.tables - base)

    def place(self, queue: VirtQueue) -> None:
        """Tell the device's queue where the rings are, and enable it."""
        queue.size = self.size
        queue.desc_address, queue.driver_address, queue.device_address = self.desc, self.avail, self.used
        queue.enable(indirect=self.indirect, event_index=self.event_index)

    def add(
        self, out: Sequence[tuple[int, int]], into: Sequence[tuple[int, int]], *, table: bool = False
    ) -> int | None:
        """Make a buffer of (address, length) pairs available; its head, or None where descriptors ran out."""
        parts = [(a, n, 0) for a, n in out] + [(a, n, DESC_F_WRITE) for a, n in into]
        if table and self.indirect:
            if not self.free:
                return None
            head = self.free.pop()
            at = self.tables + head * 16 * TABLE_ENTRIES
            for i, (address, length, flags) in enumerate(parts):
                more = DESC_F_NEXT if i + 1 < len(parts) else 0
                DESC.pack_into(self.memory.view(at + 16 * i, 16), 0, address, length, flags | more, i + 1)
            DESC.pack_into(self.memory.view(self.desc + 16 * head, 16), 0, at, 16 * len(parts), DESC_F_INDIRECT, 0)
            self.chains[head] = [head]
        else:
            if len(self.free) < len(parts):
                return None
            chain = [self.free.pop() for _ in parts]
            head = chain[0]
            for i, (address, length, flags) in enumerate(parts):
                more = i + 1 < len(parts)
                following = chain[i + 1] if more else 0
                flags |= DESC_F_NEXT if more else 0
                DESC.pack_into(self.memory.view(self.desc + 16 * chain[i], 16), 0, address, length, flags, following)
            self.chains[head] = chain
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        """Put `head` into the available ring, whatever it is."""
        struct.pack_into("<H", self.memory.view(self.avail + 4 + 2 * (self.avail_idx % self.size), 2), 0, head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        struct.pack_into("<H", self.memory.view(self.avail + 2, 2), 0, self.avail_idx)

    def wants_kick(self) -> bool:
        """Whether the device wants to be notified of what was added since the last call (2.7.10)."""
        old, self.kicked_idx = self.kicked_idx, self.avail_idx
        if self.event_index:
            event = self.memory.read_u16(self.used + 4 + 8 * self.size)
            return (self.avail_idx - event - 1) & 0xFFFF < (self.avail_idx - old) & 0xFFFF
        return self.avail_idx != old and not self.memory.read_u16(self.used) & 1

    def take(self) -> list[tuple[int, int]]:
        """The (head, written) of each buffer that came back since the last call; then asks for the next interrupt."""
        found = []
        while self.used_idx != self.memory.read_u16(self.used + 2):
            at = self.used + 4 + 8 * (self.used_idx % self.size)
            head, written = struct.unpack("<II", self.memory.read(at, 8))
            self.free.extend(self.chains.pop(head))
            found.append((head, written))
            self.used_idx = (self.used_idx + 1) & 0xFFFF
        if self.event_index:
            struct.pack_into("<H", self.memory.view(self.avail + 4 + 2 * self.size, 2), 0, self.used_idx)
        return found


def bring_up(
    device: VirtioDevice, memory: GuestMemory, *, base: int = 0x1000, size: int = 16, features: int | None = None
) -> tuple[RecordingTransport, list[DriverQueue]]:
    """Attach `device`, place its queues one behind the other from `base` on, and set DRIVER_OK."""
    transport = RecordingTransport()
    device.attach(memory, transport)
    device.features = device.offered if features is None else features | TRANSPORT_FEATURES
    queues = []
    for queue in device.queues:
        indirect, event_index = bool(device.features & bit(F_INDIRECT_DESC)), bool(device.features & bit(F_EVENT_IDX))
        driver = DriverQueue(memory, base, min(size, queue.max_size), indirect=indirect, event_index=event_index)
        driver.place(queue)
        queues.append(driver)
        base = (driver.tables + 16 * TABLE_ENTRIES * driver.size + 4095) & ~4095
    device.active = True
    device.activate()
    return transport, queues
