"""A blkfront in Python: connects to a disk of the block back-end and has requests of its own making carried out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fake_domu import FakeDomU, FakeHost, FrontRing, Nodes

from bivisor.abi.xen import blkif
from bivisor.abi.xen.blkif import BlkifOp
from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.block.image import Offer
from bivisor.dom0.block.vbd import driver
from bivisor.dom0.xenbus.service import Service
from bivisor.host.disk import Disk
from bivisor.toolstack.xendevices import XenDevice

MIB = 1 << 20
Segment = tuple[int, int, int]


def open_disk(params: str, read_only: bool) -> Disk:
    return Disk(params, read_only=read_only)


def service(host: FakeHost, offer: Offer | None = None) -> Service:
    """The block back-end."""
    return Service(host.control, host.store, "vbd", driver(open_disk, offer))


def disk(domid: int, path: Path, mode: str = "w", **nodes: str | int) -> XenDevice:
    return XenDevice("vbd", domid, 51712, {"params": str(path), "mode": mode, **nodes})


@dataclass(frozen=True)
class Response:
    id: int
    operation: int
    status: int


class Queue:
    """One ring with its event channel."""

    def __init__(self, domu: FakeDomU, pages: int, layout: blkif.Layout) -> None:
        self.domu = domu
        self.layout = layout
        self.gfns = [domu.new_page() for _ in range(pages)]
        self.refs = [domu.grant(gfn) for gfn in self.gfns]
        self.ring = FrontRing(domu, self.gfns, layout.entry_size)
        self.port = domu.new_port()

    def put(self, request: bytes) -> None:
        self.ring.put(request)

    def push(self) -> None:
        if self.ring.push():
            self.domu.send(self.port)

    def responses(self) -> list[Response]:
        """What has been answered since the last time; the events that announce it have to be there."""
        found = []
        while True:
            while (data := self.ring.take(self.layout.response.size)) is not None:
                found.append(Response(*self.layout.response.unpack(data)))
            if not self.ring.rest():
                return found

    def close(self) -> None:
        self.ring.release()
        for ref in self.refs:
            self.domu.revoke(ref)
        for gfn in self.gfns:
            self.domu.free_page(gfn)
        self.domu.domain.events.close(self.port)


class BlkFront:
    """The front-end of `device`. What `connect` and the requests need of Dom0's side is done in `settle`."""

    def __init__(self, domu: FakeDomU, device: XenDevice, protocol: str = "x86_64-abi") -> None:
        self.domu = domu
        self.host = domu.host
        self.nodes = Nodes(domu, device)
        self.protocol = protocol
        self.layout = blkif.PROTOCOLS[protocol]
        self.queues: list[Queue] = []
        self._ids = itertools.count(1 << 40)

    def initialise(self, *, queues: int = 1, order: int | None = None, persistent: bool = False) -> None:
        """talk_to_blkback"""
        pages = 1 << (order or 0)
        self.queues = [Queue(self.domu, pages, self.layout) for _ in range(queues)]
        write = self.nodes.write
        if queues > 1:
            write(multi_queue_num_queues=queues)
        if order is not None:
            write(ring_page_order=order)
        for index, queue in enumerate(self.queues):
            prefix = f"queue-{index}__" if queues > 1 else ""
            if order is None:
                write(**{f"{prefix}ring_ref": queue.refs[0]})
            else:
                for page, ref in enumerate(queue.refs):
                    write(**{f"{prefix}ring_ref{page}": ref})
            write(**{f"{prefix}event_channel": queue.port})
        write(protocol=self.protocol, feature_persistent=int(persistent))
        self.nodes.switch(XenbusState.INITIALISED)
        self.host.settle()

    def connect(self, *, queues: int = 1, order: int | None = None, persistent: bool = False) -> None:
        """Until both ends are connected."""
        self.initialise(queues=queues, order=order, persistent=persistent)
        assert self.nodes.state is XenbusState.CONNECTED, self.nodes.error()
        self.nodes.switch(XenbusState.CONNECTED)
        self.host.settle()

    def close(self) -> None:
        """blkfront_closing, blkif_free"""
        for state in (XenbusState.CLOSING, XenbusState.CLOSED):
            self.nodes.switch(state)
            self.host.settle()
        for queue in self.queues:
            queue.close()
        self.queues.clear()

    def transfer(self, operation: int, sector: int, segments: Sequence[Segment], count: int | None = None) -> bytes:
        """A request with its segments in the entry. `count`: what it says of their number, if that is a lie."""
        count = len(segments) if count is None else count
        head = self.layout.request.pack(operation, count, next(self._ids), sector)
        return head + b"".join(blkif.SEGMENT.pack(*segment) for segment in segments)

    def indirect(self, operation: int, sector: int, refs: Sequence[int], count: int) -> bytes:
        padded = [*refs, *[0] * (blkif.MAX_INDIRECT_PAGES_PER_REQUEST - len(refs))]
        return self.layout.indirect.pack(BlkifOp.INDIRECT, operation, count, next(self._ids), sector, *padded)

    def discard(self, sector: int, count: int) -> bytes:
        return self.layout.discard.pack(BlkifOp.DISCARD, 0, next(self._ids), sector, count)

    def flush(self) -> bytes:
        return self.layout.request.pack(BlkifOp.FLUSH_DISKCACHE, 0, next(self._ids), 0)

    def ask(self, *requests: bytes, queue: int = 0) -> list[int]:
        """Have requests carried out; their statuses. They are answered in order, and an event says so."""
        asked = self.queues[queue]
        asked.domu.take_event(asked.port)
        for request in requests:
            asked.put(request)
        asked.push()
        found: list[Response] = []
        while len(found) < len(requests):
            self.host.settle()
            if asked.domu.take_event(asked.port):
                found += asked.responses()
        ids = [self.layout.request.unpack_from(request)[2] for request in requests]
        assert [response.id for response in found] == ids
        # an indirect request is answered as what it is: Linux gives a disk up that does otherwise
        operations = [request[request[0] == BlkifOp.INDIRECT] for request in requests]
        assert [response.operation for response in found] == operations
        return [response.status for response in found]
