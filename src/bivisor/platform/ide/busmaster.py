"""The bus master of one channel: it moves the data of a DMA command to and from where a table in guest memory says.

Specification: Programming Interface for Bus Master IDE Controller, revision 1.0; PIIX3 data sheet, "BMICX".
"""

from __future__ import annotations

import struct

from bivisor.errors import GuestAddressError
from bivisor.platform.fwcfg import Memory
from bivisor.platform.ide.channel import Channel
from bivisor.platform.ide.transfer import RANGE, add_range, carry

START, READ = 0x01, 0x08
ACTIVE, ERROR, INTERRUPT = 0x01, 0x02, 0x04
_KEPT = 0x60
_PRD = struct.Struct("<II")
_END_OF_TABLE = 0x8000_0000
PRDS_MAX = 8192  # a table fills at most 64 KiB


class BusMaster:
    """Eight ports. The transfer takes place when the guest has started it and the drive has a DMA command."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._command = self._status = self._table = 0
        self.channel: Channel

    def read(self, offset: int, size: int) -> int:
        """Command at 0, status at 2, table address at 4."""
        registers = struct.pack("<BxBxI", self._command, self._status, self._table)
        return int.from_bytes(registers[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Likewise; error and interrupt in the status are cleared by ones."""
        if offset == 0:
            self._set_command(value & (START | READ))
        elif offset == 2:
            self._status = self._status & ACTIVE | value & _KEPT | self._status & ~value & (ERROR | INTERRUPT)
        elif offset == 4 and size == 4:
            self._table = value & ~3

    def interrupted(self) -> None:
        """The drive interrupts."""
        self._status |= INTERRUPT

    def _set_command(self, value: int) -> None:
        started = value & START and not self._command & START
        self._command = value
        if not value & START:
            self._status &= ~ACTIVE
        elif started:
            self._status |= ACTIVE
            self.transfer()

    def transfer(self) -> None:
        """Move the data, if both sides are ready."""
        drive = self.channel.drive
        if not self._status & ACTIVE or drive is None or drive.dma is None:
            return
        dma = drive.dma
        try:
            # a table may be shorter than the command
            failed = carry(self._memory, dma, self._ranges(dma.length)) < dma.length
        except (GuestAddressError, OSError):
            failed = True
        if failed:
            self._status |= ERROR
        self._status &= ~ACTIVE
        self._status |= INTERRUPT
        self.channel.dma_done(failed)

    def _ranges(self, length: int) -> list[RANGE]:
        """The (address, length) pairs of the table, as far as `length` bytes reach; neighbours become one."""
        found: list[RANGE] = []
        at = self._table
        for _ in range(PRDS_MAX):  # a table without an end would hold up the host
            address, count = _PRD.unpack(self._memory.view(at, _PRD.size))
            size = min((count & 0xFFFE) or 0x10000, length)
            add_range(found, address & ~1, size)
            length -= size
            if count & _END_OF_TABLE or not length:
                break
            at += _PRD.size
        return found
