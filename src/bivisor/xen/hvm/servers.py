"""Ioreq servers (hvm/dm_op.h): who emulates which ports, addresses and PCI functions of a domain.

A server has two pages that its device model maps (XENMEM_acquire_resource): one `struct ioreq` for each processor, and
a ring of buffered writes. What stands in them came from the device model, which may be anybody: it is checked where it
is read (`ioreq.py`).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable

from bivisor.abi.xen import dm_op as abi
from bivisor.abi.xen import ioreq
from bivisor.abi.xen.errno import Errno
from bivisor.memory import PAGE
from bivisor.xen.domain import Domain
from bivisor.xen.errors import XenError

MAX_SERVERS = 8
MAX_RANGES = 256
_KINDS = (abi.IO_RANGE_PORT, abi.IO_RANGE_MEMORY, abi.IO_RANGE_PCI)


class Ranges:
    """Inclusive ranges that do not overlap."""

    def __init__(self) -> None:
        self._found: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        """One more. XenError: EINVAL where it is none, EEXIST where a part is there, ENOMEM for too many."""
        if start > end:
            raise XenError(Errno.EINVAL)
        if any(first <= end and start <= last for first, last in self._found):
            raise XenError(Errno.EEXIST)
        if len(self._found) >= MAX_RANGES:
            raise XenError(Errno.ENOMEM)
        insort(self._found, (start, end))

    def remove(self, start: int, end: int) -> None:
        """Take back one that was added. XenError(ENOENT)."""
        if (start, end) not in self._found:
            raise XenError(Errno.ENOENT)
        self._found.remove((start, end))

    def has(self, start: int, end: int) -> bool:
        """Whether one of them has all from `start` to `end`."""
        at = bisect_right(self._found, (start, 1 << 64)) - 1
        return at >= 0 and self._found[at][0] <= start and end <= self._found[at][1]


class IoreqServer:
    """A server of `domain` for the device model in `emulator`. `bufioreq` is one of HVM_IOREQSRV_BUFIOREQ_*."""

    def __init__(
        self, number: int, domain: Domain, emulator: Domain, bufioreq: int, answered: Callable[[int], None]
    ) -> None:
        self.number = number
        self.domain = domain
        self.emulator = emulator
        self.bufioreq = bufioreq
        self.enabled = False
        self.ranges = {kind: Ranges() for kind in _KINDS}
        self.page = memoryview(bytearray(PAGE))
        self.buffer = memoryview(bytearray(PAGE))
        self._ports = [
            domain.events.alloc_for_xen(emulator.domid, lambda index=index: answered(index))  # type: ignore[misc]
            for index in range(len(domain.vcpus))
        ]
        self.buffer_port = (
            domain.events.alloc_for_xen(emulator.domid, lambda: None) if bufioreq != abi.BUFIOREQ_OFF else 0
        )
        for index, port in enumerate(self._ports):
            at = index * ioreq.IOREQ.size + ioreq.PORT_AT
            self.page[at : at + 4] = port.to_bytes(4, "little")

    def port(self, vcpu: int) -> int:
        """The event channel of processor `vcpu`, in the domain."""
        return self._ports[vcpu]

    def frame(self, number: int) -> memoryview:
        """Frame `number` of its resource. XenError(EINVAL)."""
        if number == abi.FRAME_BUFIOREQ and self.bufioreq == abi.BUFIOREQ_OFF:
            raise XenError(Errno.EINVAL)
        return self.buffer if number == abi.FRAME_BUFIOREQ else self.page

    def close(self) -> None:
        """Its event channels close."""
        for port in (*self._ports, self.buffer_port):
            if port:
                self.domain.events.close_for_xen(port)


class IoreqServers:
    """The servers of a domain, in the order of their numbers; the last one that has a range gets its accesses.

    `answered(vcpu)` is called when a device model notifies the domain of an answer, under the hypervisor's lock.
    """

    def __init__(self, domain: Domain, answered: Callable[[int], None]) -> None:
        self._domain = domain
        self._answered = answered
        self._servers: dict[int, IoreqServer] = {}
        self._order: tuple[IoreqServer, ...] = ()

    def create(self, emulator: Domain, bufioreq: int) -> int:
        """XEN_DMOP_create_ioreq_server: its number. XenError: EINVAL, ENOSPC."""
        if bufioreq > abi.BUFIOREQ_ATOMIC:
            raise XenError(Errno.EINVAL)
        number = next((free for free in range(MAX_SERVERS) if free not in self._servers), None)
        if number is None:
            raise XenError(Errno.ENOSPC)
        self._servers[number] = IoreqServer(number, self._domain, emulator, bufioreq, self._answered)
        return number

    def find(self, emulator: Domain, number: int) -> IoreqServer:
        """The server with this number. ENOENT; EPERM where it is another's."""
        server = self._servers.get(number)
        if server is None:
            raise XenError(Errno.ENOENT)
        if server.emulator is not emulator:
            raise XenError(Errno.EPERM)
        return server

    def frames(self, number: int) -> int:
        """XENMEM_acquire_resource: how many frames a server has. XenError(EINVAL) where there is none."""
        if number not in self._servers:
            raise XenError(Errno.EINVAL)
        return abi.FRAME_IOREQ + 1

    def enable(self, server: IoreqServer, enabled: bool) -> None:
        """XEN_DMOP_set_ioreq_server_state."""
        server.enabled = enabled
        self._order = tuple(each for _, each in sorted(self._servers.items(), reverse=True) if each.enabled)

    def destroy(self, server: IoreqServer) -> None:
        """XEN_DMOP_destroy_ioreq_server."""
        self.enable(server, False)
        del self._servers[server.number]
        server.close()

    def select(self, kind: int, start: int, end: int) -> IoreqServer | None:
        """Who emulates all from `start` to `end`."""
        for server in self._order:
            if server.ranges[kind].has(start, end):
                return server
        return None
