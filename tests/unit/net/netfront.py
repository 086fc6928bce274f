"""A host without guests that run, and front-ends that the tests play: memory, rings, grants and event channels."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bivisor.abi.xen import netif as abi
from bivisor.abi.xen.grant_table import GRANT_ENTRY_V1, GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_WRITING
from bivisor.abi.xen.netif import EXTRA_GSO, RX_REQUEST, RX_RESPONSE, TX_REQUEST, TX_RESPONSE
from bivisor.abi.xen.ring import ENTRIES_AT
from bivisor.abi.xen.xen import SHARED_EVTCHN_PENDING
from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0 import store
from bivisor.dom0.control import Control
from bivisor.dom0.net.bridge import Bridge
from bivisor.dom0.net.frame import Frame
from bivisor.dom0.net.netback import Netback
from bivisor.dom0.xenbus.service import Service
from bivisor.dom0.xenstore.client import StoreClient
from bivisor.host.loop import Callback, ManualLoop
from bivisor.memory import PAGE, GuestMemory, Slot
from bivisor.xen.hypervisor import Xen

PAGES = 1024
_U32 = 0xFFFF_FFFF
_INDICES = struct.Struct("<IIII")
ALL_FEATURES = {
    "request-rx-copy": 1,
    "feature-rx-notify": 1,
    "feature-sg": 1,
    "feature-gso-tcpv4": 1,
    "feature-gso-tcpv6": 1,
    "feature-ipv6-csum-offload": 1,
}


class Idle:
    """Nothing runs the domain."""

    def event(self, vcpu: int) -> None: ...

    def wake(self, vcpu: int) -> None: ...

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None: ...

    def set_timer(self, vcpu: int, deadline: int | None) -> None: ...

    def add_slot(self, slot: Slot) -> None: ...

    def populated(self, gfn: int, count: int) -> None: ...

    def released(self, gfn: int, count: int) -> None: ...

    def time_info(self) -> bytes:
        return bytes(32)


class Host:
    """Hypervisor, Dom0, store, a bridge and the network back-end."""

    def __init__(self, *, patient: bool = False) -> None:
        self.loop = ManualLoop()
        self.xen = Xen()
        self.control = Control(self.xen, self.loop)
        self.server = store.start(self.control)
        self.store = StoreClient(self.server)
        self.bridge = Bridge("xenbr0", self.loop, patient=patient)
        self.service = Service(
            self.control,
            self.store,
            "vif",
            lambda node, fail: Netback(node, fail, lambda name: self.bridge if name == "xenbr0" else None),
        )
        self.fronts: list[Front] = []

    def front(self, **options: object) -> Front:
        """A front-end in a domain of its own."""
        front = Front(self, len(self.fronts) + 1, **options)  # type: ignore[arg-type]
        self.fronts.append(front)
        return front

    def run(self) -> None:
        """Let the back-end do what there is to do."""
        self.loop.run_soon()

    def close(self) -> None:
        for front in self.fronts:
            front.remove()
        self.run()
        self.service.close()
        for front in self.fronts:
            front.close()
        assert list(self.xen.domains) == [0]
        self.store.close()
        self.server.close()
        self.control.close()


@contextmanager
def host(*, patient: bool = False) -> Iterator[Host]:
    made = Host(patient=patient)
    try:
        yield made
    finally:
        made.close()


@dataclass
class Received:
    """A frame that came in: its bytes, what its flags say of the checksum, and (type, size) if it is to be cut."""

    data: bytes
    flags: int
    gso: tuple[int, int] | None = None


class Ring:
    """The front's side of a ring in guest frame `gfn`."""

    def __init__(self, front: Front, gfn: int, slot: int) -> None:
        self.page = front.page(gfn)
        self.ref = front.grant(gfn)
        self.slot = slot
        self.prod = self.cons = 0
        _INDICES.pack_into(self.page, 0, 0, 1, 0, 1)

    def put(self, entries: Iterable[bytes]) -> bool:
        """Make requests known; whether the back-end wants an event."""
        old = self.prod
        for entry in entries:
            at = ENTRIES_AT + self.slot * (self.prod % 256)
            self.page[at : at + len(entry)] = entry
            self.prod = self.prod + 1 & _U32
        self.claim(self.prod)
        event = int(_INDICES.unpack_from(self.page)[1])
        return (self.prod - event & _U32) < (self.prod - old & _U32)

    def claim(self, req_prod: int) -> None:
        struct.pack_into("<I", self.page, 0, req_prod & _U32)

    def responses(self) -> list[bytes]:
        """What has come back."""
        prod = _INDICES.unpack_from(self.page)[2]
        found = []
        while self.cons != prod:
            at = ENTRIES_AT + self.slot * (self.cons % 256)
            found.append(bytes(self.page[at : at + self.slot]))
            self.cons = self.cons + 1 & _U32
        struct.pack_into("<I", self.page, 12, prod + 1 & _U32)
        return found


class Front:
    """A front-end with address 00:16:3e:00:00:`number`, which is not connected yet."""

    def __init__(
        self,
        host: Host,
        number: int,
        *,
        queues: int = 1,
        split: bool = True,
        features: dict[str, int] | None = None,
        connect: bool = True,
        supply: int = 64,
        nodes: dict[str, str] | None = None,
    ) -> None:
        self.host = host
        self.mac = bytes.fromhex("00163e0000") + bytes((number,))
        self.memory = GuestMemory(PAGES * PAGE)
        self.domain = host.xen.create_domain(self.memory, upcall=Idle())
        self.domid = self.domain.domid
        self.features = ALL_FEATURES if features is None else features
        self.split = split
        self.queues = queues
        self._next_gfn = 1
        self._next_ref = 8
        self.tx: list[Ring] = []
        self.rx: list[Ring] = []
        self.tx_ports: list[int] = []
        self.rx_ports: list[int] = []
        self.back = f"/local/domain/0/backend/vif/{self.domid}/0"
        self.path = f"/local/domain/{self.domid}/device/vif/0"
        self._supplied: list[dict[int, int]] = []
        self._ids = 0
        self._closed = False
        self.create(nodes or {})
        if connect:
            self.connect()
            if supply:
                for queue in range(queues):
                    self.supply(supply, queue)
                host.run()

    # ---------------------------------------------------------------- memory

    def page(self, gfn: int) -> memoryview:
        return self.memory.view(gfn * PAGE, PAGE)

    def new_page(self) -> int:
        self._next_gfn += 1
        return self._next_gfn % (PAGES - 1)

    def grant(self, gfn: int, flags: int = 0) -> int:
        self._next_ref += 1
        ref = 8 + self._next_ref % 4000
        entry = GRANT_ENTRY_V1.pack(GTF_PERMIT_ACCESS | flags, 0, gfn)
        self.domain.grants.frame(ref // 512)[ref % 512 * 8 : ref % 512 * 8 + 8] = entry
        return ref

    def revoke(self, ref: int) -> None:
        """End a grant, which nobody may hold."""
        frame = self.domain.grants.frame(ref // 512)
        at = ref % 512 * 8
        assert not frame[at] & (GTF_READING | GTF_WRITING)
        frame[at : at + 8] = bytes(8)

    # ---------------------------------------------------------------- life

    def create(self, own: dict[str, str]) -> None:
        """What the toolstack does."""
        mac = ":".join(f"{byte:02x}" for byte in self.mac)
        store = self.host.store
        front: dict[str, str | int] = {"backend": self.back, "backend-id": 0, "handle": 0, "mac": mac, "state": 1}
        for name, value in front.items():
            store.write(f"{self.path}/{name}", value)
        nodes: dict[str, str | int] = {
            "frontend": self.path,
            "frontend-id": self.domid,
            "online": 1,
            "mac": mac,
            "bridge": "xenbr0",
        }
        for name, text in {**nodes, "handle": 0, **own, "state": 1}.items():
            store.write(f"{self.back}/{name}", text)
        self.host.run()

    def set(self, **nodes: str | int) -> None:
        for name, value in nodes.items():
            self.host.store.write(f"{self.path}/{name}", value)

    def state(self) -> XenbusState:
        return XenbusState(int(self.host.store.get(f"{self.back}/state") or 0))

    def error(self) -> str:
        return self.host.store.get(f"/local/domain/0/error/backend/vif/{self.domid}/0/error") or ""

    def connect(self) -> None:
        """What talk_to_netback does."""
        store = self.host.store
        for index in range(self.queues):
            prefix = f"{self.path}/" if self.queues == 1 else f"{self.path}/queue-{index}/"
            self.tx.append(Ring(self, self.new_page(), abi.TX_SLOT))
            self.rx.append(Ring(self, self.new_page(), abi.RX_SLOT))
            store.write(f"{prefix}tx-ring-ref", self.tx[index].ref)
            store.write(f"{prefix}rx-ring-ref", self.rx[index].ref)
            self._supplied.append({})
            alloc = self.domain.events.alloc_unbound
            if self.split:
                self.tx_ports.append(alloc(self.domid, 0))
                self.rx_ports.append(alloc(self.domid, 0))
                store.write(f"{prefix}event-channel-tx", self.tx_ports[index])
                store.write(f"{prefix}event-channel-rx", self.rx_ports[index])
            else:
                self.tx_ports.append(alloc(self.domid, 0))
                self.rx_ports.append(self.tx_ports[index])
                store.write(f"{prefix}event-channel", self.tx_ports[index])
        if self.queues > 1:
            store.write(f"{self.path}/multi-queue-num-queues", self.queues)
        for name, value in self.features.items():
            store.write(f"{self.path}/{name}", value)
        store.write(f"{self.path}/state", int(XenbusState.CONNECTED))
        self.host.run()

    def remove(self) -> None:
        """The toolstack takes the device away."""
        self.host.store.remove(self.path)
        self.host.store.remove(self.back)

    def close(self) -> None:
        """The domain dies."""
        if self._closed:
            return
        self._closed = True
        self.host.xen.destroy(self.domain)
        for ring in (*self.tx, *self.rx):
            ring.page.release()
        self.memory.close()

    @property
    def netback(self) -> Netback:
        device = self.host.service.links[str(self.domid), "0"].device
        assert isinstance(device, Netback)
        return device

    def pending(self, port: int) -> bool:
        """Whether an event has come, which is taken then."""
        shared = self.domain.shared_info
        at = SHARED_EVTCHN_PENDING + port // 8
        seen = bool(shared[at] >> port % 8 & 1)
        shared[at] &= ~(1 << port % 8)
        return seen

    # ---------------------------------------------------------------- sending

    def slots(
        self, data: bytes, *, flags: int = 0, gso: tuple[int, int] | None = None, sizes: Sequence[int] = ()
    ) -> list[bytes]:
        """The requests for a packet: its parts have `sizes`, or are pages."""
        sizes = sizes or [min(PAGE, len(data) - at) for at in range(0, len(data), PAGE)] or [0]
        at, entries = 0, []
        for index, size in enumerate(sizes):
            gfn = self.new_page()
            offset = (PAGE - size) // 2
            self.page(gfn)[offset : offset + size] = data[at : at + size]
            at += size
            more = abi.NETTXF_MORE_DATA if index < len(sizes) - 1 else 0
            own = flags | (abi.NETTXF_EXTRA_INFO if gso else 0) if not index else 0
            self._ids = self._ids + 1 & 0xFFFF
            length = len(data) if not index else size
            entries.append(TX_REQUEST.pack(self.grant(gfn, GTF_READONLY), offset, own | more, self._ids, length))
            if gso and not index:
                entries.append(EXTRA_GSO.pack(abi.ExtraType.GSO, 0, gso[1], gso[0], 0, 0))
        return entries

    def send(self, data: bytes, queue: int = 0, **options: object) -> list[int]:
        """Send a packet, and give the statuses of its responses."""
        return self.send_slots(self.slots(data, **options), queue)  # type: ignore[arg-type]

    def send_slots(self, entries: Sequence[bytes], queue: int = 0) -> list[int]:
        if self.tx[queue].put(entries):
            self.domain.events.send(self.tx_ports[queue])
        self.host.run()
        return [status for _, status in self.answers(queue)]

    def answers(self, queue: int = 0) -> list[tuple[int, int]]:
        """(id, status) of the responses that have come."""
        return [TX_RESPONSE.unpack_from(entry) for entry in self.tx[queue].responses()]

    # ---------------------------------------------------------------- receiving

    def supply(self, count: int, queue: int = 0, *, flags: int = 0) -> None:
        """Put `count` empty pages into the receive ring."""
        entries = []
        ring = self.rx[queue]
        for index in range(count):
            ref = self.grant(gfn := self.new_page(), flags)
            at = ring.prod + index & 255
            self._supplied[queue][at] = gfn
            entries.append(RX_REQUEST.pack(at, ref))
        if ring.put(entries):
            self.domain.events.send(self.rx_ports[queue])
        self.host.run()

    def received(self, queue: int = 0) -> list[Received]:
        """The frames that have come, as xen-netfront reads them."""
        found: list[Received] = []
        ring = self.rx[queue]
        at = ring.cons
        entries = iter(ring.responses())
        for entry in entries:
            ident, offset, flags, status = RX_RESPONSE.unpack(entry)
            assert ident == at & 255
            assert 0 <= status <= PAGE - offset
            frame = Received(b"", flags & (abi.NETRXF_CSUM_BLANK | abi.NETRXF_DATA_VALIDATED))
            while True:
                start = self._supplied[queue][at & 255] * PAGE + offset
                frame.data += self.memory.read(start, status)
                at += 1
                if flags & abi.NETRXF_EXTRA_INFO:
                    kind, more, size, gso_type, _, _ = EXTRA_GSO.unpack(next(entries))
                    assert (kind, more) == (abi.ExtraType.GSO, 0)
                    frame.gso = gso_type, size
                    at += 1
                if not flags & abi.NETRXF_MORE_DATA:
                    break
                _, offset, flags, status = RX_RESPONSE.unpack(next(entries))
            found.append(frame)
        return found


class Tape:
    """A port of a bridge that keeps what it gets."""

    busy = takes_long = False

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.flushed = self.resumed = 0

    def deliver(self, frame: Frame) -> None:
        self.frames.append(frame.copy())

    def flush(self) -> None:
        self.flushed += 1

    def resume(self) -> None:
        self.resumed += 1


class Way:
    """The wire of a network out of the host: it sends only if `is_open`, and has what is `waiting`."""

    has_header = False
    frame_max = 0
    offloads = 0

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.waiting: list[bytes] = []
        self.is_open = True
        self.readable: Callback | None = None
        self.writable: Callback | None = None

    def set_offloads(self, features: int) -> None: ...

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        self.readable, self.writable = readable, writable

    def send(self, views: Sequence[memoryview]) -> bool:
        if self.is_open:
            self.sent.append(b"".join(views))
        return self.is_open

    def receive(self, views: Sequence[memoryview]) -> int:
        if not self.waiting:
            return 0
        frame = self.waiting.pop(0)
        views[0][: len(frame)] = frame
        return len(frame)
