"""The virtio file system device: virtio 1.2 section 5.11. It carries FUSE requests (`fuse.py`) to a folder of the host.

Data moves between the host's files and the guest's own pages without a copy in between. What may take long (fsync,
fallocate, synchronous writes) runs beside the loop, and a turn is bounded, so that other devices do not wait.
"""

from __future__ import annotations

import errno
import itertools
from concurrent.futures import Future, ThreadPoolExecutor, wait

from bivisor.abi import fuse as abi
from bivisor.abi.virtio import FS_CONFIG, FS_TAG_BYTES, ID_FS
from bivisor.host.loop import Loop
from bivisor.platform.virtio.device import Chain, VirtQueue, gather, scatter
from bivisor.platform.virtio.folder import Folder, Work
from bivisor.platform.virtio.fuse import FuseServer, work_answer
from bivisor.platform.virtio.turns import TurnDevice

QUEUE_SIZE = 512
HIPRIO, REQUEST = 0, 1
_ANSWER = abi.OUT_HEADER.size
_SILENT = (abi.FORGET, abi.BATCH_FORGET, abi.INTERRUPT)


class VirtioFs(TurnDevice):
    """`folder` under the name `tag` (up to 36 bytes), by which a guest mounts it.

    The guest may take what it was told of a file for true for `cache` seconds; with 0, what the host changes is seen
    at once.
    """

    device_id = ID_FS
    pci_class = 0x018000
    name = "virtio-fs"
    turn_requests, turn_bytes = 64, 16 << 20

    def __init__(self, folder: Folder, loop: Loop, tag: str, *, cache: float = 0.0) -> None:
        config = FS_CONFIG.pack(tag.encode()[:FS_TAG_BYTES], 1)
        super().__init__(0, [QUEUE_SIZE, QUEUE_SIZE], config, loop)
        self.server = FuseServer(folder, cache=cache)
        self._worker: ThreadPoolExecutor | None = None
        self._working: dict[int, tuple[VirtQueue, Chain, Future[int], int, int]] = {}
        self._tickets = itertools.count()

    def describe(self, chain: Chain) -> tuple[str, int, int]:
        """See `VirtioDevice.describe`. Nothing here has been checked."""
        header = gather(chain.readable, abi.IN_HEADER.size)
        if len(header) < abi.IN_HEADER.size:
            return super().describe(chain)
        opcode = abi.IN_HEADER.unpack(header)[1]
        return abi.OPERATIONS.get(opcode, str(opcode)), chain.readable_size + chain.writable_size, -1

    def serve(self, queue: VirtQueue, chain: Chain) -> int:
        """See `TurnDevice.serve`."""
        header = gather(chain.readable, abi.IN_HEADER.size)
        if len(header) < abi.IN_HEADER.size:
            self.fail("a request without a header")
            return 0
        _, opcode, unique, node, *_ = abi.IN_HEADER.unpack(header)
        # Without room for a header there is no way to answer.
        if chain.writable_size < _ANSWER and opcode not in _SILENT:
            self.fail("a request without room for its answer")
            return 0
        try:
            answer = self.server.serve(opcode, node, chain.readable, chain.writable)
        except OSError as error:
            return self._answer(queue, chain, unique, -(error.errno or errno.EIO))
        if answer is None:
            queue.push(chain, 0)
            return 0
        if isinstance(answer, int):
            return self._answer(queue, chain, unique, 0, placed=answer)
        if isinstance(answer, bytes):
            return self._answer(queue, chain, unique, 0, answer)
        self._start(queue, chain, answer, opcode, unique)
        return 0

    def _answer(
        self, queue: VirtQueue, chain: Chain, unique: int, error: int, body: bytes = b"", *, placed: int = 0
    ) -> int:
        """Answer with an error, with `body`, or with `placed` bytes that are in their place; the bytes moved."""
        size = _ANSWER + len(body) + placed
        if size > chain.writable_size:  # a body without its end would be taken for a whole one
            error, body, size = -errno.EIO, b"", _ANSWER
        if chain.writable_size >= _ANSWER:
            scatter(chain.writable, abi.OUT_HEADER.pack(size, error, unique) + body)
            queue.push(chain, size)
        else:
            queue.push(chain, 0)
        return chain.readable_size + size

    def _start(self, queue: VirtQueue, chain: Chain, work: Work, opcode: int, unique: int) -> None:
        """Let the other thread do `work`. At most as much is under way as there are descriptors."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "bivisor-share")
        ticket = next(self._tickets)
        future = self._worker.submit(work)
        self._working[ticket] = (queue, chain, future, opcode, unique)
        future.add_done_callback(lambda _: self._loop.call_soon(lambda: self._done(ticket)))

    def _done(self, ticket: int) -> None:
        """Work has ended. That whose ticket is gone was of a driver that has reset the device since."""
        if ticket not in self._working:
            return
        queue, chain, future, opcode, unique = self._working.pop(ticket)
        try:
            count = future.result()
        except OSError as error:
            self._answer(queue, chain, unique, -(error.errno or errno.EIO))
        else:
            self._answer(queue, chain, unique, 0, work_answer(opcode, count))
        self.finish(queue)

    def reset(self) -> None:
        """Guest memory may not be touched after a reset, so it waits for work that is under way."""
        self.server.hurry()
        wait([entry[2] for entry in self._working.values()])
        self._working.clear()
        self.server.forget_all()
        super().reset()

    def close(self) -> None:
        """Also ends the thread."""
        super().close()
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None
