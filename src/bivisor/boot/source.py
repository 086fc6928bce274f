"""The files that a guest is loaded from, and the fast way from there into guest memory.

`Source` is a file or bytes that can be read anywhere. `copy` moves a part of it into guest memory inside the host's
kernel (sendfile(2) between two page caches), which is twice as fast as reading into the mapping because no page of the
mapping has to be faulted in, and leaves out what is a hole in the file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bivisor.errors import ImageError
from bivisor.memory import GuestMemory, Slot


class Source:
    """`size` bytes, called `name` in messages: an open file (`fd`) or, if `fd` is None, `data`."""

    __slots__ = ("data", "fd", "name", "size")

    def __init__(self, name: str, *, data: bytes = b"", fd: int | None = None, size: int | None = None) -> None:
        self.name = name
        self.data = data
        self.fd = fd
        self.size = len(data) if size is None else size

    @classmethod
    def open(cls, path: Path, role: str) -> Source:
        """Open the regular file `path`. ImageError, which calls it a `role` ("kernel"), if it is none, or is empty."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ImageError(f"{role} {path}: {error.strerror}") from error
        except ValueError as error:
            raise ImageError(f"{role} {str(path)!r}: {error}") from error
        status = os.fstat(fd)
        problem = None
        if stat.S_ISDIR(status.st_mode):
            problem = "is a directory"
        elif not stat.S_ISREG(status.st_mode):
            problem = "is not a regular file"
        elif not status.st_size:
            problem = "is empty"
        if problem:
            os.close(fd)
            raise ImageError(f"{role} {path}: {problem}")
        return cls(str(path), fd=fd, size=status.st_size)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`: `length` of them, fewer only where the file ends."""
        if self.fd is None:
            return self.data[offset : offset + length]
        length = max(0, min(length, self.size - offset))
        parts = []
        while length:
            try:
                part = os.pread(self.fd, length, offset)
            except OSError as error:
                raise ImageError(f"{self.name}: {error.strerror}") from error
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The (offset, length) pieces of that range which are not holes of the file."""
        if self.fd is None:
            yield offset, length
        else:
            yield from _extents(self.fd, offset, length)

    def close(self) -> None:
        """Close the file."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
            self.size = 0

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def copy(source: Source, offset: int, length: int, memory: GuestMemory, gpa: int) -> None:
    """Copy `length` bytes at `offset` of `source` to `gpa`; ImageError if the file has become shorter than that."""
    if not length:
        return
    slot = _slot(memory, gpa, length)
    _clear(slot, memory, gpa, length)
    for start, count in source.extents(offset, length):
        target = gpa + start - offset
        if source.fd is None:
            memory.view(target, count)[:] = memoryview(source.data)[start : start + count]
        elif not _send(source.fd, start, slot.region.fd, slot.offset + target - slot.gpa, count):
            _read_into(source, start, memory.view(target, count))
    memory.written(gpa, length)


def clear(memory: GuestMemory, gpa: int, length: int) -> None:
    """Make `length` bytes at `gpa` zero. Pages that nobody has touched are zero already and stay untouched."""
    if length:
        _clear(_slot(memory, gpa, length), memory, gpa, length)
        memory.written(gpa, length)


def _slot(memory: GuestMemory, gpa: int, length: int) -> Slot:
    return next(slot for slot in memory if slot.gpa <= gpa and gpa + length <= slot.gpa + slot.size)


def _clear(slot: Slot, memory: GuestMemory, gpa: int, length: int) -> None:
    shift = gpa - slot.gpa + slot.offset
    for start, count in _extents(slot.region.fd, shift, length):
        memory.view(gpa + start - shift, count)[:] = bytes(count)


def _extents(fd: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            stop = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a file system that cannot tell
                yield offset, end - offset
            return
        if start >= end:
            return
        offset = min(stop, end)
        yield start, offset - start


def _send(source: int, offset: int, target: int, position: int, length: int) -> bool:
    """sendfile(2) all of it; False, with nothing lost, where the host cannot or the file is too short."""
    try:
        os.lseek(target, position, os.SEEK_SET)
        while length:
            count = os.sendfile(target, source, offset, length)
            if not count:
                return False
            offset += count
            length -= count
    except OSError:
        return False
    return True


def _read_into(source: Source, offset: int, view: memoryview) -> None:
    assert source.fd is not None
    while view:
        try:
            count = os.preadv(source.fd, [view], offset)
        except OSError as error:
            raise ImageError(f"{source.name}: {error.strerror}") from error
        if not count:
            raise ImageError(f"{source.name}: became shorter while it was read; {len(view)} bytes are missing")
        offset += count
        view = view[count:]
