"""A device that serves requests in turns: so many requests or bytes, and then the other devices of its machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import ClassVar

from bivisor.host.loop import Loop
from bivisor.platform.virtio.device import Chain, VirtioDevice, VirtQueue


class TurnDevice(VirtioDevice):
    """All its queues have requests that `serve` carries out."""

    turn_requests: ClassVar[int]
    turn_bytes: ClassVar[int] = sys.maxsize
    """For devices whose requests can be large."""

    def __init__(self, features: int, queue_sizes: Sequence[int], config: bytes, loop: Loop) -> None:
        super().__init__(features, queue_sizes, config)
        self._loop = loop

    def serve(self, queue: VirtQueue, chain: Chain) -> int:
        """Carry out one request; the bytes that it moved."""
        raise NotImplementedError

    def activate(self) -> None:
        """Serve what is already there."""
        for index in range(len(self.queues)):
            self.notify(index)

    def notify(self, index: int) -> None:
        """Serve requests of one queue, a turn's worth of them."""
        if not self.active:
            return
        queue = self.queues[index]
        queue.hush()
        left = self.turn_bytes
        for _ in range(self.turn_requests):
            chain = queue.pop()
            while chain is None:
                if not queue.listen():
                    self.finish(queue)
                    return
                chain = queue.pop()
                if queue.broken:
                    return
            left -= self.serve(queue, chain)
            if left <= 0 or not self.active:
                break
        self.finish(queue)
        if self.active:
            self._loop.call_soon(lambda: self.notify(index))
