"""The virtio entropy device: virtio 1.2 section 5.4."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from bivisor.abi.virtio import ID_ENTROPY
from bivisor.platform.virtio.device import Chain, VirtQueue
from bivisor.platform.virtio.turns import TurnDevice

if TYPE_CHECKING:
    from bivisor.host.loop import Loop

QUEUE_SIZE = 8
ANSWER_MAX = 4096


def host_entropy(view: memoryview) -> int:
    """Fill `view` from the host's generator, without waiting for it; how many bytes it gave."""
    try:
        data = os.getrandom(len(view), os.GRND_NONBLOCK)
    except BlockingIOError:  # the host has only just booted
        return 0
    view[: len(data)] = data
    return len(data)


class VirtioRng(TurnDevice):
    """Entropy for the guest from `source(view) -> bytes given`; at most 4 KiB at a time, as one answer may be short."""

    device_id = ID_ENTROPY
    pci_class = 0xFF0000
    name = "virtio-rng"
    turn_requests = 8

    def __init__(self, loop: Loop, source: Callable[[memoryview], int] = host_entropy) -> None:
        super().__init__(0, [QUEUE_SIZE], b"", loop)
        self._source = source

    def serve(self, queue: VirtQueue, chain: Chain) -> int:
        """See `TurnDevice.serve`: a guest that wants nothing but entropy gets it in between."""
        written = self._source(chain.writable[0][:ANSWER_MAX]) if chain.writable else 0
        queue.push(chain, written)
        return written
