"""The virtio memory balloon: virtio 1.2 section 5.5.

The guest names pages that it does not use, and the host's memory behind them is given back; it comes back, zeroed, when
the guest touches the page again, so deflating needs nothing of the host.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import BALLOON_CONFIG, BALLOON_PAGE, BALLOON_STAT, BALLOON_STATS, bit
from bivisor.errors import UsageError
from bivisor.memory import GuestMemory
from bivisor.platform.virtio.device import Chain, VirtQueue, gather
from bivisor.platform.virtio.turns import TurnDevice

if TYPE_CHECKING:
    from bivisor.host.loop import Loop

QUEUE_SIZE = 128
STATS_QUEUE_SIZE = 4
INFLATEQ, DEFLATEQ, STATSQ = 0, 1, 2
PAGES_MAX = 256  # numbers that one buffer may hold, as many as Linux sends
STATS_MAX = 64
_PFN = struct.Struct("<I")

PunchHole = Callable[[int, int, int], None]
"""`punch_hole(fd, offset, length)`: give the space back; OSError where that fails."""


class VirtioBalloon(TurnDevice):
    """A balloon that gives pages of the guest's RAM back to the host with `punch_hole`.

    `on_actual(pages)` hears how large it is (in pages of 4 KiB); `stats` are the guest's own figures. With `reporting`
    the guest also tells of pages that just happen to be free.

    The reporting queue is the fifth by 5.5.2, but Linux counts only the queues that it uses. Hints are not offered, so
    every queue behind those for figures is the reporting queue.
    """

    device_id = abi.ID_BALLOON
    pci_class = 0x050000
    name = "virtio-balloon"
    turn_requests = 16

    def __init__(
        self,
        loop: Loop,
        punch_hole: PunchHole,
        *,
        reporting: bool = False,
        on_actual: Callable[[int], None] | None = None,
    ) -> None:
        features = bit(abi.BALLOON_F_STATS_VQ) | bit(abi.BALLOON_F_DEFLATE_ON_OOM)
        queues = [QUEUE_SIZE, QUEUE_SIZE, STATS_QUEUE_SIZE]
        if reporting:
            features |= bit(abi.BALLOON_F_PAGE_REPORTING)
            queues += [QUEUE_SIZE, QUEUE_SIZE]
        super().__init__(features, queues, BALLOON_CONFIG.pack(0, 0, 0, 0), loop)
        self._punch_hole = punch_hole
        self._on_actual = on_actual
        self._stats_chain: Chain | None = None
        self.stats: dict[str, int] = {}

    @property
    def target(self) -> int:
        """How many pages the guest is asked to give up."""
        return int(BALLOON_CONFIG.unpack(self.config)[0])

    @property
    def actual(self) -> int:
        """How many pages the guest says it has given up."""
        return int(BALLOON_CONFIG.unpack(self.config)[1])

    def set_target(self, pages: int) -> None:
        """Ask the guest to give up `pages` pages of 4 KiB in all."""
        if not 0 <= pages < 1 << 32:
            raise UsageError(f"a balloon of {pages} pages is not possible")
        self.change_config(0, "<I", pages)

    def request_stats(self) -> None:
        """Ask the guest for new figures (5.5.6.3); they are in `stats` when it has answered."""
        if self._stats_chain is not None and self.active:
            queue = self.queues[STATSQ]
            chain, self._stats_chain = self._stats_chain, None
            queue.push(chain)
            self.finish(queue)

    def writable_config(self) -> range:
        """The driver writes `actual`."""
        return range(4, 8)

    def config_written(self, offset: int, size: int) -> None:
        """See `VirtioDevice.config_written`."""
        if self._on_actual is not None:
            self._on_actual(self.actual)

    def notify(self, index: int) -> None:
        """Pages for the host, pages for the guest, figures, or reports of free pages."""
        if index != STATSQ or not self.has(abi.BALLOON_F_STATS_VQ):
            super().notify(index)
        elif self.active:
            self._take_stats(self.queues[index])

    def serve(self, queue: VirtQueue, chain: Chain) -> int:
        """See `TurnDevice.serve`."""
        if queue is self.queues[INFLATEQ]:
            self._give_back(_runs(_pages(chain)))
        elif queue is not self.queues[DEFLATEQ]:
            self._give_back(chain.spans)
        queue.push(chain)
        return 0

    def _take_stats(self, queue: VirtQueue) -> None:
        """5.5.6.3: the device keeps the buffer until it wants new figures."""
        for _ in range(queue.size):
            chain = queue.pop()
            if chain is None:
                if queue.listen():
                    continue
                break
            if self._stats_chain is not None:  # the driver sends one at a time
                queue.push(self._stats_chain)
            self._stats_chain = chain
            raw = gather(chain.readable, STATS_MAX * BALLOON_STAT.size)
            raw = raw[: len(raw) // BALLOON_STAT.size * BALLOON_STAT.size]
            self.stats = {BALLOON_STATS[t]: v for t, v in BALLOON_STAT.iter_unpack(raw) if t < len(BALLOON_STATS)}
        self.finish(queue)

    def _give_back(self, ranges: Iterable[tuple[int, int]]) -> None:
        for gpa, length in ranges:
            # Only whole pages of RAM: a page of firmware or of another region is not the guest's to give away.
            first, last = -(-gpa // BALLOON_PAGE) * BALLOON_PAGE, (gpa + length) // BALLOON_PAGE * BALLOON_PAGE
            for slot_gpa, offset, size in _ram(self.memory):
                start, end = max(first, slot_gpa), min(last, slot_gpa + size)
                if start < end:
                    try:
                        self._punch_hole(self.memory.ram.fd, offset + start - slot_gpa, end - start)
                    except OSError:
                        continue
                    self.memory.written(start, end - start)

    def reset(self) -> None:
        """See `VirtioDevice.reset`."""
        self._stats_chain = None
        self.stats = {}
        struct.pack_into("<I", self.config, 4, 0)
        super().reset()


def _ram(memory: GuestMemory) -> Iterator[tuple[int, int, int]]:
    return ((slot.gpa, slot.offset, slot.size) for slot in memory.slots if slot.region is memory.ram)


def _pages(chain: Chain) -> list[int]:
    raw = gather(chain.readable, PAGES_MAX * _PFN.size)
    return [pfn for (pfn,) in _PFN.iter_unpack(raw[: len(raw) // 4 * 4])]


def _runs(pages: list[int]) -> Iterator[tuple[int, int]]:
    """(address, length) of neighbouring pages together: one call for each run, however they are ordered."""
    start = end = -1
    for pfn in sorted(set(pages)):
        if pfn != end:
            if end > start:
                yield start * BALLOON_PAGE, (end - start) * BALLOON_PAGE
            start = pfn
        end = pfn + 1
    if end > start:
        yield start * BALLOON_PAGE, (end - start) * BALLOON_PAGE
