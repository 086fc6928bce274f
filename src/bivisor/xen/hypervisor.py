"""The hypervisor: which domains there are, and the way of every hypercall into them.

It holds no policy. Domains are created by whoever builds them (the toolstack, by Dom0's privilege); what runs their
code is an engine (`guest.py`), or Python in the case of this program's Dom0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.errors import GuestAddressError
from bivisor.events import Events
from bivisor.memory import PAGE, GuestMemory, Slot
from bivisor.xen.config import PVH, DomainConfig
from bivisor.xen.conring import ConsoleRing
from bivisor.xen.domain import Domain, State, Upcall
from bivisor.xen.errors import XenError
from bivisor.xen.event_channel import EventChannels
from bivisor.xen.grant_table import MAX_GRANT_FRAMES, GrantTable
from bivisor.xen.maptrack import MAX_MAPTRACK_FRAMES
from bivisor.xen.physical import Physical
from bivisor.xen.watched_events import watch_events
from bivisor.xen.watched_grants import watch_grants

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a domain is made of: its memory, and what runs its processors. `vcpus` is how many there are."""

    memory: GuestMemory
    upcall: Upcall
    vcpus: int = 1
    max_pages: int | None = None


class Xen:
    """One hypervisor. Two of them may live in one process and know nothing of each other.

    `lock` serialises hypercalls and domain life: a hypercall holds it while it runs, as short as it is.
    """

    def __init__(self, *, now: Callable[[], int] = time.monotonic_ns, wall: Callable[[], int] = time.time_ns) -> None:
        self.lock = threading.RLock()
        self.domains: dict[int, Domain] = {}
        self.events = Events()
        """What happens in it, and in its domains (docs/events.md)."""
        self.log = ConsoleRing()
        self.physical = Physical()
        self.max_grant_frames = MAX_GRANT_FRAMES
        self.call_later: Callable[[float, Callable[[], None]], None] = lambda _, __: None
        """Calls a function so many seconds later, without the lock. Whoever has a loop brings it: Dom0."""
        self._now = now
        self._boot = now()
        self.wall = wall
        self._next_domid = 1
        self._offered: dict[bytes, Hardware] = {}
        self._leaving: dict[Domain, Callable[[], None]] = {}
        self._is_closed = False

    def system_time(self) -> int:
        """Nanoseconds since this hypervisor began (vcpu_time_info.system_time)."""
        return self._now() - self._boot

    def offer(self, handle: bytes, hardware: Hardware) -> None:
        """What the domain with this handle (its UUID) will be made of.

        Real Xen takes a domain's memory from the machine's and gives it processors that are always there. Here a
        builder makes both, for an engine, before XEN_DOMCTL_createdomain names them by the handle.
        """
        with self.lock:
            self._offered[handle] = hardware

    def withdraw(self, handle: bytes) -> None:
        """Take back an offer that no domain was made of; one that is not there is no error."""
        with self.lock:
            self._offered.pop(handle, None)

    def take_offer(self, handle: bytes) -> Hardware:
        """What `offer` brought. XenError(ENOMEM) where there is nothing to make such a domain of."""
        try:
            return self._offered.pop(handle)
        except KeyError:
            raise XenError(Errno.ENOMEM) from None

    def create_domain(
        self,
        memory: GuestMemory,
        *,
        upcall: Upcall,
        privileged: bool = False,
        vcpus: int = 1,
        max_pages: int | None = None,
        config: DomainConfig | None = None,
        domid: int | None = None,
    ) -> Domain:
        """A new domain, paused; but domain 0, the first privileged one, runs. EBUSY if Dom0 is there, EEXIST, ENOMEM.

        This is the builder's way in; the toolstack's is XEN_DOMCTL_createdomain, which comes here.
        """
        with self.lock:
            if privileged:
                if 0 in self.domains:
                    raise XenError(Errno.EBUSY)
                domid = 0
            elif domid is None:
                domid = self._new_domid()
            elif domid in self.domains:
                raise XenError(Errno.EEXIST)
            config = config or DomainConfig(max_vcpus=vcpus, flags=0 if privileged else PVH)
            domain = Domain(
                domid, memory, privileged=privileged, vcpus=vcpus, max_pages=max_pages, upcall=upcall, config=config
            )
            max_port = None if privileged else config.max_evtchn_port
            domain.events = EventChannels(domain, self.find, max_port=max_port)
            frames = config.max_grant_frames
            domain.grants = GrantTable(
                domain,
                self,
                max_frames=self.max_grant_frames if frames < 0 else frames,
                max_version=config.grant_version,
                maptrack_frames=MAX_MAPTRACK_FRAMES if config.max_maptrack_frames < 0 else config.max_maptrack_frames,
            )
            domain.sites = (watch_events(self, domain), watch_grants(self, domain))
            domain.on_gone.append(lambda gone: self.events.remove(*gone.sites))
            domain.pause()
            if privileged:
                domain.unpause()
            self.domains[domid] = domain
            return domain

    def _new_domid(self) -> int:
        """The next id that no domain has, dying ones included; ids start over only when all have been used. ENOMEM."""
        for _ in range(abi.DOMID_FIRST_RESERVED):
            domid = self._next_domid
            self._next_domid = domid % (abi.DOMID_FIRST_RESERVED - 1) + 1
            if domid not in self.domains:
                return domid
        raise XenError(Errno.ENOMEM)

    def find(self, domid: int) -> Domain:
        """The domain with this id. ESRCH."""
        try:
            return self.domains[domid]
        except KeyError:
            raise XenError(Errno.ESRCH) from None

    def find_any(self, caller: Domain, domid: int) -> Domain:
        """The domain with this id; DOMID_SELF is the caller. ESRCH."""
        return caller if domid == abi.DOMID_SELF else self.find(domid)

    def check_target(self, caller: Domain, domain: Domain) -> None:
        """XenError(EPERM) unless `caller` may do something to `domain`: itself, or any if it is privileged."""
        if domain is not caller and not caller.privileged:
            raise XenError(Errno.EPERM)

    def target(self, caller: Domain, domid: int) -> Domain:
        """The domain that `caller` names in an operation: itself, or another if it is privileged. ESRCH, EPERM."""
        domain = self.find_any(caller, domid)
        self.check_target(caller, domain)
        return domain

    @property
    def free_pages(self) -> int:
        """Pages of the host that no domain has."""
        return max(0, self.physical.pages - sum(domain.pages for domain in self.domains.values()))

    def resource_size(self, domain: Domain, kind: int, number: int) -> int:
        """XENMEM_acquire_resource: how many frames a resource of `domain` has at most. EINVAL, EOPNOTSUPP."""
        match kind, number:
            case abi.RESOURCE_GRANT_TABLE, abi.RESOURCE_GRANT_TABLE_SHARED:
                return domain.grants.max_frames
            case abi.RESOURCE_GRANT_TABLE, abi.RESOURCE_GRANT_TABLE_STATUS:
                return domain.grants.max_status_frames
            case abi.RESOURCE_GRANT_TABLE, _:
                raise XenError(Errno.EINVAL)
            case abi.RESOURCE_IOREQ_SERVER, _ if domain.hvm is not None:
                return domain.hvm.servers.frames(number)
            case abi.RESOURCE_IOREQ_SERVER | abi.RESOURCE_VMTRACE_BUF, _:
                raise XenError(Errno.EINVAL)  # the domain has no such server
            case _:
                raise XenError(Errno.EOPNOTSUPP)

    def acquire_resource(
        self, caller: Domain, domid: int, kind: int, number: int, frame: int, count: int
    ) -> list[memoryview]:
        """XENMEM_acquire_resource for a caller that maps nothing, Dom0: `count` frames from `frame` on, in place.

        XenError: EACCES (a domain with a physmap), EPERM, ESRCH, EINVAL, EOPNOTSUPP.
        """
        with self.lock:
            if caller.is_hvm:
                raise XenError(Errno.EACCES)
            domain = self.target(caller, domid)
            if domain is caller:
                raise XenError(Errno.EPERM)
            if frame < 0 or count < 0 or frame + count > self.resource_size(domain, kind, number):
                raise XenError(Errno.EINVAL)
            if kind == abi.RESOURCE_IOREQ_SERVER and domain.hvm is not None:
                server = domain.hvm.servers.find(caller, number)
                return [server.frame(index)[:] for index in range(frame, frame + count)]
            grants = domain.grants
            find = grants.frame if number == abi.RESOURCE_GRANT_TABLE_SHARED else grants.status_frame
            return [find(index) for index in range(frame, frame + count)]

    def map_foreign(self, caller: Domain, domid: int, gfn: int) -> memoryview:
        """Frame `gfn` of domain `domid` for a privileged caller: a view of its own of the same memory. EPERM, ESRCH,
        EINVAL. Nobody says when it is not used any more, so that it can be no page table again."""
        if not caller.privileged:
            raise XenError(Errno.EPERM)
        domain = self.find(domid)
        view = domain.frame(gfn)[:]
        domain.hold(gfn)
        return view

    def map_foreign_range(self, caller: Domain, domid: int, gpa: int, length: int) -> memoryview:
        """`length` bytes of the domain's own RAM from `gpa` on, or of one of its pages outside that, in place.

        XenError: EPERM, ESRCH, EINVAL where a frame of them is not the domain's."""
        if not caller.privileged:
            raise XenError(Errno.EPERM)
        domain = self.find(domid)
        within = gpa % PAGE
        if within + length <= PAGE:
            return domain.frame(gpa >> abi.PAGE_SHIFT)[within : within + length]
        if domain.has_holes:
            for gfn in range(gpa >> abi.PAGE_SHIFT, (gpa + length - 1 >> abi.PAGE_SHIFT) + 1):
                domain.own_frame(gfn).release()
        try:
            view = domain.memory.view(gpa, length)
        except GuestAddressError:
            raise XenError(Errno.EINVAL) from None
        if view.obj is not domain.memory.ram.view.obj:
            raise XenError(Errno.EINVAL)
        return view

    def foreign_written(self, caller: Domain, domid: int, gpa: int, length: int) -> None:
        """A privileged caller wrote through what `map_foreign_range` gave: XEN_DMOP_modified_memory for one extent, for
        a caller that has no time for a hypercall for each page of a transfer. XenError: EPERM, ESRCH, EINVAL."""
        if not caller.privileged:
            raise XenError(Errno.EPERM)
        memory = self.find(domid).memory
        if not memory.contains(gpa, length):
            raise XenError(Errno.EINVAL)
        memory.written(gpa, length)

    def map_device_memory(self, caller: Domain, domid: int, name: str, slot: Slot | None) -> None:
        """Show memory of the caller's to an HVM domain at `slot`, under a `name`, or no more (None): what a device
        model adds to the physmap of a guest for its frame buffer. XenError: EPERM, ESRCH, EINVAL."""
        if not caller.privileged:
            raise XenError(Errno.EPERM)
        hvm = self.find(domid).hvm
        if hvm is None:
            raise XenError(Errno.EINVAL)
        hvm.windows.show_slot(name, slot)

    def map_frame(self, mapper: Domain, gfn: int, granter: Domain, frame: int, *, readonly: bool) -> None:
        """Let guest `mapper` see `frame` of `granter` at `gfn`, where it has nothing. XenError(EINVAL, ENOMEM)."""
        fd, offset = granter.physmap.source(frame)
        mapper.physmap.map(mapper.place_for(gfn), fd, offset, readonly=readonly)

    def unmap_frame(self, mapper: Domain, gfn: int) -> None:
        """Take back what `map_frame` put at `gfn`. XenError(EINVAL) where nothing was put."""
        mapper.physmap.unmap(gfn)

    def shutdown(self, domain: Domain, reason: abi.ShutdownReason) -> None:
        """SCHEDOP_shutdown: the domain stops and waits for the toolstack, which VIRQ_DOM_EXC tells."""
        with self.lock:
            if domain.state is State.SHUTDOWN or not domain.alive:
                return
            domain.shutdown(reason)
            self._tell_dom0()

    def set_watchdog(self, domain: Domain, number: int, seconds: int) -> int:
        """SCHEDOP_watchdog: the number of the watchdog that was started, or 0 for an old one. EINVAL, ENOSPC."""
        watchdogs = domain.watchdogs
        started = 0
        if not number:
            started = number = next((n for n in (1, 2) if n not in watchdogs), 0)
            if not started:
                raise XenError(Errno.ENOSPC)
        elif number not in watchdogs:
            raise XenError(Errno.EINVAL)
        elif not seconds:
            del watchdogs[number]
            return 0
        watchdogs[number] = self.system_time() + seconds * _SECOND
        if not domain.watched:
            domain.watched = True
            self.call_later(0, lambda: self._watch(domain))
        return started

    def _watch(self, domain: Domain) -> None:
        """Look after a domain's watchdogs, every second: however often it sets them, that is one timer."""
        with self.lock:
            domain.watched = bool(domain.watchdogs) and domain.runnable
            if not domain.watched:
                return
            left = min(domain.watchdogs.values()) - self.system_time()
            if left <= 0:
                self.shutdown(domain, abi.ShutdownReason.WATCHDOG)
            self.call_later(min(1.0, max(0, left) / _SECOND), lambda: self._watch(domain))

    def destroy(self, domain: Domain) -> None:
        """Give back what the domain has. It is gone when nobody holds a reference to it any more."""
        with self.lock:
            if not domain.alive:
                return
            domain.die()
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
                self._tell_dom0()

    def when_gone(self, domain: Domain, work: Callable[[], None]) -> None:
        """Give back what a domain that dies was made of: do `work` without the lock, now if it is gone, else soon after
        the last who has any of it mapped lets go."""
        with self.lock:
            if domain.state is not State.GONE:
                self._leaving[domain] = work
                domain.on_gone.append(self._bury)
                return
        work()

    def _bury(self, domain: Domain) -> None:
        if self._is_closed:
            self._do_last_work(domain)
        else:
            self.call_later(0, lambda: self._do_last_work(domain))

    def _do_last_work(self, domain: Domain) -> None:
        with self.lock:
            work = self._leaving.pop(domain, None)
        if work is not None:
            work()

    def close(self) -> None:
        """Nobody calls later any more: do what was put off for domains that are gone since."""
        self._is_closed = True
        for domain in list(self._leaving):
            if domain.state is State.GONE:
                self._do_last_work(domain)

    def _tell_dom0(self) -> None:
        dom0 = self.domains.get(0)
        if dom0 is not None:
            dom0.events.raise_virq(abi.Virq.DOM_EXC, 0)

    def console_write(self, domain: Domain, data: bytes) -> None:
        """CONSOLEIO_write: into the hypervisor's console ring."""
        del domain
        self.log.write(data)
