"""What a front-end receives: the receive ring of xen/include/public/io/netif.h, "Guest receive".

A frame is copied from where it is to the pages that the front-end put into the ring. What it has no pages for
now waits as a copy of its own in a queue that has an end; after that frames are lost, and counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from bivisor.abi.xen import netif as abi
from bivisor.abi.xen.netif import RX_REQUEST, RX_RESPONSE, ExtraType, NetifStatus
from bivisor.dom0.control import Control
from bivisor.dom0.net.counters import Counters
from bivisor.dom0.net.frame import Frame
from bivisor.dom0.xenbus.ring import BackRing
from bivisor.memory import PAGE
from bivisor.xen.errors import GrantError

QUEUE_BYTES = 2 << 20
QUEUE_FRAMES = 1024
BUSY_BYTES, BUSY_FRAMES = QUEUE_BYTES * 3 // 4, QUEUE_FRAMES * 3 // 4
"""With so much waiting, others wait with theirs."""


class Receive:
    """The receive ring in `page` of domain `domid`. `scatter`: the front-end takes frames in several slots."""

    def __init__(
        self, control: Control, domid: int, page: memoryview, counters: Counters, *, scatter: bool = True
    ) -> None:
        self._control = control
        self._domid = domid
        self._ring = BackRing((page,), abi.RX_SLOT)
        self._limit = abi.XEN_NETIF_NR_SLOTS_MIN if scatter else 1
        self._counters = counters
        self._queue: deque[Frame] = deque()
        self._queued = 0

    @property
    def queued(self) -> int:
        """How many frames wait for the front-end."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether the queue is nearly full."""
        return self._queued >= BUSY_BYTES or len(self._queue) >= BUSY_FRAMES

    def deliver(self, frame: Frame) -> None:
        """Take a frame, for now or for later, or drop it. RingError: the front-end broke the ring."""
        if -(-frame.size // PAGE) > self._limit:
            self._counters.dropped += 1
        elif self._queue or not self._put(frame):
            self._keep(frame)

    def serve(self) -> None:
        """The front-end may have put pages into the ring: they are for frames that wait. RingError."""
        queue = self._queue
        while queue and self._put(queue[0]):
            self._queued -= queue.popleft().size

    def push(self) -> bool:
        """Make responses known; whether the front-end wants an event."""
        return self._ring.push()

    def release(self) -> None:
        """Let go of the ring and of what waits."""
        self._queue.clear()
        self._queued = 0
        self._ring.release()

    def _keep(self, frame: Frame) -> None:
        # A guest that takes nothing costs the host no more than this.
        if self._queued + frame.size > QUEUE_BYTES or len(self._queue) >= QUEUE_FRAMES:
            self._counters.dropped += 1
            return
        self._queue.append(frame.copy())
        self._queued += frame.size

    def _put(self, frame: Frame) -> bool:
        """Copy `frame` to the front-end; False where it has not given pages enough."""
        ring = self._ring
        count = -(-frame.size // PAGE)
        extra = frame.gso_type != abi.XEN_NETIF_GSO_TYPE_NONE
        if not ring.has(count + extra):
            return False
        requests = [RX_REQUEST.unpack(ring.take() or b"") for _ in range(count + extra)]
        ident = requests[0][0]
        if extra:
            del requests[1]  # the slot behind the first is for what is said of the whole frame
        copied = self._copy(frame, [gref for _, gref in requests])
        respond, pack = ring.respond, RX_RESPONSE.pack
        if not copied:
            self._counters.errors += 1
            for _ in range(count + extra):
                respond(pack(ident, 0, 0, NetifStatus.ERROR))
            return True
        flags = _flags(frame) | (abi.NETRXF_EXTRA_INFO if extra else 0)
        left = frame.size
        for index, (ident, _) in enumerate(requests):
            more = abi.NETRXF_MORE_DATA if left > PAGE else 0
            respond(pack(ident, 0, flags | more, min(left, PAGE)))
            if extra and not index:
                respond(abi.EXTRA_GSO.pack(ExtraType.GSO, 0, frame.gso_size, frame.gso_type, 0, 0))
            flags = 0
            left -= PAGE
        self._counters.frames += 1
        self._counters.bytes += frame.size
        return True

    def _copy(self, frame: Frame, refs: Sequence[int]) -> bool:
        """Fill the pages granted as `refs`, one after the other; False where one is not granted."""
        pieces = []
        done = 0
        for part in frame.parts:
            start, size = 0, len(part)
            while start < size:
                index, at = divmod(done, PAGE)
                length = min(size - start, PAGE - at)
                pieces.append((refs[index], at, part[start : start + length]))
                start += length
                done += length
        try:
            self._control.copy_to_grants(self._domid, pieces)
        except GrantError:
            return False
        return True


def _flags(frame: Frame) -> int:
    if frame.blank:
        return abi.NETRXF_CSUM_BLANK | abi.NETRXF_DATA_VALIDATED
    return abi.NETRXF_DATA_VALIDATED if frame.validated else 0
