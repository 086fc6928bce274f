"""What a front-end sends: the transmit ring of xen/include/public/io/netif.h, "Guest transmit".

A packet is copied out of its pages, not mapped: a map has to wait for the guest's processor on the engine `soft`, and
whoever looks at a packet must see what is sent. What a front-end may get wrong follows Linux's
back-end, which front-ends are written against: what makes no sense as a chain of slots ends the connection, any other
bad packet is answered with NETIF_RSP_ERROR and goes nowhere.
"""

from __future__ import annotations

from collections.abc import Callable

from bivisor.abi.xen import netif as abi
from bivisor.abi.xen.netif import EXTRA_INFO, TX_REQUEST, TX_RESPONSE, ExtraType, NetifStatus
from bivisor.dom0.control import Control
from bivisor.dom0.net.counters import Counters
from bivisor.dom0.net.frame import ETH_HLEN, HEAD_MAX, Frame
from bivisor.dom0.net.offload import check
from bivisor.dom0.xenbus.ring import BackRing, RingError
from bivisor.memory import PAGE
from bivisor.xen.errors import GrantError

FATAL_SLOTS = 20
"""A packet of more slots behind its first than any front-end has: it means to do harm."""

TURN_SLOTS = 256
"""Slots that are taken before others get their turn."""

_NULL = TX_RESPONSE.pack(0, NetifStatus.NULL)


class _Packet:
    """One packet as its slots say: `ids` are those of its requests, `slots` (reference, offset, size) of its parts."""

    __slots__ = ("bad", "extras", "flags", "gso", "ids", "size", "slots")

    def __init__(self, flags: int, size: int) -> None:
        self.flags = flags
        self.size = size
        self.slots: list[tuple[int, int, int]] = []
        self.ids: list[int] = []
        self.extras = 0
        self.gso: tuple[int, int] | None = None
        self.bad = False


class Transmit:
    """The transmit ring in `page` of domain `domid`. `forward` takes each frame while its bytes are there."""

    def __init__(
        self, control: Control, domid: int, page: memoryview, forward: Callable[[Frame], None], counters: Counters
    ) -> None:
        self._control = control
        self._domid = domid
        self._ring = BackRing((page,), abi.TX_SLOT)
        self._buffer = memoryview(bytearray(abi.XEN_NETIF_MAX_TX_SIZE))
        self._forward = forward
        self._counters = counters

    def serve(self) -> bool:
        """Forward what is there; whether there may be more than a turn's worth. RingError: the front-end broke it."""
        ring = self._ring
        left = TURN_SLOTS
        while left > 0:
            first = ring.take()
            if first is None:
                if ring.rest():
                    continue
                return False
            packet = self._collect(first)
            self._answer(packet, NetifStatus.OKAY if self._send(packet) else NetifStatus.ERROR)
            left -= len(packet.ids) + packet.extras
        return True

    def push(self) -> bool:
        """Make responses known; whether the front-end wants an event."""
        return self._ring.push()

    def release(self) -> None:
        """Let go of the ring."""
        self._ring.release()

    # ---------------------------------------------------------------- slots

    def _next(self) -> bytes:
        entry = self._ring.take()
        if entry is None:
            raise RingError("a packet that goes on in a slot that is not there")
        return entry

    def _collect(self, first: bytes) -> _Packet:
        """The packet that begins with the request `first`."""
        gref, offset, flags, ident, size = TX_REQUEST.unpack(first)
        packet = _Packet(flags, size)
        packet.ids.append(ident)
        if flags & abi.NETTXF_EXTRA_INFO:
            self._collect_extras(packet)
        left = size  # of the packet, for its first part: only its other parts say their own size
        others: list[tuple[int, int, int]] = []
        more = flags & abi.NETTXF_MORE_DATA
        while more:
            if len(others) >= FATAL_SLOTS:
                raise RingError(f"a packet of more than {FATAL_SLOTS + 1} slots")
            part, at, flags, ident, length = TX_REQUEST.unpack(self._next())
            if at + length > PAGE:
                raise RingError(f"a slot that crosses its page: {length} bytes from {at} on")
            packet.ids.append(ident)
            others.append((part, at, length))
            left -= length
            more = flags & abi.NETTXF_MORE_DATA
        packet.bad |= left < 0 or size < ETH_HLEN or len(others) > abi.XEN_NETIF_NR_SLOTS_MIN
        if not packet.bad and offset + left > PAGE:
            raise RingError(f"a slot that crosses its page: {left} bytes from {offset} on")
        packet.slots = [(gref, offset, left), *others]
        return packet

    def _collect_extras(self, packet: _Packet) -> None:
        flags = abi.XEN_NETIF_EXTRA_FLAG_MORE
        while flags & abi.XEN_NETIF_EXTRA_FLAG_MORE:
            entry = self._next()
            kind, flags, _ = EXTRA_INFO.unpack_from(entry)
            packet.extras += 1
            if not 0 < kind < abi.XEN_NETIF_EXTRA_TYPE_MAX:
                raise RingError(f"extra information of type {kind}")
            if kind == ExtraType.GSO:
                _, _, size, gso_type, _, _ = abi.EXTRA_GSO.unpack_from(entry)
                if gso_type not in (abi.XEN_NETIF_GSO_TYPE_TCPV4, abi.XEN_NETIF_GSO_TYPE_TCPV6) or not size:
                    raise RingError(f"segmentation of type {gso_type} into {size} bytes")
                packet.gso = gso_type, size
            else:  # neither lists of multicast addresses nor hashes were offered
                packet.bad = True

    def _answer(self, packet: _Packet, status: NetifStatus) -> None:
        """One response for each of the packet's slots, in their order."""
        respond, pack = self._ring.respond, TX_RESPONSE.pack
        first, *others = packet.ids
        respond(pack(first, status))
        for _ in range(packet.extras):
            respond(_NULL)
        for ident in others:
            respond(pack(ident, status))

    # ---------------------------------------------------------------- bytes

    def _send(self, packet: _Packet) -> bool:
        """Forward `packet`; False where it is not fit to be."""
        frame = None if packet.bad else self._fetch(packet)
        if frame is None or not check(frame):
            self._counters.errors += 1
            return False
        self._counters.frames += 1
        self._counters.bytes += packet.size
        self._forward(frame)
        return True

    def _fetch(self, packet: _Packet) -> Frame | None:
        """Copy the packet into the buffer; None where a part of it is not granted."""
        buffer, at = self._buffer, 0
        parts = []
        for gref, offset, size in packet.slots:
            parts.append((gref, offset, buffer[at : at + size]))
            at += size
        try:
            self._control.copy_from_grants(self._domid, parts)
        except GrantError:
            return None
        flags = packet.flags
        gso_type, gso_size = packet.gso or (abi.XEN_NETIF_GSO_TYPE_NONE, 0)
        return Frame(
            bytes(buffer[: min(at, HEAD_MAX)]),
            (buffer[:at],),
            at,
            blank=bool(flags & abi.NETTXF_CSUM_BLANK),
            validated=bool(flags & abi.NETTXF_DATA_VALIDATED),
            gso_type=gso_type,
            gso_size=gso_size,
        )
