"""A hypercall of a PV guest on its way: as any (`xen.call.Call`), with the machine that the guest's kernel sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bivisor.xen.call import Call
from bivisor.xen.domain import Domain
from bivisor.xen.hypervisor import Xen

if TYPE_CHECKING:
    from bivisor.xen.pv.machine import PvMachine


class PvCall(Call):
    """`machine` is the caller's; guest handles are translated by its page tables."""

    __slots__ = ("machine",)

    def __init__(
        self, hypervisor: Xen, domain: Domain, vcpu: int, machine: PvMachine, give_way: Callable[[], bool]
    ) -> None:
        super().__init__(hypervisor, domain, vcpu, machine, give_way)
        self.machine = machine
