"""The virtio entropy device: virtio 1.2 section 5.4."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from bivisor.abi.virtio import ID_ENTROPY
from bivisor.platform.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from bivisor.host.loop import Loop

QUEUE_SIZE = 8
ANSWER_MAX = 4096
TURN_REQUESTS = 8


def host_entropy(view: memoryview) -> int:
    """Fill `view` from the host's generator, without waiting for it; how many bytes it gave."""
    try:
        data = os.getrandom(len(view), os.GRND_NONBLOCK)
    except BlockingIOError:  # the host has only just booted
        return 0
    view[: len(data)] = data
    return len(data)


class VirtioRng(VirtioDevice):
    """Entropy for the guest from `source(view) -> bytes given`; at most 4 KiB at a time, as one answer may be short."""

    device_id = ID_ENTROPY
    pci_class = 0xFF0000
    name = "virtio-rng"

    def __init__(self, loop: Loop, source: Callable[[memoryview], int] = host_entropy) -> None:
        super().__init__(0, [QUEUE_SIZE])
        self._loop = loop
        self._source = source

    def activate(self) -> None:
        """Serve what is already there."""
        self.notify(0)

    def notify(self, index: int) -> None:
        """Answer requests, a turn's worth of them: a guest that wants nothing but entropy gets it in between."""
        if not self.active:
            return
        queue = self.queues[0]
        queue.hush()
        for _ in range(TURN_REQUESTS):
            chain = queue.pop()
            if chain is None:
                if queue.listen():
                    continue
                self.finish(queue)
                return
            written = self._source(chain.writable[0][:ANSWER_MAX]) if chain.writable else 0
            queue.push(chain, written)
        self.finish(queue)
        self._loop.call_soon(lambda: self.notify(0))
