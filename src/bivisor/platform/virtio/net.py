"""The virtio network device: virtio 1.2 section 5.1, with one pair of queues.

Frames move between the guest's own pages and the back-end. Where that carries the header of 12 bytes in front of each
frame, checksum and segmentation offloads pass through it, so 64 KiB travel as one packet; elsewhere they are not
offered.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import NET_CONFIG, NET_HDR, NET_RECEIVEQ, NET_TRANSMITQ, bit
from bivisor.errors import UsageError
from bivisor.platform.virtio.checksum import complete_checksum
from bivisor.platform.virtio.device import Chain, VirtioDevice, VirtQueue, skip

if TYPE_CHECKING:
    from bivisor.host.loop import Callback

QUEUE_SIZE = 256
TURN_PACKETS = 64
FRAME_MIN = 14
FRAME_MAX = 65550  # 65,535 of IP behind an Ethernet header; 5.1.6.3.1 counts 65,562 with ours
PACKET_MAX = NET_HDR.size + FRAME_MAX
_NUM_BUFFERS = struct.Struct("<H")
_NO_HEADER = bytes(NET_HDR.size)

_GSO_FEATURES = {
    abi.NET_HDR_GSO_NONE: abi.NET_F_GUEST_CSUM,
    abi.NET_HDR_GSO_TCPV4: abi.NET_F_GUEST_TSO4,
    abi.NET_HDR_GSO_TCPV6: abi.NET_F_GUEST_TSO6,
}

OFFLOADS = (
    bit(abi.NET_F_CSUM)
    | bit(abi.NET_F_HOST_TSO4)
    | bit(abi.NET_F_HOST_TSO6)
    | bit(abi.NET_F_HOST_ECN)
    | bit(abi.NET_F_GUEST_CSUM)
    | bit(abi.NET_F_GUEST_TSO4)
    | bit(abi.NET_F_GUEST_TSO6)
    | bit(abi.NET_F_GUEST_ECN)
)
"""The offload features that a back-end with headers can carry."""


class NetBackend(Protocol):
    """The wire. Nothing here blocks, and nothing raises for what a guest sends."""

    has_header: bool
    offloads: int
    frame_max: int
    """How long a frame may be that is cut from a longer TCP packet; 0: as its sender says. Only without a header."""

    def set_offloads(self, features: int) -> None:
        """The guest takes what the GUEST_ bits of `features` say; 0 when there is no driver."""

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """Call back, again and again, while a frame is there and while one is taken; None ends it."""

    def send(self, views: Sequence[memoryview]) -> bool:
        """Send one frame (with its header, if `has_header`). False: there is no room now."""

    def receive(self, views: Sequence[memoryview]) -> int:
        """Put the next frame into `views` and return its length: 0 where there is none, -1 where none will come."""


def parse_mac(text: str) -> bytes:
    """The six bytes of aa:bb:cc:dd:ee:ff. UsageError where it is no address of one station."""
    try:
        mac = bytes(int(part, 16) for part in text.split(":"))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        raise UsageError(f"MAC address {text}: it has to be six bytes as in 52:54:00:12:34:56, and not a multicast one")
    return mac


class VirtioNet(VirtioDevice):
    """A network interface with address `mac` on the wire `backend`."""

    device_id = abi.ID_NET
    pci_class = 0x020000
    name = "virtio-net"

    def __init__(self, backend: NetBackend, mac: str) -> None:
        self.backend = backend
        features = bit(abi.NET_F_MAC) | bit(abi.NET_F_STATUS) | bit(abi.NET_F_MRG_RXBUF)
        if backend.has_header:
            features |= OFFLOADS & backend.offloads
        super().__init__(
            features, (QUEUE_SIZE, QUEUE_SIZE), NET_CONFIG.pack(parse_mac(mac), abi.NET_S_LINK_UP, 1, 1500)
        )
        self._buffers: deque[Chain] = deque()
        self._room = 0
        self._ended = False
        self._blocked = False
        self._spill = memoryview(bytearray(1))
        self.dropped = 0

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out, as the guest sees it."""
        self.change_config(6, "<H", abi.NET_S_LINK_UP if up else 0)

    def activate(self) -> None:
        """Tell the back-end what the guest takes, and start."""
        self._merge = self.has(abi.NET_F_MRG_RXBUF)
        self.backend.set_offloads(self.features & OFFLOADS)
        self._transmit()
        self._receive()

    def notify(self, index: int) -> None:
        """Frames to send, or buffers for frames."""
        if not self.active:
            return
        if index == NET_TRANSMITQ:
            self._transmit()
        else:
            self._receive()

    def reset(self) -> None:
        """See `VirtioDevice.reset`."""
        self.backend.watch(None, None)
        if self.active:
            self.backend.set_offloads(0)
        self._buffers.clear()
        self._room = 0
        self._blocked = False
        super().reset()

    # From the guest

    def _transmit(self) -> None:
        queue = self.queues[NET_TRANSMITQ]
        send = self.backend.send
        with_header = self.backend.has_header
        queue.hush()
        self._blocked = True  # more than a turn's worth, or no room: go on when the back-end takes more
        for _ in range(TURN_PACKETS):
            chain = queue.pop()
            if chain is None:
                if queue.listen():
                    continue
                self._blocked = False
                break
            size = chain.readable_size
            # Shorter than a frame or longer than any: a back-end would choke on it or have to cut it up.
            if not NET_HDR.size + FRAME_MIN <= size <= PACKET_MAX:
                self.dropped += 1
            elif not send(chain.readable if with_header else skip(chain.readable, NET_HDR.size)):
                queue.unpop()
                break
            queue.push(chain)
        self.finish(queue)
        self._watch()

    # To the guest

    def _receive(self) -> None:
        queue = self.queues[NET_RECEIVEQ]
        queue.hush()
        for _ in range(TURN_PACKETS):
            if self._ended or not self.active or not self._collect(queue) or not self._receive_one(queue):
                break
        self.finish(queue)
        self._watch()

    def _collect(self, queue: VirtQueue) -> bool:
        """Whether there are buffers for the longest packet: one without MRG_RXBUF, else as many as it takes."""
        buffers = self._buffers
        needed = PACKET_MAX if self._merge else 1
        while self._room < needed:
            chain = queue.pop()
            if chain is None:
                if queue.listen():
                    continue
                return len(buffers) >= queue.size  # it has no more to give
            # 5.1.6.3.1: a buffer holds the header at least, in one piece or the device could not fill it in.
            if not chain.writable or len(chain.writable[0]) < NET_HDR.size:
                self.fail("a receive buffer without room for the header")
                return False
            buffers.append(chain)
            self._room += chain.writable_size
        return True

    def _receive_one(self, queue: VirtQueue) -> bool:
        buffers = self._buffers
        views = [view for chain in buffers for view in chain.writable]
        header = views[0]
        if self._room < PACKET_MAX:
            views.append(self._spill)  # where a packet that is cut off shows
        if self.backend.has_header:
            size = self.backend.receive(views)
        else:
            size = self.backend.receive(skip(views, NET_HDR.size))
            if size > 0:
                header[: NET_HDR.size] = _NO_HEADER
                size += NET_HDR.size
        if size <= 0:
            if size < 0:
                self._ended = True
                self.set_link(False)
            return False
        # Shorter than its header it is no packet; longer than the room it is not whole.
        if not NET_HDR.size + FRAME_MIN <= size <= self._room:
            self.dropped += 1
            return True
        if (header[0] or header[1]) and not self._accepts(header[1]):
            if header[1] or not complete_checksum(views, size):
                self.dropped += 1
                return True
            header[:10] = _NO_HEADER[:10]
        used = 0
        left = size
        while left > 0:
            chain = buffers.popleft()
            capacity = chain.writable_size
            self._room -= capacity
            queue.push(chain, min(left, capacity))
            left -= capacity
            used += 1
        _NUM_BUFFERS.pack_into(header, 10, used)
        return True

    def _accepts(self, gso_type: int) -> bool:
        """Whether the driver negotiated packets without a checksum and of this kind (5.1.6.4.1).

        The other end of a cable may send anything, and a guest is told only what it has agreed to.
        """
        wanted = _GSO_FEATURES.get(gso_type & ~abi.NET_HDR_GSO_ECN)
        return wanted is not None and self.has(abi.NET_F_GUEST_CSUM) and self.has(wanted)

    def _watch(self) -> None:
        """Watch for just what can be acted upon, or a level-triggered loop would spin."""
        if not self.active:
            self.backend.watch(None, None)
            return
        ready = not self._ended and self._collect(self.queues[NET_RECEIVEQ])
        self.backend.watch(self._receive if ready else None, self._transmit if self._blocked else None)
