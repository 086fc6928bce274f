"""A domain whose kernel is this program: memory, grants, event channels, a place in the store; nothing runs.

Front-ends written in Python live in one, to try back-ends from the side on which a guest is. It is an ordinary domain
of the hypervisor's: what it does goes by its own grant table and event channels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from bivisor.abi.xen import grant_table as gnt
from bivisor.abi.xen import xen as abi
from bivisor.errors import UsageError
from bivisor.memory import PAGE, GuestMemory, Slot

if TYPE_CHECKING:
    from bivisor.toolstack.xenhost import XenHost

_MEMORY = 4 << 20
_FRAMES = 4
_REFS_A_FRAME = PAGE // gnt.GRANT_ENTRY_V1.size
_WORD = struct.Struct("<Q")


class PyDomain:
    """A domain of `host`. `with` destroys it. Its methods are called with the loop's lock held, or while nothing else
    works with its devices; handlers are called in the loop's thread with the lock held."""

    def __init__(self, host: XenHost, name: str = "python", memory: int = _MEMORY) -> None:
        self.host = host
        self.name = name
        self.memory = GuestMemory(memory, name="bivisor-pydomain")
        try:
            self.domain = host.xen.create_domain(self.memory, upcall=self)
        except BaseException:
            self.memory.close()
            raise
        self.domid = self.domain.domid
        self.path = f"/local/domain/{self.domid}"
        self.domain.grants.grow(_FRAMES)
        self._pages = list(range(memory // PAGE - 1, 0, -1))
        self._refs = list(range(_FRAMES * _REFS_A_FRAME - 1, gnt.RESERVED_ENTRIES - 1, -1))
        self._handlers: dict[int, Callable[[], None]] = {}
        self._scheduled = False
        with host.loop.lock:
            host.store.mkdir(self.path)
            host.store.set_permissions(self.path, (f"n{self.domid}",))
            host.store.write(f"{self.path}/name", name)

    # ---------------------------------------------------------------- memory and grants

    def new_page(self) -> int:
        """The frame number of a page of zeroes that nobody uses. UsageError where there is none."""
        if not self._pages:
            raise UsageError(f"domain {self.name} has no page left")
        gfn = self._pages.pop()
        self.memory.view(gfn * PAGE, PAGE)[:] = bytes(PAGE)
        return gfn

    def page(self, gfn: int) -> memoryview:
        """The bytes of a page. To be released before the domain is closed."""
        return self.memory.view(gfn * PAGE, PAGE)

    def free_page(self, gfn: int) -> None:
        """The page is not used any more."""
        self._pages.append(gfn)

    def grant(self, gfn: int, *, to: int = 0, readonly: bool = False) -> int:
        """Let domain `to` map a page: the reference (xen/include/public/grant_table.h, version 1)."""
        ref = self._refs.pop()
        flags = gnt.GTF_PERMIT_ACCESS | (gnt.GTF_READONLY if readonly else 0)
        frame, index = divmod(ref, _REFS_A_FRAME)
        gnt.GRANT_ENTRY_V1.pack_into(self.domain.grants.frame(frame), index * gnt.GRANT_ENTRY_V1.size, flags, to, gfn)
        return ref

    def revoke(self, ref: int) -> None:
        """Take a grant back. UsageError while it is mapped: the page must not be used for anything else then."""
        frame, index = divmod(ref, _REFS_A_FRAME)
        entries, at = self.domain.grants.frame(frame), index * gnt.GRANT_ENTRY_V1.size
        if entries[at] & (gnt.GTF_READING | gnt.GTF_WRITING):
            raise UsageError(f"grant {ref} of domain {self.name} is mapped")
        entries[at : at + gnt.GRANT_ENTRY_V1.size] = bytes(gnt.GRANT_ENTRY_V1.size)
        self._refs.append(ref)

    # ---------------------------------------------------------------- events

    def new_port(self, handler: Callable[[], None], *, remote: int = 0) -> int:
        """EVTCHNOP_alloc_unbound: a port that domain `remote` may bind to; `handler` is called when it sends."""
        with self.host.xen.lock:
            port = self.domain.events.alloc_unbound(abi.DOMID_SELF, remote)
        self._handlers[port] = handler
        return port

    def send(self, port: int) -> None:
        """EVTCHNOP_send."""
        with self.host.xen.lock:
            self.domain.events.send(port)

    def close_port(self, port: int) -> None:
        """EVTCHNOP_close."""
        if self._handlers.pop(port, None) is not None:
            with self.host.xen.lock:
                self.domain.events.close(port)

    def _drain(self) -> None:
        self._scheduled = False
        shared, due = self.domain.shared_info, []
        with self.host.xen.lock:
            info = self.domain.vcpus[0].info
            info[abi.VCPU_UPCALL_PENDING] = 0
            _WORD.pack_into(info, abi.VCPU_PENDING_SEL, 0)
            for port in self._handlers:
                at, bit = abi.SHARED_EVTCHN_PENDING + port // 8, 1 << port % 8
                if shared[at] & bit:
                    shared[at] &= ~bit
                    due.append(port)
        for port in due:
            if handler := self._handlers.get(port):
                handler()

    # ---------------------------------------------------------------- domain.Upcall

    def event(self, vcpu: int) -> None:
        """See `Upcall.event`."""
        del vcpu
        if not self._scheduled:
            self._scheduled = True
            self.host.loop.call_soon(self._drain)

    def wake(self, vcpu: int) -> None:
        """See `Upcall.wake`: it does not poll."""

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        """See `Upcall.block`: it does not block."""

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        """See `Upcall.set_timer`: a program has timers of its own."""

    def add_slot(self, slot: Slot) -> None:
        """See `Upcall.add_slot`: it has no processor."""

    def populated(self, gfn: int, count: int) -> None:
        """See `Upcall.populated`."""

    def released(self, gfn: int, count: int) -> None:
        """See `Upcall.released`."""

    def time_info(self) -> bytes:
        """See `Upcall.time_info`: nobody reads it."""
        return bytes(abi.VCPU_TIME_INFO.size)

    # ---------------------------------------------------------------- its end

    def close(self) -> None:
        """Destroy it. Its devices have to be gone before."""
        host = self.host
        with host.loop.lock:
            host.store.remove(self.path)
        host.settle()
        host.xen.destroy(self.domain)
        host.xen.when_gone(self.domain, self.memory.close)

    def __enter__(self) -> PyDomain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
