"""The checks and the small ways in which a shared folder asks its host for things."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from threading import Event

from bivisor.host.falloc import fallocate

NAME_MAX = 255
ALLOCATION_STEP = 256 << 20
FILE_END = (1 << 63) - 1
Work = Callable[[], int]
"""What another thread does; it gives the number of bytes, where there are any."""


def error(number: int) -> OSError:
    """The exception for an errno."""
    return OSError(number, os.strerror(number))


def checked_name(name: bytes) -> bytes:
    """A name in a folder: one that leads elsewhere would be the way out. EINVAL, ENAMETOOLONG."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise error(errno.EINVAL)
    if len(name) > NAME_MAX:
        raise error(errno.ENAMETOOLONG)
    return name


def checked_offset(offset: int, views: Sequence[memoryview]) -> int:
    """`offset`, if `views` end inside of what a file can have. EFBIG."""
    if offset + sum(map(len, views)) > FILE_END:
        raise error(errno.EFBIG)
    return offset


def by_fd(fd: int) -> str:
    """A path to the very file that is open as `fd`, whatever names it has (proc(5))."""
    return f"/proc/self/fd/{fd}"


def with_fd(fd: int, act: Callable[[int], int]) -> Work:
    """`act` with a descriptor of its own: the guest may close its handle meanwhile."""

    def work() -> int:
        try:
            return act(fd)
        finally:
            os.close(fd)

    return work


def data_sync(fd: int) -> int:
    """Wait until the contents are stable."""
    os.fdatasync(fd)
    return 0


def full_sync(fd: int) -> int:
    """Wait until the contents and what is known of the file are stable."""
    os.fsync(fd)
    return 0


def allocation(mode: int, offset: int, length: int, hurry: Event) -> Callable[[int], int]:
    """What calls fallocate(2) piece by piece, as all of it may take long. EINTR once `hurry` is set."""

    def act(fd: int) -> int:
        for at in range(offset, offset + length, ALLOCATION_STEP):
            if hurry.is_set():
                raise error(errno.EINTR)
            fallocate(fd, mode, at, min(ALLOCATION_STEP, offset + length - at))
        return 0

    return act
