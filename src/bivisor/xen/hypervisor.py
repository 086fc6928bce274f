"""The hypervisor: which domains there are, and the way of every hypercall into them.

It holds no policy. Domains are created by whoever builds them (the toolstack, by Dom0's privilege); what runs their
code is an engine (`guest.py`), or Python in the case of this program's Dom0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.memory import GuestMemory
from bivisor.xen.domain import Domain, State, Upcall
from bivisor.xen.errors import XenError
from bivisor.xen.event_channel import EventChannels
from bivisor.xen.grant_table import GrantTable

LOG_LIMIT = 16 << 10


class Xen:
    """One hypervisor. Two of them may live in one process and know nothing of each other.

    `lock` serialises hypercalls and domain life: a hypercall holds it while it runs, as short as it is.
    """

    def __init__(self, *, now: Callable[[], int] = time.monotonic_ns, wall: Callable[[], int] = time.time_ns) -> None:
        self.lock = threading.RLock()
        self.domains: dict[int, Domain] = {}
        self.log = bytearray()
        self._now = now
        self._boot = now()
        self.wall = wall
        self._next_domid = 1

    def system_time(self) -> int:
        """Nanoseconds since this hypervisor began (vcpu_time_info.system_time)."""
        return self._now() - self._boot

    def create_domain(
        self,
        memory: GuestMemory,
        *,
        upcall: Upcall,
        privileged: bool = False,
        vcpus: int = 1,
        max_pages: int | None = None,
    ) -> Domain:
        """A new domain, paused. The first privileged one is domain 0. EBUSY if Dom0 is there already."""
        with self.lock:
            domid = 0 if privileged else self._new_domid()
            if domid in self.domains:
                raise XenError(Errno.EBUSY)
            domain = Domain(domid, memory, privileged=privileged, vcpus=vcpus, max_pages=max_pages, upcall=upcall)
            domain.events = EventChannels(domain, self.find)
            domain.grants = GrantTable(domain, self)
            domain.state = State.PAUSED
            self.domains[domid] = domain
            return domain

    def _new_domid(self) -> int:
        """The next id that no domain has, dying ones included; ids start over only when all have been used."""
        for _ in range(abi.DOMID_FIRST_RESERVED):
            domid = self._next_domid
            self._next_domid = domid % (abi.DOMID_FIRST_RESERVED - 1) + 1
            if domid not in self.domains:
                return domid
        raise XenError(Errno.ENOSPC)

    def find(self, domid: int) -> Domain:
        """The domain with this id. ESRCH."""
        try:
            return self.domains[domid]
        except KeyError:
            raise XenError(Errno.ESRCH) from None

    def target(self, caller: Domain, domid: int) -> Domain:
        """The domain that `caller` names in an operation: itself, or another if it is privileged. ESRCH, EPERM."""
        if domid == abi.DOMID_SELF or domid == caller.domid:
            return caller
        if not caller.privileged:
            raise XenError(Errno.EPERM)
        return self.find(domid)

    def map_foreign(self, caller: Domain, domid: int, gfn: int) -> memoryview:
        """Frame `gfn` of domain `domid` for a privileged caller: a view of its own of the same memory. EPERM, ESRCH."""
        if not caller.privileged:
            raise XenError(Errno.EPERM)
        return self.find(domid).frame(gfn)[:]

    def map_frame(self, domain: Domain, gfn: int, view: memoryview, readonly: bool) -> None:
        """Let guest `domain` see another's memory at `gfn`. XenError(ENOSYS): no engine does that yet."""
        raise XenError(Errno.ENOSYS)

    def unmap_frame(self, domain: Domain, gfn: int) -> None:
        """Take back what `map_frame` put at `gfn`. XenError(EINVAL) where nothing was put."""
        raise XenError(Errno.EINVAL)

    def shutdown(self, domain: Domain, reason: abi.ShutdownReason) -> None:
        """SCHEDOP_shutdown: the domain stops and waits for the toolstack, which VIRQ_DOM_EXC tells."""
        with self.lock:
            if domain.state in (State.SHUTDOWN, State.DYING, State.GONE):
                return
            domain.state = State.SHUTDOWN
            domain.shutdown_reason = reason
            self._tell_dom0()

    def destroy(self, domain: Domain) -> None:
        """Give back what the domain has. It is gone when nobody holds a reference to it any more."""
        with self.lock:
            if domain.state in (State.DYING, State.GONE):
                return
            domain.state = State.DYING
            domain.events.destroy()
            domain.grants.destroy()
            self.release(domain)
            self._tell_dom0()

    def release(self, domain: Domain) -> None:
        """A reference to a dying domain went: it is gone if that was the last."""
        with self.lock:
            if domain.state is State.DYING and not domain.references:
                domain.state = State.GONE
                self.domains.pop(domain.domid, None)
                for gone in domain.on_gone:
                    gone(domain)

    def _tell_dom0(self) -> None:
        dom0 = self.domains.get(0)
        if dom0 is not None:
            dom0.events.raise_virq(abi.Virq.DOM_EXC, 0)

    def console_write(self, domain: Domain, data: bytes) -> None:
        """CONSOLEIO_write: into the hypervisor's log, which keeps its last 16 KiB."""
        del domain
        self.log += data
        del self.log[:-LOG_LIMIT]
