"""Dom0's way into the hypervisor: what /dev/xen/privcmd, evtchn and gntdev are to a Dom0 that runs Linux.

Back-ends and the toolstack get this object and no other: they reach domains by hypercalls, foreign mappings and event
channels, with Dom0's privilege, and hold no reference to a domain's memory or objects of their own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

from bivisor.abi.xen import xen as abi
from bivisor.dom0 import dmop, domctl
from bivisor.dom0.version import ROOM, Version, version
from bivisor.host.loop import Loop
from bivisor.memory import PAGE, GuestMemory, Slot
from bivisor.xen import grant_ops
from bivisor.xen.call import Call, Identity
from bivisor.xen.hypervisor import Xen
from bivisor.xen.maptrack import Mapping
from bivisor.xen.table import TABLE, hypercall
from bivisor.xen.watched import watch_hypercalls

_MEMORY = 1 << 20
_WORD = struct.Struct("<Q")


class Control:
    """Domain 0 of `xen`, as Python. Event callbacks run in the loop's thread with the loop's lock held."""

    def __init__(self, xen: Xen, loop: Loop) -> None:
        self.xen = xen
        self.loop = loop
        self._memory = GuestMemory(_MEMORY, name="bivisor-dom0")
        self.domain = xen.create_domain(self._memory, upcall=self, privileged=True)
        self.events = xen.events
        self._call = Call(xen, self.domain, 0, Identity())
        self._site = watch_hypercalls(self._call, TABLE)
        self._handlers: dict[int, Callable[[], None]] = {}
        self._scheduled = False
        at = _MEMORY - domctl.ROOM
        xen.call_later = self._call_later
        self.domains = domctl.Domains(self.hypercall, xen.lock, self._memory.view(at, domctl.ROOM), at)
        at -= dmop.ROOM
        self.emulation = dmop.Emulation(self.hypercall, xen.lock, self._memory.view(at, dmop.ROOM), at)
        self.domain.run_now = self._run_now

    def hypercall(self, nr: int, *arguments: int) -> int:
        """Any hypercall; handles are addresses in Dom0's own memory. The result, or a negative error number."""
        return hypercall(self._call, nr, arguments)

    def version(self) -> Version:
        """What hypervisor this is (xen_version)."""
        with self.xen.lock:
            return version(self.hypercall, self._memory.view(0, ROOM), 0)

    def _call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Timers are the loop's; this is called with Xen's lock held, and the loop's may not be taken then."""

        def start() -> None:
            self.loop.call_at(self.loop.now() + seconds, function)

        self.loop.call_soon(start)

    def exists(self, domid: int) -> bool:
        """Whether there is such a domain."""
        return domid in self.xen.domains

    def map_foreign(self, domid: int, gfn: int) -> memoryview:
        """Frame `gfn` of another domain, in place. XenError: ESRCH, EINVAL."""
        with self.xen.lock:
            return self.xen.map_foreign(self.domain, domid, gfn)

    def map_foreign_range(self, domid: int, gpa: int, length: int) -> memoryview:
        """`length` bytes of another domain's RAM from `gpa` on, in place. XenError: ESRCH, EINVAL."""
        with self.xen.lock:
            return self.xen.map_foreign_range(self.domain, domid, gpa, length)

    def foreign_written(self, domid: int, gpa: int, length: int) -> None:
        """Tell that bytes of another domain's RAM were written: an engine may have translated code there. XenError."""
        with self.xen.lock:
            self.xen.foreign_written(self.domain, domid, gpa, length)

    def show_memory(self, domid: int, name: str, slot: Slot | None) -> None:
        """Show memory of Dom0's own to an HVM domain, at `slot`, under a name; None: no more.

        XenError: ESRCH, EINVAL.
        """
        with self.xen.lock:
            self.xen.map_device_memory(self.domain, domid, name, slot)

    def set_param(self, domid: int, index: int, value: int) -> None:
        """HVMOP_set_param."""
        self.domains.set_hvm_param(domid, index, value)

    def map_resource(self, domid: int, kind: int, number: int, frame: int, count: int) -> list[memoryview]:
        """XENMEM_acquire_resource: `count` frames of a resource of `domid`, such as its grant table, in place.

        XenError: ESRCH, EPERM, EINVAL, EOPNOTSUPP.
        """
        return self.xen.acquire_resource(self.domain, domid, kind, number, frame, count)

    def alloc_unbound_for(self, domid: int) -> int:
        """EVTCHNOP_alloc_unbound on behalf of `domid`, reserved for Dom0: the port in that domain."""
        return self.domains.alloc_unbound(domid, self.domain.domid)

    def bind(self, domid: int, remote_port: int, handler: Callable[[], None]) -> int:
        """EVTCHNOP_bind_interdomain: our port; `handler` is called when the other end sends."""
        with self.xen.lock:
            port = self.domain.events.bind_interdomain(domid, remote_port)
        self._handlers[port] = handler
        self._schedule()
        return port

    def bind_virq(self, virq: int, handler: Callable[[], None]) -> int:
        """EVTCHNOP_bind_virq on processor 0."""
        with self.xen.lock:
            port = self.domain.events.bind_virq(virq, 0)
        self._handlers[port] = handler
        return port

    def unbind(self, port: int) -> None:
        """EVTCHNOP_close; a port that is closed already is no error, for its domain may be gone."""
        if self._handlers.pop(port, None) is not None:
            with self.xen.lock:
                self.domain.events.close(port)

    def notify(self, port: int) -> None:
        """EVTCHNOP_send."""
        with self.xen.lock:
            self.domain.events.send(port)

    def map_grants(self, domid: int, refs: Sequence[int], *, readonly: bool = False) -> list[Mapping]:
        """GNTTABOP_map_grant_ref: all of `refs` of domain `domid`, or GrantError and none.

        The `view` of each is the domain's own frame. Slices of it have to go before `unmap_grants`.
        """
        return grant_ops.map_grant_refs(self.domain, domid, refs, readonly=readonly)

    def unmap_grants(self, mappings: Iterable[Mapping]) -> None:
        """GNTTABOP_unmap_grant_ref for each; what was written through their views is told."""
        with self.xen.lock:
            for mapping in mappings:
                grant_ops.unmap_grant_ref(self.domain, mapping.handle)

    def copy_from_grants(self, domid: int, parts: Iterable[tuple[int, int, memoryview]]) -> None:
        """GNTTABOP_copy: fill each view of Dom0's from byte `offset` of grant `ref`: (ref, offset, view). GrantError.

        For data that is used once a copy is cheaper than a map: nobody has to wait for the granter's processor.
        """
        with self.xen.lock:
            for ref, offset, view in parts:
                grant_ops.copy_from(self.domain, grant_ops.GrantEnd(domid, ref, offset), view)

    def copy_to_grants(self, domid: int, parts: Iterable[tuple[int, int, memoryview]]) -> None:
        """GNTTABOP_copy the other way. GrantError, and then some of `parts` may have been copied."""
        with self.xen.lock:
            for ref, offset, view in parts:
                grant_ops.copy_to(self.domain, grant_ops.GrantEnd(domid, ref, offset), view)

    def written(self, mapping: Mapping, start: int = 0, length: int = PAGE) -> None:
        """Tell that bytes of a grant that stays mapped were written: an engine may have translated code there."""
        grant_ops.written(self.domain, mapping, start, length)

    # ---------------------------------------------------------------- domain.Upcall

    def event(self, vcpu: int) -> None:
        """See `Upcall.event`."""
        del vcpu
        self._schedule()

    def wake(self, vcpu: int) -> None:
        """See `Upcall.wake`: Dom0 does not poll."""

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        """See `Upcall.block`: Dom0 is a loop and does not block here."""

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        """See `Upcall.set_timer`: the loop has timers of its own."""

    def add_slot(self, slot: Slot) -> None:
        """See `Upcall.add_slot`: Dom0's processor is the host's."""

    def populated(self, gfn: int, count: int) -> None:
        """See `Upcall.populated`."""

    def released(self, gfn: int, count: int) -> None:
        """See `Upcall.released`."""

    def time_info(self) -> bytes:
        """See `Upcall.time_info`: nobody reads Dom0's."""
        return bytes(abi.VCPU_TIME_INFO.size)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._drain)

    def _run_now(self, wake: Callable[[], None]) -> None:
        """See `Domain.run_now`: Dom0's processor is whatever thread has the loop's lock."""
        with self.loop.lock:
            scheduled, self._scheduled = self._scheduled, True  # it is taken here, so the loop need not wake for it
            try:
                wake()
            finally:
                self._scheduled = scheduled
            self._drain()

    def _drain(self) -> None:
        """The upcall: take pending ports in the order that a kernel does, selector word by selector word."""
        self._scheduled = False
        for port in self._take_pending():
            handler = self._handlers.get(port)
            if handler is not None:
                handler()

    def _take_pending(self) -> list[int]:
        info, shared = self.domain.vcpus[0].info, self.domain.shared_info
        with self.xen.lock:
            info[abi.VCPU_UPCALL_PENDING] = 0
            (selector,) = _WORD.unpack_from(info, abi.VCPU_PENDING_SEL)
            _WORD.pack_into(info, abi.VCPU_PENDING_SEL, 0)
            ports = []
            while selector:
                word = (selector & -selector).bit_length() - 1
                selector &= selector - 1
                (pending,) = _WORD.unpack_from(shared, abi.SHARED_EVTCHN_PENDING + 8 * word)
                _WORD.pack_into(shared, abi.SHARED_EVTCHN_PENDING + 8 * word, 0)
                while pending:
                    ports.append(64 * word + (pending & -pending).bit_length() - 1)
                    pending &= pending - 1
            return ports

    def close(self) -> None:
        """Close every port and give back Dom0's memory."""
        for port in list(self._handlers):
            self.unbind(port)
        self.events.remove(self._site)
        self.domains.close()
        self.emulation.close()
        self._memory.close()
