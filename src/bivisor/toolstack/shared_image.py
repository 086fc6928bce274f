"""One open disk image with several users: the emulated disk and the PV disk of an HVM domain are the same disk."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from bivisor.host.images import DiskImage


class SharedImage:
    """A handle of an image; `again()` gives another one. The image is closed with the last. See `DiskImage`."""

    def __init__(self, image: DiskImage, users: _Users | None = None) -> None:
        self._image = image
        self._users = users or _Users()
        self._closed = False
        self.path: Path = image.path
        self.size = image.size
        self.read_only = image.read_only
        self.physical_block = image.physical_block
        self.readv = image.readv
        self.writev = image.writev
        self._users.come()

    def again(self) -> SharedImage:
        """One more handle, before this one is closed."""
        return SharedImage(self._image, self._users)

    def flush(self) -> None:
        """See `DiskImage.flush`."""
        self._image.flush()

    def discard(self, offset: int, length: int) -> None:
        """See `DiskImage.discard`."""
        self._image.discard(offset, length)

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """See `DiskImage.zero`."""
        self._image.zero(offset, length, unmap)

    def close(self) -> None:
        """Let go of it; a second time is no error."""
        if not self._closed:
            self._closed = True
            self.readv = self.writev = _gone
            if self._users.leave():
                self._image.close()


class _Users:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def come(self) -> None:
        with self._lock:
            self._count += 1

    def leave(self) -> bool:
        with self._lock:
            self._count -= 1
            return not self._count


def _gone(views: Sequence[memoryview], offset: int) -> int:
    raise OSError("the image is closed")
