"""A guest's FUSE client, for tests: a shared folder, its device, and requests one by one."""

from __future__ import annotations

import errno
import itertools
import struct
import time
from pathlib import Path

from virtio_driver import RecordingTransport, bring_up

from bivisor.abi import fuse as abi
from bivisor.host.loop import ManualLoop
from bivisor.host.shared_folder import SharedFolder
from bivisor.memory import GuestMemory
from bivisor.platform.virtio.fs import HIPRIO, REQUEST, VirtioFs

REQUESTS, ANSWERS = 0x100000, 0x180000
PATIENCE_S = 30.0
HEADER, ANSWER = abi.IN_HEADER.size, abi.OUT_HEADER.size


class FuseError(Exception):
    """The device answered with an error."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.number = number


class FuseClient:
    """The folder at `path` and whoever uses it, in 2 MiB of memory."""

    def __init__(self, path: Path, *, read_only: bool = False, cache: float = 0.0) -> None:
        self.memory = GuestMemory(2 << 20)
        self.loop = ManualLoop()
        self.folder = SharedFolder(path, read_only=read_only)
        self.device = VirtioFs(self.folder, self.loop, "files", cache=cache)
        self._unique = itertools.count(1)
        self.start()

    def start(self) -> None:
        """Bring the device up, after a reset too."""
        self.transport: RecordingTransport
        self.transport, self.queues = bring_up(self.device, self.memory)

    def send(
        self, opcode: int, node: int, body: bytes = b"", *, room: int = 4096, queue: int = REQUEST
    ) -> bytes | None:
        """One request, and all that the device wrote; None where it wants to be reset instead."""
        request = abi.IN_HEADER.pack(HEADER + len(body), opcode, next(self._unique), node, 0, 0, 0, 0) + body
        return self.send_raw(request, room=room, queue=queue)

    def send_raw(self, request: bytes, *, room: int = 4096, queue: int = REQUEST) -> bytes | None:
        """The same for a message that may be anything but empty."""
        self.memory.write(REQUESTS, request)
        reads = [(REQUESTS, min(len(request), HEADER))]
        if len(request) > HEADER:
            reads.append((REQUESTS + HEADER, len(request) - HEADER))
        writes = [(ANSWERS, ANSWER), (ANSWERS + ANSWER, room)] if room else []
        driver = self.queues[queue]
        head = driver.add(reads, writes, table=True)
        self.device.notify(queue)
        done = driver.take()
        deadline = time.monotonic() + PATIENCE_S
        while not done and not self.transport.reasons:
            assert time.monotonic() < deadline, "no answer"
            self.loop.run_soon()
            done = driver.take()
        if not done:
            return None
        assert [each[0] for each in done] == [head]
        assert done[0][1] <= ANSWER + room
        return self.memory.read(ANSWERS, done[0][1])

    def call(self, opcode: int, node: int = abi.ROOT_ID, body: bytes = b"", *, room: int = 4096) -> bytes:
        """The body of the answer. FuseError."""
        answer = self.send(opcode, node, body, room=room)
        assert answer is not None, self.transport.reasons
        size, error, _ = abi.OUT_HEADER.unpack_from(answer)
        assert size == len(answer)
        if error:
            assert size == ANSWER
            raise FuseError(-error)
        return answer[ANSWER:]

    def lookup(self, name: bytes, parent: int = abi.ROOT_ID) -> int:
        """The node of a name."""
        return entry(self.call(abi.LOOKUP, parent, name + b"\0"))

    def walk(self, path: str) -> int:
        """The node of a path."""
        node = abi.ROOT_ID
        for part in path.encode().split(b"/"):
            node = self.lookup(part, node)
        return node

    def forget(self, node: int, count: int = 1) -> None:
        """Take lookups back, which is not answered."""
        assert self.send(abi.FORGET, node, abi.FORGET_IN.pack(count), room=0, queue=HIPRIO) == b""

    def open(self, node: int, flags: int = 0) -> int:
        """A handle of a file."""
        return handle(self.call(abi.OPEN, node, abi.OPEN_IN.pack(flags, 0)))

    def opendir(self, node: int = abi.ROOT_ID) -> int:
        """A handle of a folder."""
        return handle(self.call(abi.OPENDIR, node, abi.OPEN_IN.pack(0, 0)))

    def create(self, name: bytes, flags: int, mode: int = 0o644, parent: int = abi.ROOT_ID) -> tuple[int, int]:
        """The node and a handle of a file that is made if need be."""
        answer = self.call(abi.CREATE, parent, abi.CREATE_IN.pack(flags, mode, 0, 0) + name + b"\0")
        return entry(answer), handle(answer[-16:])

    def release(self, handle: int) -> None:
        """Close a handle."""
        self.call(abi.RELEASE, 0, abi.RELEASE_IN.pack(handle, 0, 0, 0))

    def read(self, handle: int, offset: int = 0, size: int = 4096) -> bytes:
        """What stands in a file."""
        return self.call(abi.READ, 0, abi.READ_IN.pack(handle, offset, size, 0, 0, 0, 0), room=size)

    def write(self, handle: int, data: bytes, offset: int = 0) -> int:
        """How many bytes were written."""
        body = abi.WRITE_IN.pack(handle, offset, len(data), 0, 0, 0, 0) + data
        return int(abi.WRITE_OUT.unpack(self.call(abi.WRITE, 0, body))[0])

    def status(self, node: int) -> dict[str, int]:
        """What is known of a file."""
        return attributes(self.call(abi.GETATTR, node, abi.GETATTR_IN.pack(0, 0, 0)))

    def setattr(self, node: int, valid: int, *, handle: int = 0, size: int = 0, mode: int = 0, uid: int = 0) -> None:
        """Change what `valid` names."""
        self.call(
            abi.SETATTR, node, abi.SETATTR_IN.pack(valid, 0, handle, size, 0, 7, 8, 0, 0, 0, 0, mode, 0, uid, 0, 0)
        )

    def entries(self, handle: int, place: int = 0, *, size: int = 4096, plus: bool = False) -> list[tuple[bytes, int]]:
        """One answer's names, each with the place behind it."""
        opcode = abi.READDIRPLUS if plus else abi.READDIR
        answer = self.call(opcode, abi.ROOT_ID, abi.READ_IN.pack(handle, place, size, 0, 0, 0, 0), room=size)
        found = []
        at = 0
        while at < len(answer):
            at += 128 if plus else 0
            _, following, length, _ = abi.DIRENT.unpack_from(answer, at)
            at += abi.DIRENT.size
            found.append((answer[at : at + length], following))
            at += length + -length % 8
        return found

    def list(self, handle: int, *, size: int = 4096, plus: bool = False) -> list[bytes]:
        """All names in a folder."""
        names: list[bytes] = []
        place = 0
        while found := self.entries(handle, place, size=size, plus=plus):
            names += [name for name, _ in found]
            place = found[-1][1]
        return names

    def close(self) -> None:
        """Give everything back."""
        self.device.close()
        self.folder.close()
        self.memory.close()


def entry(answer: bytes) -> int:
    """The node that an answer names."""
    return int(struct.unpack_from("<Q", answer)[0])


def handle(answer: bytes) -> int:
    """The handle that an answer gives."""
    return int(abi.OPEN_OUT.unpack(answer)[0])


def attributes(answer: bytes) -> dict[str, int]:
    """The fields of a fuse_attr_out that tests look at."""
    words = abi.ATTR.unpack_from(answer, abi.ATTR_HEAD.size)
    return {"size": words[1], "mtime": words[4], "mode": words[9], "uid": words[11], "gid": words[12]}
