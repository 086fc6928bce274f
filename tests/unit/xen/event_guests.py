"""Domains for the tests of event channels: some pages of memory, and an upcall that writes down what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import PAGE_SHIFT
from bivisor.memory import GuestMemory, Slot
from bivisor.memory.atomics import Atomics
from bivisor.xen.domain import Domain, State
from bivisor.xen.errors import XenError
from bivisor.xen.event_channel import EventChannels


class Notebook:
    """An `Upcall` that runs nothing: `events` and `woken` are the processors that it was told of, in order."""

    def __init__(self) -> None:
        self.events: list[int] = []
        self.woken: list[int] = []

    def event(self, vcpu: int) -> None:
        self.events.append(vcpu)

    def wake(self, vcpu: int) -> None:
        self.woken.append(vcpu)

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        raise AssertionError

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        raise AssertionError

    def add_slot(self, slot: Slot) -> None: ...

    def populated(self, gfn: int, count: int) -> None:
        raise AssertionError

    def released(self, gfn: int, count: int) -> None:
        raise AssertionError

    def time_info(self) -> bytes:
        raise AssertionError


class World:
    """Some domains, without a hypervisor around them."""

    def __init__(self) -> None:
        self.domains: dict[int, Domain] = {}

    def find(self, domid: int) -> Domain:
        try:
            return self.domains[domid]
        except KeyError:
            raise XenError(Errno.ESRCH) from None

    def add(self, domid: int, *, vcpus: int = 1, pages: int = 16, operations: Atomics | None = None) -> Domain:
        """A running domain whose shared_info is guest frame 1. Domain 0 is privileged."""
        memory = GuestMemory(pages << PAGE_SHIFT)
        domain = Domain(domid, memory, privileged=domid == 0, vcpus=vcpus, upcall=Notebook())
        domain.events = EventChannels(domain, self.find, operations=operations)
        domain.state = State.RUNNING
        domain.move_shared_info(domain.frame(1))
        self.domains[domid] = domain
        return domain

    def connect(self, one: Domain, other: Domain) -> tuple[int, int]:
        """An interdomain channel: the port in each."""
        port = one.events.alloc_unbound(one.domid, other.domid)
        return port, other.events.bind_interdomain(one.domid, port)

    def kill(self, domain: Domain) -> None:
        """As the hypervisor does it."""
        domain.state = State.DYING
        domain.events.destroy()
        domain.shared_info = memoryview(b"")
        for vcpu in domain.vcpus:
            vcpu.info = memoryview(b"")
        domain.memory.close()
        self.domains.pop(domain.domid, None)


@contextmanager
def world() -> Iterator[World]:
    """Domains that are gone afterwards, with their memory."""
    made = World()
    yield made
    for domain in list(made.domains.values()):
        made.kill(domain)


def told(domain: Domain) -> list[int]:
    """The processors that were interrupted since the last time that somebody asked."""
    notebook = domain.upcall
    assert isinstance(notebook, Notebook)
    events, notebook.events = notebook.events, []
    return events


def woken(domain: Domain) -> list[int]:
    """The polling processors that were woken since the last time that somebody asked."""
    notebook = domain.upcall
    assert isinstance(notebook, Notebook)
    found, notebook.woken = notebook.woken, []
    return found
