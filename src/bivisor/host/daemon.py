"""A process in the background: the lock that says it runs, leaving whoever started it, and its end (daemon(7))."""

from __future__ import annotations

import fcntl
import os
import select
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
        try:
            os.ftruncate(self._fd, 0)
            os.write(self._fd, b"%d\n" % os.getpid())
        except OSError as error:
            self.__exit__()
            raise HostError(f"{self._path}: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


def is_locked(path: Path) -> bool:
    """Whether some process has that file locked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


class Watched:
    """Another process, to wait for its end (pidfd_open(2)); one that has ended already is no error."""

    def __init__(self, pid: int) -> None:
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = -1

    def wait(self, timeout: float) -> bool:
        """Wait until it has ended, `timeout` seconds at most; whether it has."""
        if self._fd < 0:
            return True
        ended = bool(select.select([self._fd], [], [], timeout)[0])
        os.close(self._fd)
        self._fd = -1
        return ended


def leave_parent() -> None:
    """Go on as a process that nobody waits for: the calling one ends. Before the first thread is started."""
    if os.fork():
        os._exit(0)
