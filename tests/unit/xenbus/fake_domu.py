"""A Xen host without guests that run, and domains that the test plays: memory, grants, ports and nodes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bivisor.abi.xen import grant_table as gnt
from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.ring import ENTRIES_AT, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, ring_size
from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0 import store
from bivisor.dom0.control import Control
from bivisor.dom0.xenstore.client import StoreClient
from bivisor.host.loop import ManualLoop
from bivisor.memory import PAGE, GuestMemory, Slot
from bivisor.toolstack.xendevices import XenDevice
from bivisor.xen.hypervisor import Xen

PAGES = 512
_FIRST_REF = gnt.RESERVED_ENTRIES
_U32 = 0xFFFF_FFFF


class NoUpcall:
    """A domain that nothing runs."""

    def event(self, vcpu: int) -> None: ...

    def wake(self, vcpu: int) -> None: ...

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None: ...

    def set_timer(self, vcpu: int, deadline: int | None) -> None: ...

    def add_slot(self, slot: Slot) -> None: ...

    def populated(self, gfn: int, count: int) -> None: ...

    def released(self, gfn: int, count: int) -> None: ...

    def time_info(self) -> bytes:
        return bytes(abi.VCPU_TIME_INFO.size)


class FakeHost:
    """Hypervisor, Dom0 and store; nothing happens but in `settle`."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.xen = Xen()
        self.control = Control(self.xen, self.loop)
        self.server = store.start(self.control)
        self.store = StoreClient(self.server)
        self.store.mkdir("/local/domain/0/backend")
        self.domus: list[FakeDomU] = []

    def settle(self) -> None:
        """Let Dom0 do what there is to do."""
        self.loop.run_soon()

    def holdings(self) -> tuple[int, int, int, int]:
        """What Dom0 holds: mapped grants, open ports, domains, watches; and how many nodes there are."""
        domain = self.control.domain
        return (
            len(domain.grants.maptrack),
            domain.events.open_ports,
            len(self.xen.domains),
            sum(self.server.store.owned.values()),
        )


class FakeDomU:
    """A domain whose memory, grants and ports the test uses as its kernel would."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.memory = GuestMemory(PAGES * PAGE)
        self.written: list[tuple[int, int]] = []
        self.memory.listen(lambda gpa, length: self.written.append((gpa, length)))
        self.domain = host.xen.create_domain(self.memory, upcall=NoUpcall())
        self.domid = self.domain.domid
        self._free_refs = list(range(2047, _FIRST_REF - 1, -1))
        self._free_pages = list(range(PAGES - 1, 0, -1))
        self.domain.grants.grow(4)
        home = f"/local/domain/{self.domid}"
        host.store.mkdir(home)
        host.store.set_permissions(home, (f"n{self.domid}",))
        host.domus.append(self)
        self.rings: list[FrontRing] = []
        self.dead = False

    def page(self, gfn: int) -> memoryview:
        return self.memory.view(gfn * PAGE, PAGE)

    def new_page(self) -> int:
        """A page of zeroes that nobody uses: its gfn."""
        gfn = self._free_pages.pop()
        self.page(gfn)[:] = bytes(PAGE)
        return gfn

    def free_page(self, gfn: int) -> None:
        self._free_pages.append(gfn)

    def grant(self, gfn: int, *, readonly: bool = False, to: int = 0) -> int:
        """gnttab_grant_foreign_access"""
        ref = self._free_refs.pop()
        flags = gnt.GTF_PERMIT_ACCESS | (gnt.GTF_READONLY if readonly else 0)
        gnt.GRANT_ENTRY_V1.pack_into(self.domain.grants.frame(ref // 512), ref % 512 * 8, flags, to, gfn)
        return ref

    def in_use(self, ref: int) -> bool:
        """Whether the hypervisor says that somebody has the grant mapped."""
        (flags,) = self.domain.grants.frame(ref // 512)[ref % 512 * 8 : ref % 512 * 8 + 1]
        return bool(flags & (gnt.GTF_READING | gnt.GTF_WRITING))

    def revoke(self, ref: int) -> None:
        """gnttab_end_foreign_access_ref, which has to succeed."""
        assert not self.in_use(ref)
        self.domain.grants.frame(ref // 512)[ref % 512 * 8 : ref % 512 * 8 + 8] = bytes(8)
        self._free_refs.append(ref)

    def new_port(self) -> int:
        """EVTCHNOP_alloc_unbound for Dom0"""
        return self.domain.events.alloc_unbound(abi.DOMID_SELF, 0)

    def send(self, port: int) -> None:
        self.domain.events.send(port)

    def take_event(self, port: int) -> bool:
        """Whether an event has come at `port` since the last time."""
        at, bit = abi.SHARED_EVTCHN_PENDING + port // 8, 1 << port % 8
        found = self.domain.shared_info[at] & bit
        self.domain.shared_info[at] &= ~bit
        return bool(found)

    def die(self) -> None:
        """The toolstack destroys the domain: the store forgets it, the hypervisor destroys it."""
        self.dead = True
        self.host.store.remove(f"/local/domain/{self.domid}")
        self.host.xen.destroy(self.domain)

    def close(self) -> None:
        """Give its memory back, of which nobody else may have a piece left."""
        for ring in self.rings:
            ring.release()
        self.rings.clear()
        self.memory.close()


class FrontRing:
    """The front-end's side of a ring in `pages` of `domu`."""

    def __init__(self, domu: FakeDomU, gfns: list[int], entry_size: int) -> None:
        self.views = [domu.page(gfn) for gfn in gfns]
        self.size = ring_size(entry_size, PAGE * len(gfns))
        self.entry_size = entry_size
        self.indices = self.views[0].cast("I")
        self.indices[REQ_EVENT] = self.indices[RSP_EVENT] = 1
        self.req_prod = self.rsp_cons = 0
        domu.rings.append(self)

    def _at(self, index: int, data: bytes | None, size: int) -> bytes:
        """Bytes of an entry, across pages; written first if there are `data`."""
        found = bytearray()
        for i in range(size):
            page, offset = divmod(ENTRIES_AT + self.entry_size * (index % self.size) + i, PAGE)
            if data is not None:
                self.views[page][offset] = data[i]
            found.append(self.views[page][offset])
        return bytes(found)

    @property
    def room(self) -> int:
        return self.size - (self.req_prod - self.rsp_cons & _U32)

    def put(self, request: bytes) -> None:
        self._at(self.req_prod, request, len(request))
        self.req_prod = self.req_prod + 1 & _U32

    def push(self) -> bool:
        """RING_PUSH_REQUESTS_AND_CHECK_NOTIFY"""
        old = self.indices[REQ_PROD]
        self.indices[REQ_PROD] = self.req_prod
        return self.req_prod - self.indices[REQ_EVENT] & _U32 < self.req_prod - old & _U32

    def take(self, size: int) -> bytes | None:
        """The next response."""
        if self.rsp_cons == self.indices[RSP_PROD]:
            return None
        found = self._at(self.rsp_cons, None, size)
        self.rsp_cons = self.rsp_cons + 1 & _U32
        return found

    def rest(self) -> bool:
        """RING_FINAL_CHECK_FOR_RESPONSES"""
        self.indices[RSP_EVENT] = self.rsp_cons + 1 & _U32
        return self.rsp_cons != self.indices[RSP_PROD]

    def release(self) -> None:
        self.indices.release()
        for view in self.views:
            view.release()


class Nodes:
    """A front-end's view of its device in the store."""

    def __init__(self, domu: FakeDomU, device: XenDevice) -> None:
        self.store = domu.host.store
        self.device = device

    def write(self, **nodes: str | int) -> None:
        """Nodes of the front-end; "__" stands for "/" and "_" for "-"."""
        for name, value in nodes.items():
            self.store.write(f"{self.device.frontend_path}/{name.replace('__', '/').replace('_', '-')}", value)

    def backend(self, name: str) -> str | None:
        return self.store.get(f"{self.device.backend_path}/{name}")

    def error(self) -> str | None:
        path = self.device.backend_path.replace("/0/", "/0/error/", 1)
        return self.store.get(f"{path}/error")

    @property
    def state(self) -> XenbusState:
        return XenbusState(int(self.backend("state") or 0))

    def switch(self, state: XenbusState) -> None:
        self.write(state=int(state))


@contextmanager
def fake_host() -> Iterator[FakeHost]:
    """A host that has to have everything back at the end."""
    host = FakeHost()
    try:
        yield host
    finally:
        host.settle()
        for domu in host.domus:
            if not domu.dead:
                domu.die()
        host.settle()
        assert list(host.xen.domains) == [0]
        assert not len(host.control.domain.grants.maptrack)
        for domu in host.domus:
            domu.close()
        host.server.close()
        host.control.close()
