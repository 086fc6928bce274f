"""One IDE channel: two drives behind one task file, and the data port.

Specification: ATA/ATAPI-7 volume 2, section 5 "Interface register definitions".
"""

from __future__ import annotations

from collections.abc import Callable

from bivisor.platform.ide.drive import ABRT, BSY, DRQ, ERR, UNC, Drive
from bivisor.platform.ide.feed import PortFeed

COMMAND_PORTS, CONTROL_OFFSET = 8, 2
SRST, NIEN = 0x04, 0x02
_DATA, _ERROR, _COUNT, _LOW, _MID, _HIGH, _DEVICE, _STATUS = range(8)


class Channel:
    """The channel at `port`. `irq` is its interrupt line; `on_dma()` is told that the selected drive waits for the bus
    master; `feed` may spare the guest's string instructions their exits."""

    def __init__(
        self, port: int, irq: Callable[[bool], None], on_dma: Callable[[], None], feed: PortFeed | None = None
    ) -> None:
        self._port = port
        self._feed = feed or PortFeed(None)
        self._irq = irq
        self._on_dma = on_dma
        self.drives: list[Drive | None] = [None, None]
        self._selected = 0
        self._control = 0
        self._line = False
        self._at = 0
        self._end = 0
        self.control = _Control(self)

    @property
    def drive(self) -> Drive | None:
        """The drive that is selected, if it is there."""
        return self.drives[self._selected]

    def read(self, offset: int, size: int) -> int:
        """The data port, or a register of the selected drive."""
        if offset == _DATA:
            self.collect()
            return self._read_data(size)
        if offset == _STATUS:
            self._interrupt(False)
            return self.status()
        drive = self.drive or self.drives[0] or self.drives[1]
        if drive is None:
            return 0xFF if offset != _STATUS else 0
        task = drive.task
        high_order = self._control & 0x80
        match offset:
            case 1:
                return task.error
            case 2:
                return task.previous[0] if high_order else task.count
            case 3:
                return task.previous[1] if high_order else task.low
            case 4:
                return task.previous[2] if high_order else task.mid
            case 5:
                return task.previous[3] if high_order else task.high
            case _:
                return task.device & 0xEF | 0xA0 | self._selected << 4

    def status(self) -> int:
        """The status register; a drive that is not there has none."""
        drive = self.drive
        return 0 if drive is None else drive.task.status

    def write(self, offset: int, size: int, value: int) -> None:
        """The data port, or a register of both drives; a command goes to the selected one."""
        if offset in (_DATA, _DEVICE, _STATUS):
            self.collect()
        if offset == _DATA:
            self._write_data(size, value)
            return
        value &= 0xFF
        if offset == _STATUS:
            self._command(value)
            return
        self._control &= ~0x80
        if offset == _DEVICE:
            self._selected = value >> 4 & 1
        for drive in self.drives:
            if drive is None:
                continue
            task = drive.task
            above = task.previous
            match offset:
                case 1:
                    task.feature = value
                case 2:
                    task.previous, task.count = (task.count, *above[1:]), value
                case 3:
                    task.previous, task.low = (above[0], task.low, *above[2:]), value
                case 4:
                    task.previous, task.mid = (*above[:2], task.mid, above[3]), value
                case 5:
                    task.previous, task.high = (*above[:3], task.high), value
                case 6:
                    task.device = value

    def write_control(self, value: int) -> None:
        """The device control register: SRST resets both drives, nIEN keeps the interrupt down."""
        self.collect()
        if value & SRST and not self._control & SRST:
            self._selected = 0
            for drive in self.drives:
                if drive is not None:
                    drive.reset()
                    drive.task.status |= BSY
        elif self._control & SRST and not value & SRST:
            for drive in self.drives:
                if drive is not None:
                    drive.task.status &= ~BSY
        self._control = value
        self._interrupt(self._line)

    def _command(self, code: int) -> None:
        self._interrupt(False)
        if code == 0x90:
            for drive in self.drives:
                if drive is not None:
                    drive.command(code)
            self._selected = 0
            self._interrupt(True)
            return
        drive = self.drive
        if drive is None:
            return
        interrupt = drive.command(code)
        self._at = 0
        self._begin_block()
        if interrupt:
            self._interrupt(True)
        if drive.dma is not None:
            self._on_dma()

    def _begin_block(self) -> None:
        drive = self.drive
        pio = drive.pio if drive is not None else None
        self._end = min(self._at + pio.block, len(pio.data)) if pio is not None else 0
        if pio is not None and not pio.is_write:
            self._feed.start(self, self._port, memoryview(pio.data)[self._at : self._end])

    def collect(self) -> None:
        """Count what the guest has read meanwhile."""
        self._at += self._feed.stop(self)

    # Data

    def _read_data(self, size: int) -> int:
        drive = self.drive
        if drive is None or drive.pio is None or drive.pio.is_write or not drive.task.status & DRQ:
            return 0
        at = self._at
        value = int.from_bytes(drive.pio.data[at : at + size], "little")
        self._at = at + size
        if self._at >= self._end:
            self._block_read(drive)
        return value

    def read_block(self, offset: int, size: int, view: memoryview) -> bool:
        """Fill `view` from the data port as a string instruction would with accesses of `size` bytes; False where
        that is not possible in one go."""
        self.collect()
        drive = self.drive
        pio = drive.pio if offset == _DATA and drive is not None else None
        if drive is None or pio is None or pio.is_write or self._end - self._at < len(view):
            return False
        view[:] = pio.data[self._at : self._at + len(view)]
        self._at += len(view)
        if self._at >= self._end:
            self._block_read(drive)
        return True

    def _block_read(self, drive: Drive) -> None:
        """A block has been read: the next one, or the end."""
        pio = drive.pio
        assert pio is not None
        if self._at >= len(pio.data):
            try:
                data = pio.more() if pio.more is not None else None
            except OSError:
                drive.fail(UNC)
                self._interrupt(True)
                return
            if data is None:
                packet = drive.signature != (0, 0)
                drive.finish()
                if packet:
                    self._interrupt(True)
                return
            pio.data = data
            self._at = 0
        self._begin_block()
        if drive.signature != (0, 0):
            length = self._end - self._at
            drive.task.mid, drive.task.high = length & 0xFF, length >> 8 & 0xFF
        self._interrupt(True)

    def _write_data(self, size: int, value: int) -> None:
        drive = self.drive
        if drive is None or drive.pio is None or not drive.pio.is_write:
            return
        pio = drive.pio
        end = min(self._at + size, len(pio.data))
        pio.data[self._at : end] = value.to_bytes(size, "little")[: end - self._at]
        self._at = end
        if end >= self._end:
            self._block_written(drive)

    def _block_written(self, drive: Drive) -> None:
        pio = drive.pio
        assert pio is not None
        if self._at < len(pio.data):
            self._begin_block()
            self._interrupt(True)
            return
        drive.finish()
        try:
            if pio.done is not None:
                pio.done(pio.data)
        except OSError:
            drive.fail(UNC)
        self._at = 0
        self._begin_block()
        if drive.dma is not None:
            self._on_dma()
        else:
            self._interrupt(True)

    # Interrupts, and the bus master's word

    def dma_done(self, failed: bool) -> None:
        """The bus master has moved the data of the selected drive's command, or could not."""
        drive = self.drive
        if drive is None or drive.dma is None:
            return
        if failed:
            drive.dma_failed()
        else:
            drive.finish()
        self._interrupt(True)

    def _interrupt(self, level: bool) -> None:
        self._line = level
        self._irq(level and not self._control & NIEN)


class _Control:
    """The control block: device control, and the status without its effect on the interrupt."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def read(self, offset: int, size: int) -> int:
        return self._channel.status()

    def write(self, offset: int, size: int, value: int) -> None:
        self._channel.write_control(value & 0xFF)


__all__ = ["ABRT", "COMMAND_PORTS", "ERR", "Channel"]
