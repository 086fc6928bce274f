"""Raw disk images and block devices of the host.

Data goes between the file and the caller's views with preadv(2) and pwritev(2); no copy is kept here. A writable image
is locked against any other user, a read-only one against a writer (see `host/filelock.py`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from bivisor.errors import ImageError, UsageError
from bivisor.host import filelock
from bivisor.host.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, fallocate, punch_hole

SECTOR = 512
_BLKGETSIZE64 = 0x80081272
_BLKPBSZGET = 0x127B
_BLKZEROOUT = 0x127F
_BLKDISCARD = 0x1277
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY)
_ZEROES = bytes(1 << 20)


class Disk:
    """The raw image at `path`: `size` bytes, a multiple of 512 (with `any_size`, any number).

    UsageError in one line where the file is missing, a directory, not to be opened, in use or of an impossible size.
    `force_share`: look for no other user, and keep none away.
    """

    def __init__(
        self, path: str | Path, *, read_only: bool = False, force_share: bool = False, any_size: bool = False
    ) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self._any_size = any_size
        try:
            # Without O_NONBLOCK the open of a FIFO would wait for its other end.
            self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise self._cannot_open(error) from None
        try:
            self._examine()
            if not force_share:
                self._lock()
        except BaseException:
            os.close(self._fd)
            raise

    def _cannot_open(self, error: OSError | ValueError) -> UsageError:
        match error:
            case FileNotFoundError():
                return UsageError(f"disk {self.path}: there is no such file")
            case IsADirectoryError():
                return UsageError(f"disk {self.path}: it is a directory, not an image or a block device")
            case PermissionError():
                if not self.read_only and os.access(self.path, os.R_OK):
                    return UsageError(f"disk {self.path}: no permission to write; ro opens it for reading")
                return UsageError(f"disk {self.path}: no permission to read it")
            case OSError(errno=errno.EROFS):
                return UsageError(f"disk {self.path}: its file system is read-only; open it read-only")
        reason = error.strerror if isinstance(error, OSError) else ""
        return UsageError(f"disk {self.path}: {reason or error}")

    def _examine(self) -> None:
        status = os.fstat(self._fd)
        self.is_device = stat.S_ISBLK(status.st_mode)
        self.physical_block = 4096
        if self.is_device:
            self.size = struct.unpack("Q", fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8)))[0]
            self.physical_block = struct.unpack("I", fcntl.ioctl(self._fd, _BLKPBSZGET, bytes(4)))[0]
        elif stat.S_ISREG(status.st_mode):
            self.size = status.st_size
        elif stat.S_ISDIR(status.st_mode):
            raise UsageError(f"disk {self.path}: it is a directory, not an image or a block device")
        else:
            raise ImageError(f"disk {self.path}: neither a file nor a block device")
        if not self._any_size and (not self.size or self.size % SECTOR):
            raise ImageError(f"disk {self.path}: {self.size} bytes, which is no positive multiple of {SECTOR}")

    def _lock(self) -> None:
        if not filelock.lock(self._fd, writing=not self.read_only):
            raise filelock.in_use(self.path)

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill `views` with the bytes from `offset` on; how many there were."""
        return os.preadv(self._fd, views, offset)

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        """Write `views` to `offset` on; how many bytes were written."""
        return os.pwritev(self._fd, views, offset)

    def flush(self) -> None:
        """Wait until all that was written is stable."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Give the space back where that is possible: a hint, so it is no error where it is not."""
        try:
            if self.is_device:
                fcntl.ioctl(self._fd, _BLKDISCARD, struct.pack("QQ", offset, length))
            else:
                punch_hole(self._fd, offset, length)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Make `length` bytes at `offset` read as zero; with `unmap` their space may be given back."""
        try:
            if self.is_device:
                fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
            else:
                mode = FALLOC_FL_PUNCH_HOLE if unmap else FALLOC_FL_ZERO_RANGE
                fallocate(self._fd, mode | FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            self._write_zeroes(offset, length)

    def _write_zeroes(self, offset: int, length: int) -> None:
        view = memoryview(_ZEROES)
        end = offset + length
        while offset < end:
            offset += os.pwrite(self._fd, view[: end - offset], offset)

    def close(self) -> None:
        """Close the image; its lock goes with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
