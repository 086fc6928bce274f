"""An ATA disk in front of a block back-end: 28- and 48-bit addresses, and cylinders, heads and sectors.

Specification: ATA/ATAPI-7 volume 1, section 6 "Command descriptions"; 6.17 for IDENTIFY DEVICE.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar

from bivisor.platform.ide.drive import (
    ABRT,
    DRDY,
    DRQ,
    DSC,
    IDNF,
    LBA,
    PIECES,
    SECTOR,
    UNC,
    Dma,
    Drive,
    Pio,
    identity_text,
)
from bivisor.platform.ide.trim import BLOCKS_MAX, IDENTITY_WORDS, TRIM, TrimList
from bivisor.platform.virtio.blk import BlockBackend

HEADS, SECTORS = 16, 63
MULTIPLE_MAX = 16
CHUNK = 128  # sectors that are read ahead of a guest that reads them through the port
_MAX_28 = 0x0FFF_FFFF
# queue depth 32; NCQ and 1.5 Gbit/s; no result of a parallel reset; Serial ATA 2.6 (Serial ATA 3.0, 13.2.1)
_SATA_WORDS = {75: 31, 76: 0x0102, 93: 0, 222: 0x1020}


class AtaDisk(Drive):
    """The disk. `serial` has up to 20 characters, `model` up to 40. `sata`: it says that it is a SATA disk, which takes
    queued commands; those are its controller's to carry out."""

    signature: ClassVar[tuple[int, int]] = (0, 0)

    def __init__(
        self,
        backend: BlockBackend,
        *,
        serial: str = "BV00001",
        model: str = "BIVISOR HARDDISK",
        sata: bool = False,
    ) -> None:
        super().__init__()
        self._backend = backend
        self.sectors = backend.size // SECTOR
        self._serial, self._model, self._sata = serial, model, sata
        self._multiple = MULTIPLE_MAX
        self._heads, self._per_track = HEADS, SECTORS
        self._table = self._commands()
        self.reset()

    def command(self, code: int) -> bool:
        """See `Drive.command`."""
        task = self.task
        self.pio = self.dma = None
        task.error, task.status = 0, DRDY | DSC
        handler = self._table.get(code)
        if handler is None:
            self.fail(ABRT)
            return True
        try:
            return handler()
        except OSError:
            self.fail(UNC)
            return True

    def _commands(self) -> dict[int, Callable[[], bool]]:
        table: dict[int, Callable[[], bool]] = {
            0x06: self._data_set_management,
            0x91: self._init_parameters,
            0xC6: self._set_multiple,
            0xE7: self._flush,
            0xEA: self._flush,
            0xEC: self._identify,
            0xEF: self._set_features,
            0xF8: lambda: self._native_max(extended=False),
            0x27: lambda: self._native_max(extended=True),
            0xE5: self._check_power,
            0x98: self._check_power,
            0x90: self._diagnose,
        }
        for codes, extended in (((0x20, 0x21), False), ((0x24,), True)):
            table |= dict.fromkeys(codes, lambda extended=extended: self._read(1, extended))
        for codes, extended in (((0x30, 0x31), False), ((0x34,), True)):
            table |= dict.fromkeys(codes, lambda extended=extended: self._write(1, extended))
        table[0xC4] = lambda: self._read(self._multiple, False)
        table[0x29] = lambda: self._read(self._multiple, True)
        table[0xC5] = lambda: self._write(self._multiple, False)
        table[0x39] = lambda: self._write(self._multiple, True)
        for codes, to_memory, extended in (
            ((0xC8, 0xC9), True, False),
            ((0x25,), True, True),
            ((0xCA, 0xCB), False, False),
            ((0x35,), False, True),
        ):
            start = lambda to_memory=to_memory, extended=extended: self._start_dma(to_memory, extended)  # noqa: E731
            table |= dict.fromkeys(codes, start)
        for code in (0x40, 0x41, 0x42):
            table[code] = lambda code=code: self._verify(code == 0x42)  # type: ignore[misc]
        for code in (*range(0x10, 0x20), 0x70, 0x94, 0x95, 0x96, 0x97, 0x99, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6):
            table[code] = lambda: True
        return table

    def _range(self, extended: bool) -> tuple[int, int] | None:
        """The (first sector, count) of the task file; None, with the error set, where that leaves the disk."""
        task = self.task
        feature, count, low, mid, high = task.feature, task.count, task.low, task.mid, task.high
        if extended:
            above = task.previous
            count = (above[0] << 8 | count) or 0x10000
            first = low | mid << 8 | high << 16 | above[1] << 24 | above[2] << 32 | above[3] << 40
        else:
            count = count or 0x100
            if task.device & LBA:
                first = low | mid << 8 | high << 16 | (task.device & 15) << 24
            else:
                first = ((mid | high << 8) * self._heads + (task.device & 15)) * self._per_track + low - 1
        del feature
        if first < 0 or first + count > self.sectors:  # what lies behind the image is not the guest's
            self.fail(IDNF)
            return None
        return first, count

    def _read(self, block: int, extended: bool) -> bool:
        place = self._range(extended)
        if place is None:
            return True
        first, left = place

        def more() -> bytearray | None:
            nonlocal first, left
            count = min(left, CHUNK)
            if not count:
                return None
            data = bytearray(count * SECTOR)
            self._backend.readv([memoryview(data)], first * SECTOR)
            first, left = first + count, left - count
            return data

        data = more()
        assert data is not None
        self.pio = Pio(data, block * SECTOR, more=more)
        self.task.status = DRDY | DSC | DRQ
        return True

    def _write(self, block: int, extended: bool) -> bool:
        place = self._range(extended)
        if place is None or self._refuse_write():
            return True
        first, count = place

        def done(data: bytearray) -> None:
            self._backend.writev([memoryview(data)], first * SECTOR)

        self.pio = Pio(bytearray(count * SECTOR), block * SECTOR, is_write=True, done=done)
        self.task.status = DRDY | DSC | DRQ
        return False

    def _refuse_write(self) -> bool:
        if self._backend.read_only:
            self.fail(ABRT)
        return self._backend.read_only

    def _start_dma(self, to_memory: bool, extended: bool) -> bool:
        place = self._range(extended)
        if place is None or (not to_memory and self._refuse_write()):
            return True
        first, count = place
        transfer = self._backend.readv if to_memory else self._backend.writev

        def move(views: PIECES, offset: int) -> None:
            wanted = sum(map(len, views))
            if transfer(views, first * SECTOR + offset) != wanted:
                raise OSError

        self.dma = Dma(count * SECTOR, to_memory, move)
        self.task.status = DRDY | DSC | DRQ
        return False

    def _data_set_management(self) -> bool:
        blocks = self.task.previous[0] << 8 | self.task.count
        if self.task.feature != TRIM or not 0 < blocks <= BLOCKS_MAX:
            self.fail(ABRT)
            return True
        if self._refuse_write():
            return True
        ranges = TrimList(self._backend.discard, self.sectors, blocks)
        self.dma = Dma(blocks * SECTOR, False, ranges.take)
        self.task.status = DRDY | DSC | DRQ
        return False

    def _verify(self, extended: bool) -> bool:
        self._range(extended)
        return True

    def _flush(self) -> bool:
        self._backend.flush()
        return True

    def _init_parameters(self) -> bool:
        self._heads, self._per_track = (self.task.device & 15) + 1, self.task.count or SECTORS
        return True

    def _set_multiple(self) -> bool:
        count = self.task.count
        if count > MULTIPLE_MAX or count & count - 1:
            self.fail(ABRT)
        elif count:
            self._multiple = count
        return True

    def _set_features(self) -> bool:
        if self.task.feature not in (0x02, 0x82, 0x03, 0x55, 0xAA, 0x66, 0xCC, 0x05, 0x85, 0x42, 0xC2):
            self.fail(ABRT)
        return True

    def _check_power(self) -> bool:
        self.task.count = 0xFF
        return True

    def _diagnose(self) -> bool:
        self.reset()
        return True

    def _native_max(self, *, extended: bool) -> bool:
        last = self.sectors - 1 if extended else min(self.sectors - 1, _MAX_28)
        task = self.task
        task.low, task.mid, task.high = last & 0xFF, last >> 8 & 0xFF, last >> 16 & 0xFF
        if extended:
            task.previous = (0, last >> 24 & 0xFF, last >> 32 & 0xFF, last >> 40 & 0xFF)
        else:
            task.device = task.device & 0xF0 | last >> 24 & 15
        return True

    def _identify(self) -> bool:
        self.pio = Pio(bytearray(self._identification()), SECTOR)
        self.task.status = DRDY | DSC | DRQ
        return True

    def _identification(self) -> bytes:
        words = [0] * 256
        cylinders = min(self.sectors // (HEADS * SECTORS), 16383)
        addressable = min(self.sectors, _MAX_28)
        values = {
            0: 0x0040, 1: cylinders, 3: HEADS, 6: SECTORS, 47: 0x8000 | MULTIPLE_MAX, 48: 1, 49: 0x0F00, 51: 0x0200,
            52: 0x0200, 53: 0x0007, 54: cylinders, 55: HEADS, 56: SECTORS, 57: cylinders * HEADS * SECTORS & 0xFFFF,
            58: cylinders * HEADS * SECTORS >> 16, 59: 0x0100 | self._multiple, 60: addressable & 0xFFFF,
            61: addressable >> 16, 63: 0x0407, 64: 3, 65: 120, 66: 120, 67: 120, 68: 120, 80: 0x00F0, 81: 0x0016,
            82: 0x4000, 83: 0x7400, 84: 0x4000, 85: 0x4000, 86: 0x3400, 87: 0x4000, 88: 0x203F, 93: 0x600B,
            100: self.sectors & 0xFFFF, 101: self.sectors >> 16 & 0xFFFF, 102: self.sectors >> 32 & 0xFFFF,
        }  # fmt: skip
        if self._sata:
            values |= _SATA_WORDS
        if not self._backend.read_only:
            values |= IDENTITY_WORDS
        for at, value in values.items():
            words[at] = value
        data = bytearray(struct.pack("<256H", *words))
        data[20:40] = identity_text(self._serial, 20)
        data[46:54] = identity_text("1.0", 8)
        data[54:94] = identity_text(self._model, 40)
        return bytes(data)
