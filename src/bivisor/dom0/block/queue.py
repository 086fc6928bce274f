"""One ring of a disk: takes requests, carries them out, and answers in the order in which they were asked.

The order is what makes a killed back-end's successor possible (see `dom0/xenbus/ring.py`): what the ring shows as not
answered is carried out once more, and every request of a disk can be: it leaves the same behind the second time, and
the front-end has not been told yet that it may go on. So nothing need be kept outside of the shared page.

Reads and writes are done at once, a turn is bounded, and what may take long (a flush, a discard) is done beside the
loop, while later requests go on and their answers wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from bivisor.abi.xen.blkif import (
    MAX_SEGMENTS_PER_REQUEST,
    SECTOR,
    SEGMENT,
    SEGMENTS_PER_INDIRECT_PAGE,
    BlkifOp,
    BlkifRsp,
    Layout,
)
from bivisor.dom0.block.grants import Pages
from bivisor.dom0.block.image import Image
from bivisor.dom0.block.watched import describe, op_name
from bivisor.dom0.xenbus.ring import BackRing, RingError
from bivisor.dom0.xenbus.watched import RingPlace, WatchedRing
from bivisor.host.loop import Loop
from bivisor.memory import PAGE
from bivisor.xen.errors import GrantError
from bivisor.xen.maptrack import Mapping

TURN_REQUESTS = 64
TURN_BYTES = 8 << 20
_LAST_SECTOR = PAGE // SECTOR - 1

Segments = Sequence[tuple[int, int, int]]
"""(gref, first_sect, last_sect) of each page of a request."""


class _Invalid(Exception):
    """A request that cannot be carried out as it is written."""


class _Answer:
    """The answer to a request that is under way, or waits for one that is."""

    __slots__ = ("id", "operation", "status")

    def __init__(self, id_: int, operation: int, status: int | None) -> None:
        self.id = id_
        self.operation = operation
        self.status = status


class Queue:
    """The requests of one ring for `image`. `notify` signals the front-end; `broken` hears of a ring without sense.

    `beside` is a thread for what takes long. `indirect_segments` is the most that one request may have.
    """

    def __init__(
        self,
        ring: BackRing,
        layout: Layout,
        image: Image,
        pages: Pages,
        loop: Loop,
        beside: ThreadPoolExecutor,
        *,
        indirect_segments: int,
        notify: Callable[[], None],
        broken: Callable[[RingError], None],
    ) -> None:
        self._ring = ring
        self._layout = layout
        self._image = image
        self._pages = pages
        self._loop = loop
        self._beside = beside
        self._indirect_segments = indirect_segments
        self._notify = notify
        self._broken = broken
        self._sectors = image.size // SECTOR
        self.watch: WatchedRing | None = None
        """Somebody listens."""
        self._answers: deque[_Answer] = deque()
        self._under_way: set[Future[None]] = set()
        self._barrier = False
        self._scheduled = False
        self._closed = False
        self._operations: dict[int, Callable[[bytes], int]] = {
            BlkifOp.READ: self._direct,
            BlkifOp.WRITE: self._direct,
            BlkifOp.WRITE_BARRIER: self._direct,
            BlkifOp.FLUSH_DISKCACHE: self._flush,
            BlkifOp.DISCARD: self._discard,
            BlkifOp.INDIRECT: self._indirect,
        }

    def event(self) -> None:
        """The front-end has sent: carry out a turn's worth of requests, unless the next turn is to come anyway."""
        if not self._scheduled:
            self._turn()

    def _turn(self) -> None:
        self._scheduled = False
        if self._closed or self._barrier:
            return
        ring = self._ring
        left = TURN_BYTES
        try:
            for _ in range(TURN_REQUESTS):
                request = ring.take()
                if request is None:
                    self._push()
                    if not ring.rest():
                        return
                    continue
                left -= self._serve(request)
                if left <= 0 or self._barrier:
                    break
        except RingError as error:
            self._broken(error)
            return
        self._push()
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._barrier:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _serve(self, request: bytes) -> int:
        """Carry out one request; the bytes that it moved."""
        if self.watch is not None:
            wanted = self.watch.asked(request)
            if wanted is None:
                return 0
            request = wanted
        return self._carry_out(request)

    def place(self, device: str, domid: int) -> RingPlace:
        """The ring, for `watch_ring`."""
        return RingPlace(device, domid, lambda request: describe(self._layout, request), self._refuse, self._later)

    def _refuse(self, request: bytes, status: int | None) -> None:
        self._answer(request, BlkifRsp.ERROR if status is None else status)

    def _later(self, seconds: float, request: bytes) -> None:
        def now() -> None:
            if not self._closed:
                self._carry_out(request)
                self._push()

        self._loop.call_at(self._loop.now() + seconds, now)

    def _carry_out(self, request: bytes) -> int:
        operation = self._operations.get(request[0])
        if operation is None:
            self._answer(request, BlkifRsp.EOPNOTSUPP)
            return 0
        try:
            return operation(request)
        except (_Invalid, GrantError, OSError):
            self._answer(request, BlkifRsp.ERROR)
            return 0

    # ---------------------------------------------------------------- answers

    def _answered(self, request: bytes) -> tuple[int, int]:
        """(id, operation) of the response: an indirect request is answered as what it is, and Linux insists on it."""
        operation, _, id_, _ = self._layout.request.unpack_from(request)
        if operation == BlkifOp.INDIRECT:
            _, operation, _, id_, *_ = self._layout.indirect.unpack_from(request)
        return id_, operation

    def _answer(self, request: bytes, status: int) -> None:
        id_, operation = self._answered(request)
        if self._answers:
            self._answers.append(_Answer(id_, operation, status))
        else:
            self._respond(id_, operation, status)

    def _respond(self, id_: int, operation: int, status: int) -> None:
        self._ring.respond(self._layout.response.pack(id_, operation, status))
        if self.watch is not None:
            self.watch.answered(op_name(operation), id_, status)

    def _answer_after(self, request: bytes, work: Callable[[], None], then: Callable[[], None] = lambda: None) -> None:
        """Do `work` beside the loop, `then` in the loop, and answer the request when both are over."""
        id_, operation = self._answered(request)
        answer = _Answer(id_, operation, None)
        self._answers.append(answer)
        future = self._beside.submit(work)
        self._under_way.add(future)

        def over() -> None:
            self._under_way.discard(future)
            then()
            answer.status = BlkifRsp.ERROR if future.exception() else BlkifRsp.OKAY
            self._catch_up()

        future.add_done_callback(lambda _: self._loop.call_soon(lambda: None if self._closed else over()))

    def _catch_up(self) -> None:
        """Give the answers that are known, up to the first that is not."""
        answers = self._answers
        while answers and (status := answers[0].status) is not None:
            answer = answers.popleft()
            self._respond(answer.id, answer.operation, status)
        self._push()

    def _push(self) -> None:
        if self._ring.push():
            self._notify()

    # ---------------------------------------------------------------- operations

    def _direct(self, request: bytes) -> int:
        layout = self._layout.request
        operation, count, _, sector = layout.unpack_from(request)
        # More segments than fit would be read from the next request.
        if count > MAX_SEGMENTS_PER_REQUEST:
            raise _Invalid
        start = layout.size
        segments = list(SEGMENT.iter_unpack(memoryview(request)[start : start + SEGMENT.size * count]))
        if operation == BlkifOp.WRITE_BARRIER:
            return self._write_barrier(request, sector, segments)
        return self._transfer(request, operation, sector, segments)

    def _indirect(self, request: bytes) -> int:
        _, operation, count, _, sector, *refs = self._layout.indirect.unpack_from(request)
        # Barriers and the like do not come so; more segments than offered would outgrow the pages that list them.
        if operation not in (BlkifOp.READ, BlkifOp.WRITE) or not 0 < count <= self._indirect_segments:
            raise _Invalid
        del refs[-(-count // SEGMENTS_PER_INDIRECT_PAGE) :]
        mappings = self._pages.map(refs, readonly=True)
        try:
            # Copied before anything is looked at: the front-end may change the list meanwhile.
            listed = b"".join([mapping.view for mapping in mappings])[: SEGMENT.size * count]
        finally:
            self._pages.done(mappings, readonly=True)
        return self._transfer(request, operation, sector, list(SEGMENT.iter_unpack(listed)))

    def _transfer(self, request: bytes, operation: int, sector: int, segments: Segments) -> int:
        length = self._check(sector, segments, writing=operation != BlkifOp.READ)
        readonly = operation != BlkifOp.READ
        mappings = self._pages.map([segment[0] for segment in segments], readonly=readonly)
        try:
            move = self._image.writev if readonly else self._image.readv
            moved = move(_views(mappings, segments), sector * SECTOR)
        finally:
            self._pages.done(mappings, readonly=readonly)
        self._answer(request, BlkifRsp.OKAY if moved == length else BlkifRsp.ERROR)
        return length

    def _check(self, sector: int, segments: Segments, *, writing: bool) -> int:
        """The length of a transfer in bytes."""
        if writing and self._image.read_only:
            raise _Invalid
        sectors = 0
        for _, first, last in segments:
            # Beyond the page is memory that was not granted.
            if first > last or last > _LAST_SECTOR:
                raise _Invalid
            sectors += last - first + 1
        # A request that leaves the disk would reach what lies behind the image.
        if not sectors or sector + sectors > self._sectors:
            raise _Invalid
        return sectors * SECTOR

    def _flush(self, request: bytes) -> int:
        """As blkback does, segments of a flush are not looked at: there are none."""
        self._answer_after(request, self._image.flush)
        return 0

    def _discard(self, request: bytes) -> int:
        _, _, _, sector, count = self._layout.discard.unpack_from(request)
        if self._image.read_only or not count or sector + count > self._sectors:
            raise _Invalid
        self._answer_after(request, lambda: self._image.discard(sector * SECTOR, count * SECTOR))
        return 0

    def _write_barrier(self, request: bytes, sector: int, segments: Segments) -> int:
        """What was asked before is stable before it, it is stable before what is asked later: that waits meanwhile."""
        image = self._image
        if image.read_only:
            raise _Invalid
        length = self._check(sector, segments, writing=True) if segments else 0
        mappings = self._pages.map([segment[0] for segment in segments], readonly=True)

        def work() -> None:
            image.flush()
            if segments and image.writev(_views(mappings, segments), sector * SECTOR) != length:
                raise OSError
            image.flush()

        def then() -> None:
            self._pages.done(mappings, readonly=True)
            mappings.clear()
            self._barrier = False
            self._schedule()

        self._barrier = True
        self._held = mappings
        self._answer_after(request, work, then)
        return length

    def close(self) -> None:
        """Stop, and let go of the ring and of every page. Waits for what is under way; it is not answered."""
        if self._closed:
            return
        self._closed = True
        wait(self._under_way)
        if self._barrier:
            self._pages.done(self._held, readonly=True)
        self._pages.close()
        self._ring.release()


def _views(mappings: Sequence[Mapping], segments: Segments) -> list[memoryview]:
    return [
        mapping.view[first * SECTOR : (last + 1) * SECTOR]
        for mapping, (_, first, last) in zip(mappings, segments, strict=True)
    ]
