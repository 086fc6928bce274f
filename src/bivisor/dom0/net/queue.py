"""One queue of a virtual interface: a pair of rings, and the event channel or channels that go with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from bivisor.dom0.net.counters import Counters
from bivisor.dom0.net.frame import Frame
from bivisor.dom0.net.receive import Receive
from bivisor.dom0.net.transmit import Transmit
from bivisor.dom0.net.watched import WatchedFrames, watch_frames
from bivisor.dom0.xenbus.node import Node, Refused
from bivisor.dom0.xenbus.ring import RingError
from bivisor.events import Site
from bivisor.xen.errors import GrantError, XenError
from bivisor.xen.maptrack import Mapping


class Interface(Protocol):
    """What a queue belongs to."""

    node: Node
    sent: Counters
    received: Counters

    def forward(self, frame: Frame) -> None:
        """A frame from the front-end; its bytes are good only until this returns."""

    def forwarded(self) -> None:
        """That were all frames for now."""

    @property
    def held_up(self) -> bool:
        """Whether to wait with frames: `Queue.resume` says for how long."""

    def relieved(self) -> None:
        """Nothing waits for the front-end any more in one queue."""

    def broken(self, error: RingError) -> None:
        """The front-end broke a ring: `close` is called before this returns."""


class Queue:
    """The queue whose nodes are below `path` of the front-end's directory. Refused where it cannot be used."""

    def __init__(self, vif: Interface, path: str, *, scatter: bool) -> None:
        self._vif = vif
        self._control = vif.node.control
        self._mapped: list[Mapping] = []
        self._ports: list[int] = []
        self._transmit: Transmit | None = None
        self._receive: Receive | None = None
        self._scheduled = self._held_up = False
        self._site: Site | None = None
        self.watch: WatchedFrames | None = None
        """Somebody listens."""
        try:
            self._open(path, scatter)
        except (GrantError, XenError, RingError) as error:
            self.close()
            raise Refused(f"the front-end's rings or event channels {path or '.'}: {error}") from None
        except Refused:
            self.close()
            raise

    def _open(self, path: str, scatter: bool) -> None:
        vif, control = self._vif, self._control
        node = vif.node
        refs = [node.front_number(f"{path}{way}-ring-ref") for way in ("tx", "rx")]
        self._mapped = control.map_grants(node.domid, refs)
        sent, received = (mapping.view for mapping in self._mapped)
        self._transmit = Transmit(control, node.domid, sent, self._forward, vif.sent)
        self._receive = Receive(control, node.domid, received, vif.received, scatter=scatter)
        handlers: dict[str, Callable[[], None]] = {"event-channel": self._event}
        if node.front_get(f"{path}event-channel-tx") is not None:
            handlers = {"event-channel-tx": self._serve, "event-channel-rx": self._supplied}
        for name, handler in handlers.items():
            self._ports.append(control.bind(node.domid, node.front_number(f"{path}{name}"), handler))
        device = f"vif/{node.domid}/{node.devid}{path and '/' + path.rstrip('/')}"
        install = partial(setattr, self, "watch")
        self._site = watch_frames(control.events, device, node.domid, self._ports[0], control.loop, install)

    def _forward(self, frame: Frame) -> None:
        if self.watch is None:
            self._vif.forward(frame)
        else:
            self.watch.frame("tx", frame, self._vif.forward)

    def deliver(self, frame: Frame) -> None:
        """Take a frame for the front-end, or drop it."""
        if self.watch is None:
            self._deliver(frame)
        else:
            self.watch.frame("rx", frame, self._deliver_late)

    def _deliver_late(self, frame: Frame) -> None:
        self._deliver(frame)
        self.flush()

    def _deliver(self, frame: Frame) -> None:
        if self._receive is not None:
            try:
                self._receive.deliver(frame)
            except RingError as error:
                self._vif.broken(error)

    @property
    def busy(self) -> bool:
        """Whether many frames wait for the front-end."""
        return self._receive is not None and self._receive.busy

    def resume(self) -> None:
        """Go on with what was held up."""
        if self._held_up:
            self._held_up = False
            self._schedule()

    def flush(self) -> None:
        """Make known what was delivered."""
        if self._receive is not None and self._receive.push():
            self._control.notify(self._ports[-1])

    def _event(self) -> None:
        self._supplied()
        self._serve()

    def _supplied(self) -> None:
        """There may be new pages for frames."""
        if self._receive is not None:
            waited = self._receive.queued
            try:
                self._receive.serve()
            except RingError as error:
                self._vif.broken(error)
            self.flush()
            if waited and self._receive is not None and not self._receive.queued:
                self._vif.relieved()

    def _serve(self) -> None:
        """There may be frames to forward."""
        self._scheduled = False
        if self._transmit is None:
            return
        if self._vif.held_up:
            self._held_up = True
            return
        try:
            more = self._transmit.serve()
        except RingError as error:
            self._vif.broken(error)
            return
        finally:
            self._vif.forwarded()
        if self._transmit is None:
            return
        if self._transmit.push():
            self._control.notify(self._ports[0])
        if more:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._control.loop.call_soon(self._serve)

    def close(self) -> None:
        """Give rings and ports back, as often as it is called."""
        if self._site is not None:
            self._control.events.remove(self._site)
        for port in self._ports:
            self._control.unbind(port)
        self._ports.clear()
        for ring in (self._transmit, self._receive):
            if ring is not None:
                ring.release()
        self._transmit = self._receive = None
        mapped, self._mapped = self._mapped, []
        self._control.unmap_grants(mapped)
