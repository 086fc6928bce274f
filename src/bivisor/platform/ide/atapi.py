"""An ATAPI CD-ROM drive in front of a block back-end with a disc image.

Specification: ATA/ATAPI-7 volume 1, section 6.24 "PACKET"; SFF-8020i and MMC-3 for the packets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar

from bivisor.platform.ide.drive import ABRT, DRDY, DRQ, DSC, ERR, PIECES, SECTOR, Dma, Drive, Pio, identity_text
from bivisor.platform.virtio.blk import BlockBackend

BLOCK = 2048
PACKET = 12
CHUNK = 32
BLOCKS_MAX = 0xFFFF  # what READ(10) can ask for; more would keep the host at it for seconds
_CD, _IO = 1, 2  # interrupt reason, in the count register
_NOT_READY, _ILLEGAL = (2, 0x3A), (5, 0x20)
_OUT_OF_RANGE, _BAD_FIELD = (5, 0x21), (5, 0x24)


class CdRom(Drive):
    """The drive; without a `disc` it is empty."""

    signature: ClassVar[tuple[int, int]] = (0x14, 0xEB)

    def __init__(self, disc: BlockBackend | None, *, model: str = "BIVISOR CD-ROM") -> None:
        super().__init__()
        self._disc = disc
        self._model = model
        self._sense = (0, 0)
        self._attention = disc is not None
        self._packets: dict[int, Callable[[bytes], None]] = {
            0x00: self._test_unit_ready,
            0x03: self._request_sense,
            0x12: self._inquiry,
            0x1B: self._nothing,
            0x1E: self._nothing,
            0x25: self._capacity,
            0x28: self._read,
            0xA8: self._read,
            0x43: self._toc,
            0x46: self._configuration,
            0x4A: self._event_status,
            0x51: self._disc_information,
            0x5A: self._mode_sense,
            0xBD: lambda packet: self._reply(struct.pack(">BBHBBH", 0, 0, 0, 0, 0, 0), packet),
        }
        self.reset()

    @property
    def blocks(self) -> int:
        """Blocks of 2,048 bytes on the disc."""
        return self._disc.size // BLOCK if self._disc is not None else 0

    @property
    def ready(self) -> int:
        """See `Drive.ready`."""
        return DRDY | DSC

    def reset(self) -> None:
        """See `Drive.reset`; a packet device is not ready before it was asked (ATA/ATAPI-7, 9.12)."""
        super().reset()
        self.task.status = 0

    def command(self, code: int) -> bool:
        """See `Drive.command`."""
        task = self.task
        self.pio = self.dma = None
        task.error = 0
        task.status = DRDY | DSC
        match code:
            case 0xA0:
                self._use_dma = bool(task.feature & 1)
                self._limit = task.mid | task.high << 8
                task.count = _CD
                task.status = DRDY | DRQ
                self.pio = Pio(bytearray(PACKET), PACKET, is_write=True, done=self._packet)
                return False
            case 0xA1:
                self.pio = Pio(bytearray(self._identification()), SECTOR)
                task.status = DRDY | DSC | DRQ
            case 0x08 | 0x90:
                self.reset()
                return code == 0x90
            case 0xEF | 0xE0 | 0xE1 | 0xE5 | 0xE6 | 0xE7:
                pass
            case _:
                if code in (0xEC, 0x20):  # whoever takes it for a disk learns what it is
                    task.mid, task.high = self.signature
                self.fail(ABRT)
        return True

    def finish(self) -> None:
        """See `Drive.finish`."""
        super().finish()
        self.task.count = _CD | _IO

    def dma_failed(self) -> None:
        """See `Drive.dma_failed`."""
        self._check(_BAD_FIELD)

    def _packet(self, packet: bytearray) -> None:
        """The guest has written a packet: carry it out."""
        handler = self._packets.get(packet[0])
        self.finish()
        if handler is None:
            self._check(_ILLEGAL)
            return
        try:
            handler(bytes(packet))
        except OSError:
            self._check((3, 0x11))

    def _check(self, sense: tuple[int, int]) -> None:
        """CHECK CONDITION: the error register has the sense key."""
        self._sense = sense
        self.pio = self.dma = None
        self.task.error = sense[0] << 4 | ABRT
        self.task.count = _CD | _IO
        self.task.status = DRDY | ERR

    def _has_disc(self) -> bool:
        if self._disc is None:
            self._check(_NOT_READY)
            return False
        return True

    def _reply(self, data: bytes, packet: bytes, limit: int | None = None) -> None:
        """Send `data`, or as much of it as the packet's allocation length (`limit`) allows."""
        if limit is not None:
            data = data[:limit]
        self._send(len(data), lambda views, offset: _scatter(data, views, offset), lambda: bytearray(data))

    def _send(
        self, length: int, move: Callable[[PIECES, int], None], first: Callable[[], bytearray],
        more: Callable[[], bytearray | None] | None = None,
    ) -> None:  # fmt: skip
        if not length:
            return
        task = self.task
        task.count = _IO
        if self._use_dma:
            self.dma = Dma(length, True, move)
            task.status = DRDY | DSC | DRQ
            return
        block = self._limit & ~1 or 0xFFFE
        self.pio = Pio(first(), block, more=more)
        size = min(block, len(self.pio.data))
        task.mid, task.high = size & 0xFF, size >> 8
        task.status = DRDY | DSC | DRQ

    # Packets

    def _test_unit_ready(self, packet: bytes) -> None:
        if self._has_disc() and self._attention:
            self._attention = False
            self._check((6, 0x28))

    def _nothing(self, packet: bytes) -> None:
        pass

    def _request_sense(self, packet: bytes) -> None:
        key, code = self._sense
        self._sense = (0, 0)
        self._reply(struct.pack(">BBBIBIBB4x", 0x70, 0, key, 0, 10, 0, code, 0), packet, packet[4])

    def _inquiry(self, packet: bytes) -> None:
        data = struct.pack(">BBBBBxxx8s16s4s", 5, 0x80, 0, 0x21, 31, b"BIVISOR ", b"CD-ROM".ljust(16), b"1.0 ")
        self._reply(data, packet, packet[4])

    def _capacity(self, packet: bytes) -> None:
        if self._has_disc():
            self._reply(struct.pack(">II", max(self.blocks - 1, 0), BLOCK), packet)

    def _read(self, packet: bytes) -> None:
        if not self._has_disc():
            return
        disc = self._disc
        assert disc is not None
        first = int.from_bytes(packet[2:6], "big")
        count = int.from_bytes(packet[6:10] if packet[0] == 0xA8 else packet[7:9], "big")
        if first + count > self.blocks:
            self._check(_OUT_OF_RANGE)
            return
        if count > BLOCKS_MAX:
            self._check(_BAD_FIELD)
            return

        def move(views: PIECES, offset: int) -> None:
            disc.readv(views, first * BLOCK + offset)

        at, left = first, count

        def more() -> bytearray | None:
            nonlocal at, left
            size = min(left, CHUNK)
            if not size:
                return None
            data = bytearray(size * BLOCK)
            disc.readv([memoryview(data)], at * BLOCK)
            at, left = at + size, left - size
            return data

        self._send(count * BLOCK, move, lambda: more() or bytearray(), more)

    def _toc(self, packet: bytes) -> None:
        if not self._has_disc():
            return
        msf, last = bool(packet[1] & 2), self.blocks
        if packet[2] & 15 == 1 or packet[9] >> 6 == 1:
            body = struct.pack(">BBBBBB2x", 1, 1, 0, 0x14, 1, 0) + _address(0, msf)
            body = struct.pack(">BB", 1, 1) + struct.pack(">BBBB", 0, 0x14, 1, 0) + _address(0, msf)
        else:
            body = struct.pack(">BB", 1, 1)
            for track, block in ((1, 0), (0xAA, last)):
                body += struct.pack(">BBBB", 0, 0x14, track, 0) + _address(block, msf)
        self._reply(struct.pack(">H", len(body)) + body, packet, int.from_bytes(packet[7:9], "big"))

    def _configuration(self, packet: bytes) -> None:
        profile = 0x0008 if self._disc is not None else 0
        body = struct.pack(">HHHBBHBB", 0, profile, 0, 3, 4, 8, 1 if profile else 0, 0)
        data = struct.pack(">I", len(body) + 4) + body[:2] + body[2:]
        self._reply(data, packet, int.from_bytes(packet[7:9], "big"))

    def _event_status(self, packet: bytes) -> None:
        media = 2 if self._disc is not None else 0
        self._reply(struct.pack(">HBBBBBB", 6, 4, 0x10, 0, media, 0, 0), packet, int.from_bytes(packet[7:9], "big"))

    def _disc_information(self, packet: bytes) -> None:
        if self._has_disc():
            data = struct.pack(">HBBBBBB", 32, 0x0E, 1, 1, 1, 1, 0x20).ljust(34, b"\0")
            self._reply(data, packet, int.from_bytes(packet[7:9], "big"))

    def _mode_sense(self, packet: bytes) -> None:
        page = packet[2] & 0x3F
        pages = {
            0x01: bytes((1, 6, 0, 5, 0, 0, 0, 0)),
            0x2A: bytes((0x2A, 18, 3, 0, 0x71, 0x60, 0x29)).ljust(20, b"\0"),
        }
        if page not in pages:
            self._check(_BAD_FIELD)
            return
        body = pages[page]
        head = struct.pack(">HB5x", len(body) + 6, 0x01 if self._disc is not None else 0x70)
        self._reply(head + body, packet, int.from_bytes(packet[7:9], "big"))

    def _identification(self) -> bytes:
        words = [0] * 256
        words[0], words[49], words[53], words[63], words[64] = 0x85C0, 0x0F00, 0x0006, 0x0407, 3
        words[65] = words[66] = words[67] = words[68] = 120
        words[80], words[82], words[83], words[85], words[88] = 0x001E, 0x4210, 0x4000, 0x4210, 0x203F
        data = bytearray(struct.pack("<256H", *words))
        data[20:40] = identity_text("BV00002", 20)
        data[46:54] = identity_text("1.0", 8)
        data[54:94] = identity_text(self._model, 40)
        return bytes(data)


def _address(block: int, msf: bool) -> bytes:
    if not msf:
        return struct.pack(">I", block)
    block += 150
    return bytes((0, block // 4500 & 0xFF, block // 75 % 60, block % 75))


def _scatter(data: bytes, views: PIECES, offset: int) -> None:
    for view in views:
        part = data[offset : offset + len(view)]
        view[: len(part)] = part
        offset += len(view)
