"""A wire out of a bridge: a TAP device of the host, a process that is a network of its own, a cable to another program.

The toolstack opens it (`platform.virtio.net.NetBackend`). Where it carries a virtio_net_hdr (virtio 1.2, section
5.1.6), offloads pass through it in both directions.
"""

from __future__ import annotations

from collections import deque

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import NET_HDR, bit
from bivisor.abi.xen.netif import XEN_NETIF_GSO_TYPE_NONE, XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6
from bivisor.dom0.net.bridge import Bridge
from bivisor.dom0.net.frame import ETH_HLEN, HEAD_MAX, TCP, Frame, Layers
from bivisor.dom0.net.merge import Merger
from bivisor.dom0.net.offload import Takes, adapt, check
from bivisor.platform.virtio.checksum import complete_checksum
from bivisor.platform.virtio.net import FRAME_MAX, NetBackend

TURN_FRAMES = 64
WAITING_BYTES = 8 << 20
"""What may wait until the wire has room."""

BUSY_BYTES = 6 << 20
"""With so much waiting, others wait with theirs. It is a TCP connection's window: passt loses what is not read in time,
and has to send it again."""

_ROOM = NET_HDR.size + FRAME_MAX
_PLAIN = bytes(NET_HDR.size)

_TAKES = Takes(True, True, frozenset((XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6)))
_WANTED = bit(abi.NET_F_GUEST_CSUM) | bit(abi.NET_F_GUEST_TSO4) | bit(abi.NET_F_GUEST_TSO6)
_TO_GSO = {
    abi.NET_HDR_GSO_NONE: XEN_NETIF_GSO_TYPE_NONE,
    abi.NET_HDR_GSO_TCPV4: XEN_NETIF_GSO_TYPE_TCPV4,
    abi.NET_HDR_GSO_TCPV6: XEN_NETIF_GSO_TYPE_TCPV6,
}
_FROM_GSO = {ours: theirs for theirs, ours in _TO_GSO.items()}


class Wire:
    """`backend` as a port of `bridge`. `close()` unplugs it; the wire itself stays its owner's."""

    def __init__(self, bridge: Bridge, backend: NetBackend) -> None:
        self._bridge = bridge
        self._backend = backend
        self._has_header = backend.has_header
        self._takes = _TAKES if backend.has_header else Takes(frame_max=backend.frame_max)
        self._buffer = memoryview(bytearray(_ROOM))
        self._frame = self._buffer if backend.has_header else self._buffer[NET_HDR.size :]
        self._merger = Merger() if not backend.has_header and backend.frame_max else None
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self.sent = self.received = self.dropped = 0
        self.ended = False
        if backend.has_header:
            backend.set_offloads(_WANTED & backend.offloads)
        bridge.attach(self)
        backend.watch(self._receive, None)

    # From the bridge

    def deliver(self, frame: Frame) -> None:
        """See `bridge.Port.deliver`. What the wire has no room for waits, as far as that is not too much."""
        pieces = () if self.ended else adapt(frame, self._takes)
        if not pieces:
            self.dropped += 1
        for part in pieces:
            views = (memoryview(_header(part)), *part.parts) if self._has_header else part.parts
            if not self._waiting and self._backend.send(views):
                self.sent += 1
            elif self._held + part.size > WAITING_BYTES:
                self.dropped += 1
            else:
                self._keep(b"".join(views))

    def _keep(self, packet: bytes) -> None:
        self._waiting.append(packet)
        self._held += len(packet)
        self._watch()

    takes_long = False
    """See `bridge.Port.takes_long`: a card at the other end would cut them."""

    @property
    def busy(self) -> bool:
        """See `bridge.Port.busy`."""
        return self._held >= BUSY_BYTES

    def flush(self) -> None:
        """See `bridge.Port.flush`: everything has been sent."""

    def resume(self) -> None:
        """See `bridge.Port.resume`."""
        self._watch()

    def _drain(self) -> None:
        """The wire has room again."""
        waiting = self._waiting
        while waiting and self._backend.send((memoryview(waiting[0]),)):
            self._held -= len(waiting.popleft())
            self.sent += 1
        if not waiting:
            self._bridge.relieved(self)
        self._watch()

    def _watch(self) -> None:
        """Look for frames as far as the bridge takes them, and for room where frames wait for it."""
        if not self.ended:
            readable = None if self._bridge.is_full(self) else self._receive
            self._backend.watch(readable, self._drain if self._waiting else None)

    # To the bridge

    def _receive(self) -> None:
        merger = self._merger if self._merger is not None and self._bridge.takes_long(self) else None
        for _ in range(TURN_FRAMES):
            if self.ended or self._bridge.is_full(self) or not self._receive_one(merger):
                break
        if merger is not None:
            self._forward_merged(merger)
        self._bridge.flush()
        self._watch()  # some wires hold frames that their descriptor does not show

    def _receive_one(self, merger: Merger | None) -> bool:
        size = self._backend.receive((self._frame,))
        if size <= 0:
            if size < 0:
                self._end()
            return False
        if merger is not None:
            if merger.add(self._frame[:size]):
                return True
            self._forward_merged(merger)
            if merger.add(self._frame[:size]):
                return True
        frame = self._take(size if self._has_header else size + NET_HDR.size)
        if frame is None:
            self.dropped += 1
        else:
            self.received += 1
            self._bridge.forward(self, frame)
        return True

    def _forward_merged(self, merger: Merger) -> None:
        frame = merger.take()
        if frame is not None:
            self.received += 1
            self._bridge.forward(self, frame)

    def _take(self, size: int) -> Frame | None:
        """The frame in the buffer, where a header of its own or none at all is in front; None if it makes no sense."""
        at = NET_HDR.size
        if not at + ETH_HLEN <= size <= _ROOM:
            return None
        length = size - at
        flags = kind = gso_size = start = offset = 0
        if self._has_header:
            flags, kind, _, gso_size, start, offset, _ = NET_HDR.unpack_from(self._buffer)
        gso_type = _TO_GSO.get(kind & ~abi.NET_HDR_GSO_ECN)
        if gso_type is None:
            return None
        blank = bool(flags & abi.NET_HDR_F_NEEDS_CSUM)
        packet = self._buffer[at:size]
        frame = Frame(
            bytes(packet[:HEAD_MAX]),
            (packet,),
            length,
            blank=blank,
            validated=bool(flags & abi.NET_HDR_F_DATA_VALID),
            gso_type=gso_type,
            gso_size=gso_size if gso_type else 0,
        )
        if not blank:
            return frame if check(frame) else None
        layers = frame.layers()
        if layers is not None and (start, start + offset) == (layers.transport, layers.checksum):
            return frame if check(frame) else None
        # A front-end finds a checksum by itself and only in TCP and UDP: any other one is filled in here.
        if gso_type or not complete_checksum((self._buffer[:size],), size):
            return None
        return Frame(bytes(packet[:HEAD_MAX]), (packet,), length, validated=True)

    def close(self) -> None:
        """Unplug it from the bridge and look at it no more."""
        self._end()
        self._bridge.detach(self)

    def _end(self) -> None:
        self.ended = True
        self._waiting.clear()
        self._held = 0
        self._backend.watch(None, None)
        self._bridge.relieved(self)


def _header(frame: Frame) -> bytes:
    """The virtio_net_hdr for a frame that passed `check`."""
    if not frame.blank:
        return NET_HDR.pack(abi.NET_HDR_F_DATA_VALID, 0, 0, 0, 0, 0, 0) if frame.validated else _PLAIN
    layers = frame.layers()
    assert layers is not None
    return NET_HDR.pack(
        abi.NET_HDR_F_NEEDS_CSUM,
        _FROM_GSO[frame.gso_type],
        _headers(layers) if frame.gso_type else 0,
        frame.gso_size,
        layers.transport,
        layers.checksum - layers.transport,
        0,
    )


def _headers(layers: Layers) -> int:
    assert layers.protocol == TCP
    return layers.payload
