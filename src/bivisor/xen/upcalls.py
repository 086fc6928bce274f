"""How a pending event reaches a virtual processor: `struct vcpu_info` (xen.h), upcalls, and processors that poll.

The two event ABIs (`events_2l.py`, `events_fifo.py`) differ in where a port's bits are; what they share is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bivisor.abi.xen.event_channel import EVTCHN_FIFO_PRIORITY_DEFAULT, EvtchnStat
from bivisor.abi.xen.xen import VCPU_PENDING_SEL, VCPU_UPCALL_PENDING
from bivisor.memory.atomics import Atomics, address_of
from bivisor.xen.domain import Domain


class Channel:
    """One port of a domain, as the hypervisor keeps it. `peer` is the other end of an interdomain channel."""

    __slots__ = (
        "consumer", "last_queue", "owner", "peer", "pending", "port", "priority", "remote_domid", "status",
        "vcpu", "virq",
    )  # fmt: skip

    def __init__(self, owner: Domain, port: int) -> None:
        self.owner = owner
        self.port = port
        self.last_queue = (0, EVTCHN_FIFO_PRIORITY_DEFAULT)
        self.clear()

    def clear(self) -> None:
        """Make it a closed port. What queue it was last in stays: that one's tail may still name it."""
        self.status = EvtchnStat.CLOSED
        self.vcpu = 0
        self.remote_domid = 0
        self.virq = 0
        self.peer: Channel | None = None
        self.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
        self.pending = False
        self.consumer: Callable[[], None] | None = None
        """Takes the events of a port that is the hypervisor's own: the domain sees nothing of them."""


class EventAbi(Protocol):
    """Where the bits of a port are, and what a guest has to be told when one is set."""

    limit: int
    """How many ports there can be."""

    def set_pending(self, channel: Channel) -> None:
        """An event has arrived at the port: pending from now on, its processor told if it is not masked."""

    def clear_pending(self, channel: Channel) -> None:
        """Forget an event that the guest has not seen: the port is being closed."""

    def unmask(self, channel: Channel) -> None:
        """Let events of the port through, one that is pending included."""

    def is_pending(self, port: int) -> bool:
        """Whether the guest has an event of the port to see."""

    def is_busy(self, port: int) -> bool:
        """Whether the guest still has the port in a queue, so that it cannot be given out again."""

    def close(self) -> None:
        """Hold the guest's memory no longer."""


class Upcalls:
    """The processors of one domain, as events tell them."""

    def __init__(self, domain: Domain, atomics: Atomics) -> None:
        self._domain = domain
        self._test_and_set = atomics.test_and_set_bit
        self._infos: list[tuple[memoryview | None, int]] = [(None, 0) for _ in domain.vcpus]

    def address(self, vcpu: int) -> int:
        """Where the host has `struct vcpu_info` of a processor."""
        info = self._domain.vcpus[vcpu].info
        known, address = self._infos[vcpu]
        if known is not info:  # the guest has moved it
            address = address_of(info)
            self._infos[vcpu] = (info, address)
        return address

    def select(self, vcpu: int, word: int) -> None:
        """2-level ABI: there is an unmasked event in word `word` of `evtchn_pending`."""
        if not self._test_and_set(self.address(vcpu) + VCPU_PENDING_SEL, word):
            self.mark(vcpu)

    def mark(self, vcpu: int) -> None:
        """Set `evtchn_upcall_pending`, and interrupt the processor if it was not set."""
        if not self._test_and_set(self.address(vcpu) + VCPU_UPCALL_PENDING, 0):
            self._domain.upcall.event(vcpu)

    def is_marked(self, vcpu: int) -> bool:
        """Whether `evtchn_upcall_pending` is set."""
        return self._domain.vcpus[vcpu].info[VCPU_UPCALL_PENDING] != 0

    def check_pollers(self, port: int) -> None:
        """`port` has become pending, masked or not: wake whoever polls it."""
        for vcpu in self._domain.vcpus:
            if vcpu.polling is not None and port in vcpu.polling:
                vcpu.polling = None
                self._domain.upcall.wake(vcpu.index)

    def close(self) -> None:
        """Hold the guest's memory no longer."""
        self._infos = [(None, 0) for _ in self._infos]
