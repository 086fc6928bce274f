"""A hypercall of a PV guest on its way: as any (`xen.call.Call`), with the machine that the guest's kernel sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bivisor.abi.xen.errno import Errno
from bivisor.memory import PAGE
from bivisor.xen.call import Call
from bivisor.xen.domain import Domain
from bivisor.xen.errors import XenError
from bivisor.xen.hypervisor import Xen

if TYPE_CHECKING:
    from bivisor.xen.pv.machine import PvMachine

_MASK: Final = (1 << 64) - 1


class PvCall(Call):
    """`machine` is the caller's; guest handles are translated by its page tables."""

    __slots__ = ("machine",)

    def __init__(
        self, hypervisor: Xen, domain: Domain, vcpu: int, machine: PvMachine, give_way: Callable[[], bool]
    ) -> None:
        super().__init__(hypervisor, domain, vcpu, machine, give_way)
        self.machine = machine

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """See `Call.write`. What the guest cannot write itself, its page tables among it, is no place: EFAULT."""
        may_write = self.machine.may_write
        for at in (address, *range((address | PAGE - 1) + 1, address + len(data), PAGE)):
            if not may_write(at & _MASK):
                raise XenError(Errno.EFAULT)
        super().write(address, data)
