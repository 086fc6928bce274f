"""A log file that a guest cannot fill the host's disk with."""

from __future__ import annotations

import os
from pathlib import Path

from bivisor.errors import HostError

LIMIT = 1 << 20


class LogFile:
    """Appends to `path`. When `limit` bytes are in it, it becomes `path`.1 and a new one begins. Mode 0600."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self._path = path
        self._limit = limit
        self._fd = -1
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror}") from None
        self._size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """Append `data`. A disk that is full costs the log its lines and nobody else anything."""
        if self._fd < 0:
            return
        try:
            if self._size >= self._limit:
                os.close(self._fd)
                self._fd = -1
                self._path.rename(f"{self._path}.1")
                self._open()
            os.write(self._fd, data)
        except OSError:
            return
        self._size += len(data)

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
