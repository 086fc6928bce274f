"""One command of an AHCI list: its header, table and ranges, and how a drive carries it out.

Specification: Serial ATA AHCI 1.3.1, section 4.2 (command list and table); Serial ATA 3.0, 13.6 (queued commands). The
drives are those of IDE: a command FIS becomes their task file, their data moves through the table's ranges.
"""

from __future__ import annotations

from dataclasses import dataclass

from bivisor.errors import GuestAddressError
from bivisor.platform.ahci import registers as r
from bivisor.platform.fwcfg import Memory
from bivisor.platform.ide.atapi import PACKET as PACKET_LENGTH
from bivisor.platform.ide.atapi import CdRom
from bivisor.platform.ide.drive import ABRT, ERR, PIECES, Dma, Drive, Pio, TaskFile
from bivisor.platform.ide.transfer import RANGE, add_range, carry

PIO_MAX = 32 << 20
_QUEUED = {r.READ_FPDMA: r.READ_DMA_EXT, r.WRITE_FPDMA: r.WRITE_DMA_EXT}


class CommandError(Exception):
    """The drive could not move the data; its task file says so."""


@dataclass(slots=True)
class Command:
    """`fis` has the 20 bytes of the command FIS, `packet` those of an ATAPI command, `table` its
    `entries` ranges."""

    fis: bytes
    packet: bytes
    flags: int
    entries: int
    table: int
    wants_interrupt: bool = False
    by_pio: bool = False

    @classmethod
    def fetch(cls, memory: Memory, header_at: int) -> Command:
        """Read the command whose header is at `header_at`. GuestAddressError where something of it is no memory."""
        flags, entries, _, table = r.HEADER.unpack(memory.view(header_at, r.HEADER.size))
        table &= ~0x7F
        fis = bytes(memory.view(table, 20))
        packet = bytes(memory.view(table + r.TABLE_ACMD, PACKET_LENGTH)) if flags & r.FLAG_ATAPI else b""
        return cls(fis, packet, flags, entries, table + r.TABLE_PRDT)

    @property
    def is_command(self) -> bool:
        """Whether the FIS carries a command; if not, it is the control register."""
        return self.fis[0] != r.FIS_H2D or bool(self.fis[1] & r.FIS_IS_COMMAND)

    @property
    def control(self) -> int:
        """The device control register."""
        return self.fis[15]

    @property
    def code(self) -> int:
        """The command register."""
        return self.fis[2]

    @property
    def queued(self) -> bool:
        """Whether it is READ or WRITE FPDMA QUEUED."""
        return self.code in _QUEUED

    @property
    def tag(self) -> int:
        """The tag of a queued command."""
        return self.fis[12] >> 3

    @property
    def log_page(self) -> int:
        """The page that READ LOG EXT asks for."""
        return self.fis[4]

    def ranges(self, memory: Memory, length: int) -> list[RANGE]:
        """The first `length` bytes of where the data are (4.2.3.3)."""
        found: list[RANGE] = []
        for number in range(self.entries):
            if not length:
                break
            address, _, word = r.PRD.unpack(memory.view(self.table + number * r.PRD.size, r.PRD.size))
            size = min((word & r.PRD_COUNT | 1) + 1, length)
            self.wants_interrupt |= bool(word & r.PRD_INTERRUPT)
            add_range(found, address & ~1, size)
            length -= size
        return found

    def send(self, memory: Memory, data: bytes | bytearray) -> int:
        """Store `data` in the ranges; how many bytes there was room for."""

        def move(views: PIECES, offset: int) -> None:
            for view in views:
                view[:] = data[offset : offset + len(view)]
                offset += len(view)

        self.by_pio = True
        return carry(memory, Dma(len(data), True, move), self.ranges(memory, len(data)))

    def receive(self, memory: Memory, data: bytearray) -> int:
        """Fill `data` from the ranges; how many bytes they had."""

        def move(views: PIECES, offset: int) -> None:
            for view in views:
                data[offset : offset + len(view)] = view
                offset += len(view)

        return carry(memory, Dma(len(data), False, move), self.ranges(memory, len(data)))

    def task(self, status: int) -> TaskFile:
        """The task file of the FIS. A queued command has its count where others have the feature."""
        f = self.fis
        if self.queued:
            return TaskFile(f[3], f[3], f[4], f[5], f[6], f[7] | 0x40, status, 0, (f[11], f[8], f[9], f[10]))
        return TaskFile(f[3], f[12], f[4], f[5], f[6], f[7], status, 0, (f[13], f[8], f[9], f[10]))


def carry_out(memory: Memory, drive: Drive, command: Command) -> int:
    """Have `drive` carry out `command`; the bytes that were moved. Its task file tells of an end with an error."""
    drive.task = command.task(drive.task.status)
    if command.fis[0] != r.FIS_H2D or (command.code == r.PACKET) != bool(command.packet):
        drive.fail(ABRT)
        return 0
    drive.command(_QUEUED.get(command.code, command.code))
    if command.packet and isinstance(drive, CdRom) and drive.pio is not None and drive.pio.done is not None:
        packet = drive.pio
        packet.data[:] = command.packet
        drive.pio.done(packet.data)
    try:
        if drive.dma is not None:
            return _by_dma(memory, drive, drive.dma, command)
        if drive.pio is not None:
            return _by_pio(memory, drive, drive.pio, command)
    except (GuestAddressError, OSError) as error:
        drive.dma_failed()
        raise CommandError from error
    return 0


def _by_dma(memory: Memory, drive: Drive, dma: Dma, command: Command) -> int:
    moved = carry(memory, dma, command.ranges(memory, dma.length))
    if moved < dma.length:
        drive.dma_failed()
    else:
        drive.finish()
    return moved


def _by_pio(memory: Memory, drive: Drive, pio: Pio, command: Command) -> int:
    """Programmed I/O: for the guest it differs by the FIS at the end alone."""
    if pio.is_write:
        moved = command.receive(memory, pio.data)
        if moved < len(pio.data):
            drive.dma_failed()
            return moved
        if pio.done is not None:
            pio.done(pio.data)
        drive.finish()
        return moved
    data = bytearray(pio.data)
    while pio.more is not None and (more := pio.more()):
        data += more
        if len(data) > PIO_MAX:  # a disc could be of any size, and all of this is the host's memory
            drive.dma_failed()
            return 0
    moved = command.send(memory, data)
    if not drive.task.status & ERR:
        drive.finish()
    return moved
