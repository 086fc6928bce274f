"""A virtual block device ("vbd"): opens its image, says what it can, and has a queue for each ring of the front-end.

The nodes are those of xen/include/public/io/blkif.h.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from bivisor.abi.xen.blkif import (
    PROTOCOLS,
    SECTOR,
    VDISK_CDROM,
    VDISK_READONLY,
    VDISK_REMOVABLE,
    Layout,
)
from bivisor.dom0.block.grants import Pages, Persistent, Transient
from bivisor.dom0.block.image import Closer, Image, Offer, OpenImage
from bivisor.dom0.block.queue import Queue
from bivisor.dom0.xenbus.link import Device
from bivisor.dom0.xenbus.node import Node, Refused
from bivisor.dom0.xenbus.ring import BackRing, RingError
from bivisor.dom0.xenbus.service import Driver
from bivisor.dom0.xenbus.watched import watch_ring
from bivisor.errors import BivisorError
from bivisor.xen.errors import GrantError, XenError
from bivisor.xen.maptrack import Mapping as Mapped


def driver(open_image: OpenImage, offer: Offer | None = None, closer: Closer | None = None) -> Driver:
    """The driver of type "vbd" for a `Service`. Images are closed by `closer`, for that may take as long as writing
    back all that was written; without it at once."""
    offered = offer or Offer()

    def make(node: Node, fail: Callable[[Refused], None]) -> Device:
        return Vbd(node, fail, open_image, offered, closer)

    return make


class Vbd:
    """See `xenbus.link.Device`."""

    def __init__(
        self,
        node: Node,
        fail: Callable[[Refused], None],
        open_image: OpenImage,
        offer: Offer,
        closer: Closer | None = None,
    ) -> None:
        self._node = node
        self._fail = fail
        self._open_image = open_image
        self._offered = offer
        self._image: Image | None = None
        self._closer = closer
        self._closing: Future[None] | None = None
        self._beside: ThreadPoolExecutor | None = None
        self.queues: list[Queue] = []
        self._undo = contextlib.ExitStack()

    def offer(self) -> Mapping[str, str | int]:
        """See `Device.offer`."""
        node, offered = self._node, self._offered
        params = node.get("params")
        if not params:
            raise Refused("the disk has no image: its node params is empty", errno.ENOENT)
        read_only = node.get("mode") != "w"
        try:
            image = self._image = self._open_image(params, read_only)
        except BivisorError as error:
            raise Refused(str(error), errno.ENOENT) from None
        nodes: dict[str, str | int] = {
            "feature-flush-cache": 1,
            "feature-barrier": 0 if image.read_only else 1,
            "feature-persistent": int(offered.persistent),
            "max-ring-page-order": offered.ring_page_order,
            "max-ring-pages": 1 << offered.ring_page_order,
            "multi-queue-max-queues": offered.queues,
            "hotplug-status": "connected",
        }
        if offered.indirect_segments:
            nodes["feature-max-indirect-segments"] = offered.indirect_segments
        if not image.read_only and node.get("discard-enable") != "0":
            nodes["feature-discard"] = 1
            nodes["discard-granularity"] = _physical(image)
            nodes["discard-alignment"] = 0
            nodes["discard-secure"] = 0
        return nodes

    def connect(self) -> Mapping[str, str | int]:
        """See `Device.connect`."""
        node, image = self._node, self._image
        assert image is not None
        count = node.front_number("multi-queue-num-queues", 1, limit=self._offered.queues + 1)
        if not count:
            raise Refused("the front-end wants no queue")
        layout = PROTOCOLS.get(node.front_get("protocol") or "x86_64-abi")
        if layout is None:
            raise Refused("the front-end's protocol is neither x86_64-abi nor x86_32-abi")
        pages = self._ring_pages()
        persistent = self._offered.persistent and bool(node.front_number("feature-persistent", 0))
        self._beside = ThreadPoolExecutor(1, f"bivisor-vbd-{node.domid}-{node.devid}")
        self._undo.callback(self._beside.shutdown)
        for index in range(count):
            self._connect_queue(image, layout, f"queue-{index}/" if count > 1 else "", pages, persistent)
        return {
            "sectors": image.size // SECTOR,
            "sector-size": SECTOR,
            "physical-sector-size": _physical(image),
            "info": self._info(image),
        }

    def _ring_pages(self) -> int | None:
        """How many pages each ring has, which are nodes ring-ref0 and so on; None for the one in node ring-ref."""
        node, order = self._node, self._offered.ring_page_order
        if node.front_get("ring-page-order") is not None:
            return 1 << node.front_number("ring-page-order", limit=order + 1)
        if node.front_get("num-ring-pages") is None:
            return None
        pages = node.front_number("num-ring-pages", limit=(1 << order) + 1)
        if not pages or pages & pages - 1:
            raise Refused(f"the front-end's ring of {pages} pages: it has to be a power of two")
        return pages

    def _connect_queue(self, image: Image, layout: Layout, prefix: str, pages: int | None, persistent: bool) -> None:
        node, control = self._node, self._node.control
        names = ["ring-ref"]
        if pages is not None and (pages > 1 or node.front_get(f"{prefix}ring-ref") is None):
            names = [f"ring-ref{index}" for index in range(pages)]
        refs = [node.front_number(prefix + name) for name in names]
        remote = node.front_number(f"{prefix}event-channel")
        try:
            mapped = control.map_grants(node.domid, refs)
        except GrantError as error:
            raise Refused(f"the front-end's ring cannot be mapped: {error}") from None
        self._undo.callback(control.unmap_grants, mapped)
        queue = self._queue(image, layout, mapped, persistent, lambda: control.notify(port))
        self._undo.callback(queue.close)
        self.queues.append(queue)
        try:
            port = control.bind(node.domid, remote, queue.event)
        except XenError as error:
            raise Refused(f"the front-end's event channel {remote} cannot be bound: {error}") from None
        self._undo.callback(control.unbind, port)
        place = queue.place(f"vbd/{node.domid}/{node.devid}{prefix and '/' + prefix.rstrip('/')}", node.domid)
        place.port = port
        site = watch_ring(control.events, place, partial(setattr, queue, "watch"))
        self._undo.callback(control.events.remove, site)
        # A back-end before this one may have been killed between an answer and its event.
        control.notify(port)

    def _queue(
        self, image: Image, layout: Layout, mapped: list[Mapped], persistent: bool, notify: Callable[[], None]
    ) -> Queue:
        node, control, offered = self._node, self._node.control, self._offered
        assert self._beside is not None
        try:
            ring = BackRing([mapping.view for mapping in mapped], layout.entry_size)
        except RingError as error:
            raise Refused(str(error)) from None
        pages: Pages = Transient(control, node.domid)
        if persistent:
            pages = Persistent(control, node.domid, offered.persistent_limit)
        return Queue(
            ring,
            layout,
            image,
            pages,
            control.loop,
            self._beside,
            indirect_segments=offered.indirect_segments,
            notify=notify,
            broken=lambda error: self._fail(Refused(str(error))),
        )

    def _info(self, image: Image) -> int:
        info = VDISK_READONLY if image.read_only else 0
        if self._node.get("device-type") == "cdrom":
            info |= VDISK_CDROM
        if self._node.get("removable") == "1":
            info |= VDISK_REMOVABLE
        return info

    def disconnect(self) -> None:
        """See `Device.disconnect`."""
        self.queues.clear()
        self._undo.close()

    def close(self, then: Callable[[], None]) -> bool:
        """See `Device.close`."""
        image, self._image = self._image, None
        if image is not None and self._closer is None:
            image.close()
        elif image is not None and self._closer is not None:
            loop = self._node.control.loop
            self._closing = self._closer(image.close)
            self._closing.add_done_callback(lambda _: loop.call_soon(then))
        return self._closing is None or self._closing.done()


def _physical(image: Image) -> int:
    """The physical sector: as the image's, if its size is a whole number of them, as blkif.h demands."""
    return image.physical_block if image.size % image.physical_block == 0 else SECTOR
