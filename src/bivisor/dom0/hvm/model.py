"""The device model's half of the ioreq protocol: accesses of a domain come out of the page that it shares with Xen, are
carried out on the buses of a board, and go back.

What stands in the page came from Xen, but the numbers in it are the guest's: a bus takes any address, and a pointer to
data is only good where the domain has RAM.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

from bivisor.abi.xen import dm_op, ioreq
from bivisor.abi.xen.xen import RESOURCE_IOREQ_SERVER
from bivisor.dom0.control import Control
from bivisor.dom0.hvm.memory import ForeignMemory
from bivisor.errors import GuestAddressError
from bivisor.platform.bus import Bus
from bivisor.platform.pci.bus import PciBus
from bivisor.xen.errors import XenError

_U64 = struct.Struct("<Q")
_U32 = (1 << 32) - 1
_STRING_MAX = 4096
_SIZES = (1, 2, 4, 8)
MEMORY_RANGES = ((0xA_0000, 0xB_FFFF), (0xC000_0000, 0xFFFF_FFFF))


class IoreqClient:
    """Answers the ioreqs of domain `domid` on `ports` and `mmio`; PCI configuration space is `pci`'s.

    Made and closed with the loop's lock held.
    """

    def __init__(self, control: Control, domid: int, ports: Bus, mmio: Bus, pci: PciBus) -> None:
        self._control = control
        self._emulation = control.emulation
        self._domid = domid
        self._ports = ports
        self._mmio = mmio
        self._pci = pci
        self._memory = ForeignMemory(control, domid)
        self._server = self._emulation.create_server(domid)
        self._buffer, self._page = control.map_resource(domid, RESOURCE_IOREQ_SERVER, self._server, 0, 2)
        self._channels: list[int] = []
        self._closed = False
        self._kinds: dict[int, Callable[[int, int, int | None], int]] = {
            ioreq.IOREQ_TYPE_PIO: partial(_access, ports),
            ioreq.IOREQ_TYPE_COPY: partial(_access, mmio),
            ioreq.IOREQ_TYPE_PCI_CONFIG: self._configuration,
        }

    def start(self, vcpus: int) -> None:
        """All devices are there: take the accesses of `vcpus` processors."""
        number = partial(self._emulation.map_range, self._domid, self._server)
        number(dm_op.IO_RANGE_PORT, 0, 0xFFFF)
        for start, end in MEMORY_RANGES:
            number(dm_op.IO_RANGE_MEMORY, start, end)
        for place in self._pci.places:
            number(dm_op.IO_RANGE_PCI, place, place)
        for vcpu in range(vcpus):
            at = vcpu * ioreq.IOREQ.size
            port = int.from_bytes(self._page[at + ioreq.PORT_AT : at + ioreq.PORT_AT + 4], "little")
            handler = partial(self._event, at)
            channel = self._control.bind(self._domid, port, handler)
            self._channels.append(channel)
            handler.keywords["channel"] = channel
        self._channels.append(
            self._control.bind(self._domid, self._emulation.buffer_port(self._domid, self._server), self._drain)
        )
        self._emulation.enable_server(self._domid, self._server, True)

    def _event(self, at: int, channel: int = 0) -> None:
        """A processor has an ioreq, unless the event is left over from before."""
        page = self._page
        flags_at = at + ioreq.FLAGS_AT
        if self._closed or page[flags_at] & ioreq.STATE_MASK != ioreq.STATE_IOREQ_READY:
            return
        self._drain()  # what was buffered came first
        page[flags_at] = page[flags_at] & ~ioreq.STATE_MASK | ioreq.STATE_IOREQ_INPROCESS
        address, data, count, size, _, _, flags, kind = ioreq.IOREQ.unpack_from(page, at)
        access = self._kinds.get(kind)
        if access is not None and size in _SIZES:
            if flags & ioreq.DATA_IS_PTR:
                self._string(access, address, data, min(count, _STRING_MAX // size), size, flags)
            elif flags & ioreq.DIR_READ:
                _U64.pack_into(page, at + ioreq.DATA_AT, access(address, size, None))
            else:
                access(address, size, data & (1 << 8 * size) - 1)
        elif flags & ioreq.DIR_READ and not flags & ioreq.DATA_IS_PTR:
            _U64.pack_into(page, at + ioreq.DATA_AT, (1 << 64) - 1)
        page[flags_at] = page[flags_at] & ~ioreq.STATE_MASK | ioreq.STATE_IORESP_READY
        try:
            self._control.notify(channel)
        except XenError:  # the domain is going
            return

    def _string(
        self, access: Callable[[int, int, int | None], int], address: int, gpa: int, count: int, size: int, flags: int
    ) -> None:
        """A string instruction on one port, with its data in the domain's memory."""
        try:
            if flags & ioreq.DF:
                gpa -= (count - 1) * size
            view = self._memory.view(gpa, count * size)
        except GuestAddressError:
            return
        order = range(0, count * size, size)
        places = reversed(order) if flags & ioreq.DF else order
        if not flags & ioreq.DIR_READ:
            for place in places:
                access(address, size, int.from_bytes(view[place : place + size], "little"))
            return
        claim = self._ports.find(address)
        read_block = getattr(claim.device, "read_block", None) if claim is not None else None
        if flags & ioreq.DF or read_block is None or claim is None or not read_block(address - claim.base, size, view):
            for place in places:
                view[place : place + size] = access(address, size, None).to_bytes(size, "little")
        self._memory.written(gpa, count * size)

    def _configuration(self, address: int, size: int, value: int | None) -> int:
        place = 0x8000_0000 | (address >> 32 & 0xFFFF) << 8 | address & 0xFF
        if value is None:
            return self._pci.config_read(place, size)
        self._pci.config_write(place, size, value)
        return 0

    def _drain(self) -> None:
        """Carry out what is in the ring of buffered writes."""
        if self._closed:
            return
        page = self._buffer
        read, write = ioreq.BUF_POINTERS.unpack_from(page)
        if write - read & _U32 > ioreq.IOREQ_BUFFER_SLOT_NUM:
            return
        while read != write:
            at = ioreq.BUF_POINTERS.size + read % ioreq.IOREQ_BUFFER_SLOT_NUM * ioreq.BUF_IOREQ.size
            head, data = ioreq.BUF_IOREQ.unpack_from(page, at)
            size = 1 << (head >> 10 & 3)
            read = read + 1 & _U32
            if size == 8:
                at = ioreq.BUF_POINTERS.size + read % ioreq.IOREQ_BUFFER_SLOT_NUM * ioreq.BUF_IOREQ.size
                data |= ioreq.BUF_IOREQ.unpack_from(page, at)[1] << 32
                read = read + 1 & _U32
            access = self._kinds.get(head & 0xFF)
            if access is not None:
                access(head >> 12, size, data & (1 << 8 * size) - 1)
            page[:4] = read.to_bytes(4, "little")

    def close(self) -> None:
        """Take no more accesses, and let go of the pages."""
        self._closed = True
        for channel in self._channels:
            self._control.unbind(channel)
        try:
            self._emulation.destroy_server(self._domid, self._server)
        except XenError:  # the domain has gone before
            pass
        self._page.release()
        self._buffer.release()


def _access(bus: Bus, address: int, size: int, value: int | None) -> int:
    if value is None:
        return bus.read(address, size)
    bus.write(address, size, value)
    return 0
