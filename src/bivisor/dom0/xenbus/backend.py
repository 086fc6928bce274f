"""A base for back-ends with one ring: it maps the ring and binds the event channel, what is behind is the subclass's.

A subclass says how long an entry is and what it offers, and answers requests:

    class Echo(RingBackend):
        entry_size = 64

        def request(self, request: bytes) -> bytes | None:
            return request

The front-end's nodes are `ring-ref` (or `ring-ref0` and on, with `ring-page-order`) and `event-channel`, as in
xen/include/public/io/blkif.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import ClassVar

from bivisor.dom0.xenbus.node import Node, Refused
from bivisor.dom0.xenbus.ring import BackRing, RingError
from bivisor.xen.errors import GrantError, XenError

_TURN = 64
_MAX_ORDER = 4


class RingBackend:
    """See `xenbus.link.Device`. Everything is called in the loop's thread with the loop's lock held.

    `pages` is the ring as the front-end has it, for whoever wants to write there what no ring would.
    """

    entry_size: ClassVar[int] = 64

    def __init__(self, node: Node, fail: Callable[[Refused], None]) -> None:
        self.node = node
        self.pages: list[memoryview] = []
        self.ring: BackRing | None = None
        self._fail = fail
        self._undo = ExitStack()
        self._scheduled = False

    # ---------------------------------------------------------------- for subclasses

    def features(self) -> Mapping[str, str | int]:
        """The nodes that the front-end reads before it connects."""
        return {}

    def details(self) -> Mapping[str, str | int]:
        """The nodes that the front-end reads when it is connected."""
        return {}

    def request(self, request: bytes) -> bytes | None:
        """The response to a request, which is a copy; None for none. Refused where the front-end is to be let go."""
        raise NotImplementedError

    def push(self) -> None:
        """Make responses known, and tell the front-end if it wants to be told."""
        if self.ring is not None and self.ring.push():
            self.notify()

    def notify(self) -> None:
        """Tell the front-end."""
        self.node.control.notify(self._port)

    # ---------------------------------------------------------------- xenbus.link.Device

    def offer(self) -> Mapping[str, str | int]:
        """See `Device.offer`."""
        return {"max-ring-page-order": _MAX_ORDER, **self.features()}

    def connect(self) -> Mapping[str, str | int]:
        """See `Device.connect`."""
        node, control = self.node, self.node.control
        names = ["ring-ref"]
        if node.front_get("ring-ref") is None:
            order = node.front_number("ring-page-order", limit=_MAX_ORDER + 1)
            names = [f"ring-ref{index}" for index in range(1 << order)]
        refs = [node.front_number(name) for name in names]
        remote = node.front_number("event-channel")
        try:
            mapped = control.map_grants(node.domid, refs)
            self._undo.callback(control.unmap_grants, mapped)
            self.pages = [mapping.view for mapping in mapped]
            self.ring = BackRing(self.pages, self.entry_size)
            self._undo.callback(self.ring.release)
            self._port = control.bind(node.domid, remote, self._event)
        except (GrantError, RingError, XenError) as error:
            raise Refused(f"the front-end's ring cannot be used: {error}") from None
        self._undo.callback(control.unbind, self._port)
        self._event()
        return self.details()

    def disconnect(self) -> None:
        """See `Device.disconnect`."""
        self.ring = None
        self.pages = []
        self._undo.close()

    def close(self, then: Callable[[], None]) -> bool:
        """See `Device.close`."""
        return True

    def _event(self) -> None:
        ring = self.ring
        if ring is None:
            return
        try:
            for _ in range(_TURN):
                request = ring.take()
                if request is None:
                    self.push()
                    if not ring.rest():
                        return
                    continue
                response = self.request(request)
                if self.ring is not ring:
                    return
                if response is not None:
                    ring.respond(response)
        except RingError as error:
            self._fail(Refused(str(error)))
            return
        except Refused as error:
            self._fail(error)
            return
        self.push()
        if not self._scheduled:
            self._scheduled = True
            self.node.control.loop.call_soon(self._again)

    def _again(self) -> None:
        self._scheduled = False
        self._event()
