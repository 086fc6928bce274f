"""Guests as far as grants see them: a hypervisor with domains whose memory the test writes as the guest would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.grant_table import GrantTableOp
from bivisor.memory import PAGE, GuestMemory, Slot
from bivisor.xen.call import Call, Identity
from bivisor.xen.config import DomainConfig
from bivisor.xen.hypervisor import Xen
from bivisor.xen.table import hypercall

PAGES = 64
UOP = 32 * PAGE
"""Where a guest's hypercall structures are."""

OUTSIDE = 0x1000
"""A frame number where a guest has no memory, so that it can map another's there."""

PINNED = abi.GTF_READING | abi.GTF_WRITING


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
        return bytes(32)


class Guest:
    """What a guest does with its own memory, and its hypercalls."""

    def __init__(self, xen: Xen, memory: GuestMemory, *, privileged: bool = False, flags: int = 0) -> None:
        self.memory = memory
        config = DomainConfig(flags=flags)  # not HVM, so that it may ask for every operation
        self.domain = xen.create_domain(memory, upcall=NoUpcall(), privileged=privileged, config=config)
        self.domid = self.domain.domid
        self.grants = self.domain.grants
        self.call = Call(xen, self.domain, 0, Identity())

    def page(self, gfn: int) -> memoryview:
        return self.memory.view(gfn * PAGE, PAGE)

    def grant(self, ref: int, to: Guest | int, gfn: int, flags: int = 0) -> None:
        """Write entry `ref`: permit `to` access to frame `gfn`."""
        domid = to if isinstance(to, int) else to.domid
        if self.grants.version == 1:
            self.write_entry(ref, abi.GRANT_ENTRY_V1.pack(abi.GTF_PERMIT_ACCESS | flags, domid, gfn))
        else:
            self.write_entry(ref, abi.GRANT_ENTRY_V2_FULL_PAGE.pack(abi.GTF_PERMIT_ACCESS | flags, domid, gfn))

    def grant_part(self, ref: int, to: Guest, gfn: int, start: int, length: int) -> None:
        flags = abi.GTF_PERMIT_ACCESS | abi.GTF_SUB_PAGE
        self.write_entry(ref, abi.GRANT_ENTRY_V2_SUB_PAGE.pack(flags, to.domid, start, length, gfn))

    def pass_on(self, ref: int, to: Guest, owner: Guest, onward: int, flags: int = 0) -> None:
        entry = abi.GRANT_ENTRY_V2_TRANSITIVE.pack(abi.GTF_TRANSITIVE | flags, to.domid, owner.domid, onward)
        self.write_entry(ref, entry)

    def write_entry(self, ref: int, entry: bytes) -> None:
        per_frame = PAGE // len(entry)
        at = ref % per_frame * len(entry)
        self.grants.frame(ref // per_frame)[at : at + len(entry)] = entry

    def revoke(self, ref: int) -> bool:
        """What a kernel does to end access: False while the entry is in use."""
        if self.pinned(ref):
            return False
        size = 8 if self.grants.version == 1 else 16
        self.write_entry(ref, bytes(size))
        return True

    def pinned(self, ref: int) -> int:
        """GTF_reading and GTF_writing as the guest sees them."""
        if self.grants.version == 1:
            return self.grants.frame(ref // 512)[ref % 512 * 8] & PINNED
        return self.grants.status_frame(ref // 2048)[ref % 2048 * 2] & PINNED

    def op(self, op: GrantTableOp | int, *structures: bytes) -> tuple[int, list[bytes]]:
        """The hypercall on an array of structures: its result, and the structures afterwards."""
        data = b"".join(structures)
        self.memory.view(UOP, len(data))[:] = data
        result = hypercall(self.call, 20, (op, UOP, len(structures)))
        size = len(structures[0]) if structures else 0
        return result, [self.memory.read(UOP + size * i, size) for i in range(len(structures))]


@contextmanager
def world(domus: int = 2) -> Iterator[tuple[Xen, list[Guest]]]:
    """A hypervisor, with Dom0 and so many DomUs."""
    xen = Xen()
    memories = [GuestMemory(PAGES * PAGE) for _ in range(domus + 1)]
    try:
        guests = [Guest(xen, memory, privileged=not i) for i, memory in enumerate(memories)]
        yield xen, guests
    finally:
        for domain in list(xen.domains.values()):
            xen.destroy(domain)
        assert not xen.domains
        for guest in guests:
            guest.domain.physmap.close()
