"""A process in the background: the lock that says it runs, and leaving whoever started it (daemon(7))."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bivisor.errors import HostError


class LockFile:
    """A file that is locked, with this process's id in it, between `with` and its end. HostError(`taken`) where another
    process has it locked."""

    def __init__(self, path: Path, taken: str) -> None:
        self._path = path
        self._taken = taken
        self._fd = -1

    def __enter__(self) -> LockFile:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise HostError(self._taken) from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, b"%d\n" % os.getpid())
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


def leave_parent() -> None:
    """Go on as a process that nobody waits for: the calling one ends. Before the first thread is started."""
    if os.fork():
        os._exit(0)
