"""What is in a folder, as far as it was asked for, by its place: a guest reads a folder in pieces, and may go back."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

Listed = tuple[bytes, int, int]
"""A name, its inode number, and its kind as in d_type of readdir(3)."""
_DT = {kind: kind >> 12 for kind in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK)}


class Listing:
    """The folder that is open as `fd`, which belongs to this object from now on. `.` and `..` come first."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._own = os.fstat(fd).st_ino
        self._start()

    def _start(self) -> None:
        self._seen: list[Listed] = [(b".", self._own, _DT[stat.S_IFDIR]), (b"..", self._own, _DT[stat.S_IFDIR])]
        os.lseek(self.fd, 0, os.SEEK_SET)
        self._scan = os.scandir(self.fd)

    def __len__(self) -> int:
        return len(self._seen)

    def since(self, place: int) -> Iterator[Listed]:
        """The entries from `place` on. From 0 on, the folder is read anew."""
        if not place and len(self._seen) > 2:
            self._scan.close()
            self._start()
        while place <= len(self._seen):
            if place == len(self._seen):
                entry = next(self._scan, None)
                if entry is None:
                    return
                self._seen.append((os.fsencode(entry.name), entry.inode(), _kind(entry)))
            yield self._seen[place]
            place += 1

    def close(self) -> None:
        """Give back what it holds."""
        self._scan.close()
        os.close(self.fd)


def _kind(entry: os.DirEntry[str]) -> int:
    """The kind, where the folder itself says it: 0 is for unknown."""
    if entry.is_symlink():
        return _DT[stat.S_IFLNK]
    if entry.is_dir(follow_symlinks=False):
        return _DT[stat.S_IFDIR]
    return _DT[stat.S_IFREG] if entry.is_file(follow_symlinks=False) else 0
