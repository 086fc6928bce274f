"""What the block back-end needs of a disk image, and what it offers to front-ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol


class Image(Protocol):
    """Where the sectors are. Offsets and lengths are in bytes and inside `size`; every method may raise OSError."""

    size: int
    read_only: bool
    physical_block: int

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill `views` from `offset` on; how many bytes that were."""

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        """Write `views` to `offset` on; how many bytes that were."""

    def flush(self) -> None:
        """Make all that was written stable. Called in another thread."""

    def discard(self, offset: int, length: int) -> None:
        """The bytes are not needed any more. Called in another thread."""

    def close(self) -> None:
        """Let go of the image."""


OpenImage = Callable[[str, bool], Image]
"""(params, read only): the image that the node "params" names. BivisorError where it cannot be had."""

Closer = Callable[[Callable[[], None]], Future[None]]
"""Has an image closed in another thread."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What front-ends are offered. One queue keeps `persistent_limit` grants mapped; 0 indirect segments are none."""

    persistent: bool = True
    persistent_limit: int = 1056
    indirect_segments: int = 256
    queues: int = 4
    ring_page_order: int = 4
