"""What a drive on an IDE channel is: its task file, and how a command asks its channel to move data.

Specification: ATA/ATAPI-7 (T13 1532D), volume 1 (commands) and volume 2 (registers and protocols).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

BSY, DRDY, DF, DSC, DRQ, ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
ABRT, IDNF, UNC = 0x04, 0x10, 0x40
LBA, SECTOR = 0x40, 512
PIECES = Sequence[memoryview]


@dataclass(slots=True)
class TaskFile:
    """The registers of a drive. `previous` has the values that a 48-bit command takes as its upper halves."""

    feature: int = 0
    count: int = 1
    low: int = 1
    mid: int = 0
    high: int = 0
    device: int = 0
    status: int = DRDY | DSC
    error: int = 1
    previous: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(slots=True)
class Pio:
    """Data on its way through the data port: `data` in blocks of `block` bytes, with an interrupt for each.

    `done(data)` is called when the guest has written all of it; a guest that reads just reads. `more()` gives what
    follows `data`, None at the end.
    """

    data: bytearray
    block: int
    is_write: bool = False
    done: Callable[[bytearray], None] | None = None
    more: Callable[[], bytearray | None] | None = None


@dataclass(slots=True)
class Dma:
    """`length` bytes for the bus master. `move(views, offset)` moves those at `offset` of the transfer; it may raise
    OSError. `to_memory`: the guest's memory is written."""

    length: int
    to_memory: bool
    move: Callable[[PIECES, int], None]


class Drive:
    """A drive. A command sets the task file, and `pio` or `dma` where there is data to move."""

    signature: ClassVar[tuple[int, int]] = (0, 0)

    def __init__(self) -> None:
        self.task = TaskFile()
        self.pio: Pio | None = None
        self.dma: Dma | None = None

    def reset(self) -> None:
        """Power on, or a software reset: the signature says what kind of drive it is."""
        self.pio = self.dma = None
        self.task = TaskFile(mid=self.signature[0], high=self.signature[1], status=self.ready)

    @property
    def ready(self) -> int:
        """The status of a drive that does nothing."""
        return DRDY | DSC

    def command(self, code: int) -> bool:
        """Carry out a command, or begin it; whether the drive interrupts now."""
        raise NotImplementedError

    def finish(self) -> None:
        """The data of a command has been moved."""
        self.pio = self.dma = None
        self.task.status = self.ready

    def fail(self, error: int) -> None:
        """End the command with an error."""
        self.pio = self.dma = None
        self.task.error = error
        self.task.status = self.ready | ERR

    def dma_failed(self) -> None:
        """The bus master could not move the data of a command."""
        self.fail(ABRT)


def identity_text(text: str, length: int) -> bytes:
    """`text` as identification data has it: padded, the bytes of each word swapped."""
    padded = text.encode("ascii", "replace")[:length].ljust(length)
    return bytes(padded[at ^ 1] for at in range(length))
