"""The front-end's half of a XenBus connection (xen/include/public/io/xenbus.h), for front-ends written in Python.

class Blk(Frontend):
    def initialise(self):           # the back-end waits: make rings, say where they are
        self.add_ring(64)
        return {"ring-ref": self.refs[0], "event-channel": self.port, "protocol": "x86_64-abi"}

    def event(self): ...            # the back-end has sent
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.xenbus.frontring import FrontRing
from bivisor.errors import GuestTimeout
from bivisor.toolstack import xendevices
from bivisor.toolstack.pydomain import PyDomain
from bivisor.toolstack.xendevices import XenDevice


class Frontend:
    """The front-end of `device`, whose nodes it makes, in `domain`. `open()` connects it; `with` closes it again.

    `initialise`, `connected`, `event` and `closed` are called in the loop's thread with the loop's lock held.
    """

    def __init__(self, domain: PyDomain, device: XenDevice) -> None:
        self.domain = domain
        self.device = device
        self.state = XenbusState.INITIALISING
        self.ring: FrontRing | None = None
        self.refs: list[int] = []
        self.port = -1
        self._gfns: list[int] = []
        self._views: list[memoryview] = []
        self._changed = threading.Event()
        self._watch = ""

    # ---------------------------------------------------------------- for subclasses

    def initialise(self) -> Mapping[str, str | int]:
        """The back-end has said what it offers: the nodes that it is to find before it connects."""
        return {}

    def connected(self) -> None:
        """Both ends are connected."""

    def event(self) -> None:
        """The back-end has sent."""

    def closed(self) -> None:
        """The connection is over; the ring goes when this returns."""

    def add_ring(self, entry_size: int, pages: int = 1) -> FrontRing:
        """Make `ring` in granted pages (`refs`) and an event channel (`port`)."""
        domain = self.domain
        self._gfns = [domain.new_page() for _ in range(pages)]
        self.refs = [domain.grant(gfn) for gfn in self._gfns]
        self._views = [domain.page(gfn) for gfn in self._gfns]
        self.ring = FrontRing(self._views, entry_size)
        self.port = domain.new_port(self.event)
        return self.ring

    def backend(self, name: str) -> str | None:
        """The back-end's node `name`."""
        return self.domain.host.store.get(f"{self.device.backend_path}/{name}")

    def write(self, nodes: Mapping[str, str | int]) -> None:
        """Write nodes of the front-end's."""
        for name, value in nodes.items():
            self.domain.host.store.write(f"{self.device.frontend_path}/{name}", value)

    def push(self) -> None:
        """Make requests known, and tell the back-end if it wants to be told."""
        if self.ring is not None and self.ring.push():
            self.domain.send(self.port)

    # ---------------------------------------------------------------- the handshake

    def open(self, timeout: float = xendevices.TIMEOUT_S) -> None:
        """Make the device and wait until both ends are connected. UsageError, GuestTimeout."""
        host = self.domain.host
        xendevices.attach(host.loop, host.store, self.device, timeout=timeout)
        with host.loop.lock:
            self._watch = host.store.watch(f"{self.device.backend_path}/state", lambda _: self._step())
        self._wait_for({XenbusState.CONNECTED}, timeout)

    def close(self, timeout: float = xendevices.TIMEOUT_S) -> None:
        """Close the connection in order, and take the device away. GuestTimeout where the back-end does not follow."""
        host = self.domain.host
        with host.loop.lock:
            xendevices.order_to_close(host.store, self.device)
        try:
            self._wait_for({XenbusState.CLOSED}, timeout)
        finally:
            with host.loop.lock:
                host.store.unwatch(f"{self.device.backend_path}/state", self._watch)
                xendevices.remove(host.store, self.device)
            host.settle()
            self._release()

    def _wait_for(self, wanted: set[XenbusState], timeout: float) -> None:
        deadline = self.domain.host.loop.now() + timeout
        while self.state not in wanted:
            self._changed.clear()
            left = deadline - self.domain.host.loop.now()
            if self.state not in wanted and not self._changed.wait(max(0.0, left)):
                raise GuestTimeout(f"{self.device.frontend_path} is {self.state.name} after {timeout:g} s")

    def _step(self) -> None:
        match XenbusState(int(self.backend("state") or 0)), self.state:
            case (XenbusState.INIT_WAIT | XenbusState.INITIALISED, XenbusState.INITIALISING):
                self.write(self.initialise())
                self._switch(XenbusState.INITIALISED)
            case XenbusState.CONNECTED, XenbusState.INITIALISED:
                self._switch(XenbusState.CONNECTED)
                self.connected()
            case ((XenbusState.CLOSING | XenbusState.CLOSED | XenbusState.UNKNOWN), state):
                if state is not XenbusState.CLOSED:
                    self.closed()
                    self._switch(XenbusState.CLOSED)

    def _switch(self, state: XenbusState) -> None:
        self.state = state
        self.write({"state": int(state)})
        self._changed.set()

    def _release(self) -> None:
        domain = self.domain
        if self.port >= 0:
            domain.close_port(self.port)
        if self.ring is not None:
            self.ring.release()
            self.ring = None
        for view in self._views:
            view.release()
        for ref in self.refs:
            domain.revoke(ref)
        for gfn in self._gfns:
            domain.free_page(gfn)
        self.refs, self._gfns, self._views, self.port = [], [], [], -1

    def __enter__(self) -> Frontend:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
