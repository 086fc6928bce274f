"""The virtio block device: virtio 1.2 section 5.2.

Data moves between the image and the guest's own pages without a copy in between. A turn is bounded in bytes and
requests, so that one disk does not keep the other devices of its machine waiting; flushes run beside the loop, because
they may take seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import BLK_CONFIG, BLK_RANGE, BLK_REQ, BLK_S_IOERR, BLK_S_OK, BLK_S_UNSUPP, SECTOR, bit
from bivisor.host.loop import Loop
from bivisor.platform.virtio.device import Chain, VirtQueue, gather, scatter, skip
from bivisor.platform.virtio.turns import TurnDevice

QUEUE_SIZE = 256
SEG_MAX = QUEUE_SIZE - 2
SIZE_MAX = 128 << 10
REQUEST_MAX = SEG_MAX * SIZE_MAX
DISCARD_RANGES_MAX, DISCARD_SECTORS_MAX = 64, 1 << 22
ZEROES_RANGES_MAX, ZEROES_SECTORS_MAX = 1, 1 << 17  # where nothing better is there, zeroes are written one by one
_OPERATIONS = {
    abi.BLK_T_IN: "read",
    abi.BLK_T_OUT: "write",
    abi.BLK_T_FLUSH: "flush",
    abi.BLK_T_GET_ID: "get_id",
    abi.BLK_T_DISCARD: "discard",
    abi.BLK_T_WRITE_ZEROES: "write_zeroes",
}


class BlockBackend(Protocol):
    """Where the sectors are. Offsets and lengths are in bytes and inside `size`; every method may raise OSError."""

    size: int
    read_only: bool
    physical_block: int

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill `views` from `offset` on; how many bytes that were."""

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        """Write `views` to `offset` on; how many bytes that were."""

    def flush(self) -> None:
        """Make all that was written stable. Called in another thread."""

    def discard(self, offset: int, length: int) -> None:
        """The bytes are not needed any more."""

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Make the bytes read as zero; `unmap`: space may be given back."""


class VirtioBlk(TurnDevice):
    """A disk in front of `backend`, with `queues` request queues and `serial` (up to 20 bytes) as its identity."""

    device_id = abi.ID_BLOCK
    pci_class = 0x018000
    name = "virtio-blk"
    turn_requests, turn_bytes = QUEUE_SIZE, 32 << 20

    def __init__(self, backend: BlockBackend, loop: Loop, *, queues: int = 1, serial: str = "") -> None:
        self.backend = backend
        self._sectors = backend.size // SECTOR
        self._serial = serial.encode()[: abi.BLK_ID_BYTES].ljust(abi.BLK_ID_BYTES, b"\0")
        features = bit(abi.BLK_F_SIZE_MAX) | bit(abi.BLK_F_SEG_MAX) | bit(abi.BLK_F_BLK_SIZE) | bit(abi.BLK_F_FLUSH)
        features |= bit(abi.BLK_F_TOPOLOGY) | bit(abi.BLK_F_MQ)
        if backend.read_only:
            features |= bit(abi.BLK_F_RO)
        else:
            features |= bit(abi.BLK_F_DISCARD) | bit(abi.BLK_F_WRITE_ZEROES)
        exponent = (max(backend.physical_block, SECTOR) // SECTOR).bit_length() - 1
        limits = (DISCARD_SECTORS_MAX, DISCARD_RANGES_MAX, 1 << exponent, ZEROES_SECTORS_MAX, ZEROES_RANGES_MAX, 1)
        config = BLK_CONFIG.pack(
            self._sectors, SIZE_MAX, SEG_MAX, 0, 0, 0, SECTOR, exponent, 0, 1 << exponent, 0, 1, 0, queues, *limits
        )
        super().__init__(features, [QUEUE_SIZE] * queues, config, loop)
        self._requests = {
            abi.BLK_T_IN: self._read,
            abi.BLK_T_OUT: self._write,
            abi.BLK_T_GET_ID: self._get_id,
            abi.BLK_T_DISCARD: self._discard,
            abi.BLK_T_WRITE_ZEROES: self._write_zeroes,
        }
        self._flusher: ThreadPoolExecutor | None = None
        self._flushing: dict[int, tuple[VirtQueue, Chain, Future[None]]] = {}
        self._tickets = itertools.count()

    def describe(self, chain: Chain) -> tuple[str, int, int]:
        """See `VirtioDevice.describe`. Nothing here has been checked."""
        header = gather(chain.readable, BLK_REQ.size)
        if len(header) < BLK_REQ.size:
            return super().describe(chain)
        kind, _, sector = BLK_REQ.unpack(header)
        size = max(0, chain.readable_size - BLK_REQ.size) + max(0, chain.writable_size - 1)
        return _OPERATIONS.get(kind, str(kind)), size, sector

    def serve(self, queue: VirtQueue, chain: Chain) -> int:
        """See `TurnDevice.serve`."""
        readable, writable = chain.readable, chain.writable
        # Without a whole header or a byte for the status there is no way to answer.
        header = gather(readable, BLK_REQ.size)
        if not writable or len(header) < BLK_REQ.size:
            self.fail("a request without header or status")
            return 0
        kind, _, sector = BLK_REQ.unpack(header)
        last = writable[-1]
        size = chain.writable_size
        data_in = writable[:-1] if len(last) == 1 else [*writable[:-1], last[:-1]]
        data_out = readable[1:] if len(readable[0]) == 16 else skip(readable, 16)
        if kind == abi.BLK_T_FLUSH:
            self._flush(queue, chain)
            return 0
        operation = self._requests.get(kind)
        try:
            status = operation(sector, data_in, data_out, size - 1) if operation else BLK_S_UNSUPP
        except OSError:
            status = BLK_S_IOERR
        last[-1] = status
        queue.push(chain, size)
        return size + sum(map(len, data_out))

    def _read(self, sector: int, data_in: list[memoryview], _: list[memoryview], size: int) -> int:
        if not self._inside(sector, size):
            return BLK_S_IOERR
        return BLK_S_OK if self.backend.readv(data_in, sector * SECTOR) == size else BLK_S_IOERR

    def _write(self, sector: int, _: list[memoryview], data_out: list[memoryview], __: int) -> int:
        size = sum(map(len, data_out))
        if self.backend.read_only or not self._inside(sector, size):
            return BLK_S_IOERR
        return BLK_S_OK if self.backend.writev(data_out, sector * SECTOR) == size else BLK_S_IOERR

    def _inside(self, sector: int, size: int) -> bool:
        """A request that leaves the disk would reach what lies behind the image, a huge one would hold up the loop."""
        return 0 < size <= REQUEST_MAX and not size % SECTOR and sector + size // SECTOR <= self._sectors

    def _get_id(self, _: int, data_in: list[memoryview], __: list[memoryview], ___: int) -> int:
        scatter(data_in, self._serial)
        return BLK_S_OK

    def _discard(self, _: int, __: list[memoryview], data_out: list[memoryview], ___: int) -> int:
        status, ranges = self._ranges(data_out, DISCARD_RANGES_MAX, DISCARD_SECTORS_MAX, allowed_flags=0)
        for sector, count, _flags in ranges:
            self.backend.discard(sector * SECTOR, count * SECTOR)
        return status

    def _write_zeroes(self, _: int, __: list[memoryview], data_out: list[memoryview], ___: int) -> int:
        unmap = abi.BLK_RANGE_F_UNMAP
        status, ranges = self._ranges(data_out, ZEROES_RANGES_MAX, ZEROES_SECTORS_MAX, allowed_flags=unmap)
        for sector, count, flags in ranges:
            self.backend.zero(sector * SECTOR, count * SECTOR, bool(flags & unmap))
        return status

    def _ranges(
        self, data_out: list[memoryview], ranges_max: int, sectors_max: int, allowed_flags: int
    ) -> tuple[int, list[tuple[int, int, int]]]:
        """The (sector, count, flags) that a request lists, or a status and none: a list is carried out whole or not."""
        raw = gather(data_out, ranges_max * BLK_RANGE.size + 1)
        if self.backend.read_only or not raw or len(raw) % BLK_RANGE.size or len(raw) > ranges_max * BLK_RANGE.size:
            return BLK_S_IOERR, []
        ranges = list(BLK_RANGE.iter_unpack(raw))
        if any(flags & ~allowed_flags for _, _, flags in ranges):
            return BLK_S_UNSUPP, []
        # A range that leaves the disk would destroy what lies behind it; a huge one would hold up the loop.
        if any(count > sectors_max or sector + count > self._sectors for sector, count, _ in ranges):
            return BLK_S_IOERR, []
        return BLK_S_OK, [each for each in ranges if each[1]]

    def _flush(self, queue: VirtQueue, chain: Chain) -> None:
        """Start a flush in the other thread. At most as many are under way as there are descriptors."""
        if self._flusher is None:
            self._flusher = ThreadPoolExecutor(1, "bivisor-flush")
        ticket = next(self._tickets)
        future = self._flusher.submit(self.backend.flush)
        self._flushing[ticket] = (queue, chain, future)
        future.add_done_callback(lambda _: self._loop.call_soon(lambda: self._flushed(ticket)))

    def _flushed(self, ticket: int) -> None:
        """A flush has ended. One whose ticket is gone was of a driver that has reset the device since."""
        if ticket not in self._flushing:
            return
        queue, chain, future = self._flushing.pop(ticket)
        chain.writable[-1][-1] = BLK_S_IOERR if future.exception() else BLK_S_OK
        queue.push(chain, chain.writable_size)
        self.finish(queue)

    def reset(self) -> None:
        """Nothing may be written to guest memory after a reset, so it waits for flushes that are under way."""
        wait([future for _, _, future in self._flushing.values()])
        self._flushing.clear()
        super().reset()

    def close(self) -> None:
        """Also ends the flushing thread."""
        super().close()
        if self._flusher is not None:
            self._flusher.shutdown()
            self._flusher = None
