"""One hypercall on its way: who calls, and the guest memory that its handles point to.

Guest handles are checked here and nowhere else: a handle that leaves the guest's memory, at whatever byte, is -EFAULT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from bivisor.abi.xen.errno import Errno
from bivisor.errors import GuestAddressError
from bivisor.memory import PAGE
from bivisor.xen.errors import XenError

if TYPE_CHECKING:
    from bivisor.xen.domain import Domain
    from bivisor.xen.hypervisor import Xen

MAX_COPY = 1 << 20
"""No structure or string of any hypercall is larger; a guest that names more is refused before memory is touched."""


class Preempted(Exception):
    """The hypercall has done a part of its work, and goes on with these arguments when others have had their turn,
    after `pause` seconds at least."""

    def __init__(self, *arguments: int, pause: float = 0.0) -> None:
        self.arguments = arguments
        self.pause = pause


class Translator(Protocol):
    """What guest handles need of the caller's processor."""

    def translate(self, linear: int) -> int | None:
        """The guest-physical address of `linear`, or None."""


class Identity:
    """Handles of a caller without paging of its own: linear is guest-physical (Dom0 in this program)."""

    def translate(self, linear: int) -> int | None:
        """The address itself."""
        return linear


class Call:
    """The caller of the hypercall being carried out. One object for each processor, used again for each call."""

    __slots__ = ("_translator", "domain", "give_way", "hypervisor", "vcpu", "watched")

    def __init__(
        self,
        hypervisor: Xen,
        domain: Domain,
        vcpu: int,
        translator: Translator,
        give_way: Callable[[], bool] = lambda: True,
    ) -> None:
        """`give_way` is called between two parts of a long hypercall, with no lock held. It waits while the domain is
        paused; False abandons the hypercall, because the processor is to stop."""
        self.give_way = give_way
        self.hypervisor = hypervisor
        self.domain = domain
        self.vcpu = vcpu
        self.watched: Mapping[int, Callable[..., int]] | None = None
        """The hypercalls, as they are while somebody listens to them (`watched.py`)."""
        self._translator = translator

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at the guest handle `address`. XenError(EFAULT) where they are not all the guest's memory."""
        parts = [bytes(view) for view in self._views(address, size)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at the guest handle `address`: all of it, or XenError(EFAULT) and nothing."""
        views = self._views(address, len(data))
        at = 0
        for view in views:
            view[:] = data[at : at + len(view)]
            at += len(view)

    def _views(self, address: int, size: int) -> list[memoryview]:
        if not 0 <= size <= MAX_COPY:
            raise XenError(Errno.EFAULT)
        found = []
        memory, translate = self.domain.memory, self._translator.translate
        while True:
            part = min(size, PAGE - (address & PAGE - 1))
            gpa = translate(address & (1 << 64) - 1)
            if gpa is None:
                raise XenError(Errno.EFAULT)
            try:
                found.append(memory.view(gpa, part))
            except GuestAddressError:
                raise XenError(Errno.EFAULT) from None
            size -= part
            if size <= 0:
                return found
            address += part

    def target(self, domid: int) -> Domain:
        """The domain that an operation names: oneself, or another for a privileged caller. ESRCH, EPERM."""
        return self.hypervisor.target(self.domain, domid)
