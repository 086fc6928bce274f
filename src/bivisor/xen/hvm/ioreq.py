"""An access on its way from a processor to a device model and back, through the page that they share.

The processor's slot goes from NONE to READY here, to INPROCESS and RESP_READY by the device model, and back. Whatever
else it finds there is the end of the domain: the two do not understand each other any more, as in Xen.
"""

from __future__ import annotations

import struct
import threading
from functools import partial
from typing import TYPE_CHECKING

from bivisor.abi.xen import dm_op as dm
from bivisor.abi.xen import ioreq as abi
from bivisor.xen.hvm.servers import IoreqServer, IoreqServers

if TYPE_CHECKING:
    from bivisor.xen.hvm.guest import HvmGuest

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
_CF8_ENABLE = 0x8000_0000
_VGA_START, _VGA_END = 0xA_0000, 0xC_0000
_PATIENCE_S = 0.25
_U64 = struct.Struct("<Q")
_UNDER_WAY = (abi.STATE_IOREQ_READY, abi.STATE_IOREQ_INPROCESS)
_ORDER = {1: 0, 2: 1, 4: 2, 8: 3}
_U32 = (1 << 32) - 1


class BadState(Exception):
    """The device model has left something in the shared page that there cannot be, or the domain ends."""


class Ioreqs:
    """The accesses of processor `vcpu`. One at a time, from its own thread."""

    def __init__(self, guest: HvmGuest, servers: IoreqServers, vcpu: int) -> None:
        self._guest = guest
        self._xen = guest.xen
        self._servers = servers
        self._vcpu = vcpu
        self._at = vcpu * abi.IOREQ.size
        self._answered = threading.Event()
        self._config_address = 0

    def answered(self) -> None:
        """The device model has notified the processor. From any thread."""
        self._answered.set()

    def port(self, port: int, size: int, value: int | None, count: int = 1, gpa: int = 0) -> int:
        """An access to a port: read (None) or write. With `count` above 1 the data is at guest-physical `gpa`."""
        if port == CONFIG_ADDRESS and size == 4 and value is not None:
            self._config_address = value
        elif port & ~3 == CONFIG_DATA and self._config_address & _CF8_ENABLE:
            function = self._config_address >> 8 & 0xFFFF
            server = self._servers.select(dm.IO_RANGE_PCI, function, function)
            if server is not None:
                offset = self._config_address & 0xFC | port & 3
                return self._send(server, abi.IOREQ_TYPE_PCI_CONFIG, function << 32 | offset, size, value, count, gpa)
        server = self._servers.select(dm.IO_RANGE_PORT, port, port + size - 1)
        if server is None:
            return (1 << 8 * size) - 1
        return self._send(server, abi.IOREQ_TYPE_PIO, port, size, value, count, gpa)

    def memory(self, address: int, size: int, value: int | None) -> int:
        """An access to an address that is not memory: read (None) or write."""
        server = self._servers.select(dm.IO_RANGE_MEMORY, address, address + size - 1)
        if server is None:
            return (1 << 8 * size) - 1
        if value is not None and _VGA_START <= address < _VGA_END and self._buffer(server, address, size, value):
            return 0
        if size in _ORDER:
            return self._send(server, abi.IOREQ_TYPE_COPY, address, size, value)
        got = 0
        for at in range(size):  # an odd length: there is no ioreq of such a size
            part = None if value is None else value >> 8 * at & 0xFF
            got |= self._send(server, abi.IOREQ_TYPE_COPY, address + at, 1, part) << 8 * at
        return got

    def _send(
        self, server: IoreqServer, kind: int, address: int, size: int, value: int | None, count: int = 1, gpa: int = 0
    ) -> int:
        page, at = server.page, self._at
        if page[at + abi.FLAGS_AT] & abi.STATE_MASK != abi.STATE_IOREQ_NONE:
            raise BadState("the device model left an ioreq unfinished")
        flags = abi.DIR_READ if value is None else 0
        data = value or 0
        if count > 1:
            flags |= abi.DATA_IS_PTR
            data = gpa
        self._answered.clear()
        port = server.port(self._vcpu)
        abi.IOREQ.pack_into(page, at, address, data, count, size, port, 0, flags | abi.STATE_IOREQ_READY, kind)
        server.emulator.run_now(partial(self._wake, server, port))
        self._wait(page, at + abi.FLAGS_AT)
        page[at + abi.FLAGS_AT] = abi.STATE_IOREQ_NONE
        return int(_U64.unpack_from(page, at + abi.DATA_AT)[0]) & (1 << 8 * size) - 1

    def _wake(self, server: IoreqServer, port: int) -> None:
        with self._xen.lock:
            server.domain.events.send_from_xen(port)

    def _wait(self, page: memoryview, flags_at: int) -> None:
        while True:
            state = page[flags_at] & abi.STATE_MASK
            if state == abi.STATE_IORESP_READY:
                return
            if state not in _UNDER_WAY:
                raise BadState(f"the device model set an ioreq to state {state}")
            if self._guest.stopping:
                raise BadState("the domain ends")
            self._answered.wait(_PATIENCE_S)
            self._answered.clear()

    def _buffer(self, server: IoreqServer, address: int, size: int, value: int) -> bool:
        """Put a write into the ring that nobody waits for; False where it cannot go there. From one thread at a time
        of the domain, which the hypervisor's lock sees to."""
        if server.bufioreq == dm.BUFIOREQ_OFF or size not in _ORDER or address + size > abi.BUF_ADDR_LIMIT:
            return False
        slots = 2 if size == 8 else 1
        page = server.buffer
        with self._xen.lock:
            read, write = abi.BUF_POINTERS.unpack_from(page)
            if not write - read & _U32 <= abi.IOREQ_BUFFER_SLOT_NUM - slots:
                return False  # full, or the device model has put its pointer where it cannot be
            head = abi.IOREQ_TYPE_COPY | _ORDER[size] << 10 | address << 12
            for part in range(slots):
                at = abi.BUF_POINTERS.size + (write + part & _U32) % abi.IOREQ_BUFFER_SLOT_NUM * abi.BUF_IOREQ.size
                abi.BUF_IOREQ.pack_into(page, at, head, value >> 32 * part & _U32)
            page[4:8] = (write + slots & _U32).to_bytes(4, "little")
            server.domain.events.send_from_xen(server.buffer_port)
        return True
