"""The network back-end: one virtual interface (vif) of a domain, between its rings and a bridge.

Nodes and features are those of xen/include/public/io/netif.h. Neither the control ring (hashes) nor lists of multicast
addresses are offered.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable, Mapping

from bivisor.abi.xen import netif as abi
from bivisor.dom0.net.bridge import Bridge
from bivisor.dom0.net.counters import Counters
from bivisor.dom0.net.frame import Frame
from bivisor.dom0.net.offload import Takes, adapt
from bivisor.dom0.net.queue import Queue
from bivisor.dom0.xenbus.node import Node, Refused
from bivisor.dom0.xenbus.ring import RingError
from bivisor.errors import UsageError
from bivisor.platform.virtio.net import parse_mac

MAX_QUEUES = 8

_OFFERED: dict[str, str | int] = {
    "feature-sg": 1,
    "feature-gso-tcpv4": 1,
    "feature-gso-tcpv6": 1,
    "feature-ipv6-csum-offload": 1,
    "feature-rx-copy": 1,
    "feature-rx-flip": 0,
    "feature-split-event-channels": 1,
    "multi-queue-max-queues": MAX_QUEUES,
}


class Netback:
    """The interface of `node`, on the bridge that its node `bridge` names. `fail` is `Link.fail`.

    It is in the bridge from the time that it is connected; `sent` and `received` count what the guest sent and got.
    """

    def __init__(
        self, node: Node, fail: Callable[[Refused], None], find_bridge: Callable[[str], Bridge | None]
    ) -> None:
        self.node = node
        self._fail = fail
        self._find_bridge = find_bridge
        self._bridge: Bridge | None = None
        self._mac = b""
        self._takes = Takes()
        self._queues: list[Queue] = []
        self.sent = Counters()
        self.received = Counters()

    # ---------------------------------------------------------------- xenbus.link.Device

    def offer(self) -> Mapping[str, str | int]:
        """See `Device.offer`."""
        name = self.node.get("bridge") or ""
        self._bridge = self._find_bridge(name)
        if self._bridge is None:
            raise Refused(f"there is no bridge {name!r}", errno.ENODEV)
        try:
            self._mac = parse_mac(self.node.get("mac") or "")
        except UsageError as error:
            raise Refused(str(error)) from None
        return _OFFERED

    def connect(self) -> Mapping[str, str | int]:
        """See `Device.connect`."""
        assert self._bridge is not None
        if not self._has("request-rx-copy"):
            raise Refused("the front-end wants pages flipped to it: only copying is offered", errno.EOPNOTSUPP)
        if not self._has("feature-rx-notify"):
            raise Refused("the front-end does not tell of new receive buffers (feature-rx-notify)")
        scatter = self._has("feature-sg")
        gso = [
            kind
            for name, kind in (
                ("feature-gso-tcpv4", abi.XEN_NETIF_GSO_TYPE_TCPV4),
                ("feature-gso-tcpv6", abi.XEN_NETIF_GSO_TYPE_TCPV6),
            )
            if scatter and self._has(name)
        ]
        self._takes = Takes(
            not self._has("feature-no-csum-offload"), self._has("feature-ipv6-csum-offload"), frozenset(gso)
        )
        count = self.node.front_number("multi-queue-num-queues", 1)
        if not 1 <= count <= MAX_QUEUES:
            raise Refused(f"the front-end wants {count} queues of at most {MAX_QUEUES}")
        paths = [""] if count == 1 else [f"queue-{index}/" for index in range(count)]
        for path in paths:
            self._queues.append(Queue(self, path, scatter=scatter))
        self._bridge.attach(self, self._mac)
        return {}

    def disconnect(self) -> None:
        """See `Device.disconnect`."""
        if self._bridge is not None:
            self._bridge.detach(self)
        queues, self._queues = self._queues, []
        for queue in queues:
            queue.close()

    def close(self, then: Callable[[], None]) -> bool:
        """See `Device.close`."""
        self._bridge = None
        return True

    def _has(self, feature: str) -> bool:
        return self.node.front_number(feature, 0) != 0

    # ---------------------------------------------------------------- bridge.Port

    def deliver(self, frame: Frame) -> None:
        """See `bridge.Port.deliver`."""
        pieces = adapt(frame, self._takes)
        if not pieces:
            self.received.dropped += 1
        for piece in pieces:
            if self._queues:  # a piece may show that they are broken
                self._choose(piece).deliver(piece)

    @property
    def takes_long(self) -> bool:
        """See `bridge.Port.takes_long`."""
        return bool(self._takes.gso)

    @property
    def busy(self) -> bool:
        """See `bridge.Port.busy`."""
        return any(queue.busy for queue in self._queues)

    def flush(self) -> None:
        """See `bridge.Port.flush`."""
        for queue in self._queues:
            queue.flush()

    def resume(self) -> None:
        """See `bridge.Port.resume`."""
        for queue in self._queues:
            queue.resume()

    def _choose(self, frame: Frame) -> Queue:
        """The queue for a frame: always the same for the same flow, or its packets would overtake each other."""
        queues = self._queues
        if len(queues) == 1:
            return queues[0]
        layers = frame.layers()
        flow = frame.head[:12]
        if layers is not None:  # addresses and ports
            flow = frame.head[layers.network + (12 if layers.version == 4 else 8) : layers.transport + 4]
        return queues[zlib.crc32(flow) % len(queues)]

    # ---------------------------------------------------------------- queue.Interface

    def forward(self, frame: Frame) -> None:
        """See `queue.Interface.forward`."""
        if self._bridge is not None:
            self._bridge.forward(self, frame)

    def forwarded(self) -> None:
        """See `queue.Interface.forwarded`."""
        if self._bridge is not None:
            self._bridge.flush()

    @property
    def held_up(self) -> bool:
        """See `queue.Interface.held_up`."""
        return self._bridge is not None and self._bridge.is_full(self)

    def relieved(self) -> None:
        """See `queue.Interface.relieved`."""
        if self._bridge is not None and not self.busy:
            self._bridge.relieved(self)

    def broken(self, error: RingError) -> None:
        """See `queue.Interface.broken`."""
        self._fail(Refused(str(error)))
