"""What a device model asks Xen for, as methods (libxendevicemodel in C). See `domctl.py` for how."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from struct import Struct

from bivisor.abi.xen import dm_op as abi
from bivisor.abi.xen.dm_op import DmOp
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import Hypercall, ShutdownReason
from bivisor.memory import PAGE
from bivisor.xen.errors import XenError

ROOM = PAGE
"""How much of Dom0's memory `Emulation` needs."""

_OP = 64
_AT = _OP + abi.HEADER.size


class Emulation:
    """dm_op by name. XenError with Xen's number where it refuses."""

    def __init__(
        self, hypercall: Callable[..., int], lock: AbstractContextManager[object], room: memoryview, address: int
    ) -> None:
        """`room` is `ROOM` bytes of Dom0's memory at `address`, for one operation at a time."""
        self._hypercall = hypercall
        self._lock = lock
        self._room = room
        self._address = address
        abi.BUF.pack_into(room, 0, address + _OP, abi.SIZE)

    def _op(self, domid: int, op: DmOp, layout: Struct, *fields: int) -> tuple[int, ...]:
        room = self._room
        with self._lock:
            abi.HEADER.pack_into(room, _OP, op)
            layout.pack_into(room, _AT, *fields)
            result = self._hypercall(Hypercall.DM_OP, domid, 1, self._address)
            if result < 0:
                raise XenError(Errno(-result))
            return layout.unpack_from(room, _AT)

    def create_server(self, domid: int) -> int:
        """A server with a ring of buffered writes: its number."""
        return self._op(domid, DmOp.CREATE_IOREQ_SERVER, abi.CREATE_IOREQ_SERVER, abi.BUFIOREQ_ATOMIC, 0)[1]

    def buffer_port(self, domid: int, server: int) -> int:
        """The event channel of that ring, in the domain."""
        layout = abi.GET_IOREQ_SERVER_INFO
        return self._op(domid, DmOp.GET_IOREQ_SERVER_INFO, layout, server, abi.NO_GFNS, 0, 0, 0)[2]

    def map_range(self, domid: int, server: int, kind: int, start: int, end: int) -> None:
        """Accesses from `start` to `end` are the server's. `kind` is one of IO_RANGE_*."""
        self._op(domid, DmOp.MAP_IO_RANGE_TO_IOREQ_SERVER, abi.IO_RANGE, server, kind, start, end)

    def unmap_range(self, domid: int, server: int, kind: int, start: int, end: int) -> None:
        """Undo `map_range`."""
        self._op(domid, DmOp.UNMAP_IO_RANGE_FROM_IOREQ_SERVER, abi.IO_RANGE, server, kind, start, end)

    def enable_server(self, domid: int, server: int, enabled: bool) -> None:
        """Accesses come from now on, or no more."""
        self._op(domid, DmOp.SET_IOREQ_SERVER_STATE, abi.SET_IOREQ_SERVER_STATE, server, enabled)

    def destroy_server(self, domid: int, server: int) -> None:
        """Give it back."""
        self._op(domid, DmOp.DESTROY_IOREQ_SERVER, abi.DESTROY_IOREQ_SERVER, server)

    def set_pci_intx(self, domid: int, slot: int, pin: int, level: bool) -> None:
        """The level of `pin` (0 to 3) of the PCI device in `slot`."""
        self._op(domid, DmOp.SET_PCI_INTX_LEVEL, abi.SET_PCI_INTX_LEVEL, 0, 0, slot, pin, level)

    def set_isa_irq(self, domid: int, irq: int, level: bool) -> None:
        """The level of an ISA interrupt."""
        self._op(domid, DmOp.SET_ISA_IRQ_LEVEL, abi.SET_ISA_IRQ_LEVEL, irq, level)

    def set_pci_link(self, domid: int, link: int, irq: int) -> None:
        """Link 0 to 3 of the PCI pins goes to ISA interrupt `irq` (0: none)."""
        self._op(domid, DmOp.SET_PCI_LINK_ROUTE, abi.SET_PCI_LINK_ROUTE, link, irq)

    def inject_msi(self, domid: int, address: int, data: int) -> None:
        """A message-signalled interrupt."""
        self._op(domid, DmOp.INJECT_MSI, abi.INJECT_MSI, data, address)

    def shut_down(self, domid: int, reason: ShutdownReason) -> None:
        """The domain ends: its guest has pressed a button of the board."""
        self._op(domid, DmOp.REMOTE_SHUTDOWN, abi.REMOTE_SHUTDOWN, reason)

    def close(self) -> None:
        """Let go of Dom0's memory."""
        self._room.release()
