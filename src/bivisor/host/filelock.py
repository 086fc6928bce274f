"""Locks against two users of one disk image, in the form in which QEMU takes them, so that either heeds the other.

For each thing that can be done to an image there is a byte at 100 and one at 200 of the file. Who does it holds the
first with a read lock, who lets nobody else do it holds the second; and whoever comes looks, by asking for a write
lock, whether somebody forbids what it does or does what it forbids (open file description locks, fcntl(2); QEMU
block/file-posix.c). They are locks of the open file, not of the process: two machines of one process are two users.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from bivisor.errors import HostError

CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE = range(4)
_USES, _FORBIDS = 100, 200
_FLOCK = struct.Struct("hhqqi4x")
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def lock(fd: int, *, writing: bool) -> bool:
    """Lock the image `fd` for a reader, or for the one writer. False where somebody is in the way. OSError.

    A file system without locks is nobody's fault: True. Where it is False, nothing is held."""
    uses = (CONSISTENT_READ, WRITE, WRITE_UNCHANGED) if writing else (CONSISTENT_READ,)
    forbids = (WRITE, RESIZE)
    held = [_USES + use for use in uses] + [_FORBIDS + use for use in forbids]
    looked_at = [_FORBIDS + use for use in uses] + [_USES + use for use in forbids]
    try:
        if all(_take(fd, byte) for byte in held) and all(_is_free(fd, byte) for byte in looked_at):
            return True
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        raise


def _take(fd: int, byte: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_free(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)


def in_use(path: Path, proc: Path = Path("/proc")) -> HostError:
    """The error that says who has locks on the image `path`. Processes of other users cannot be seen."""
    try:
        status = path.stat()
        wanted = (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
        found = [_called(pid, name) for pid, name in _processes(proc) if _has_lock(proc / str(pid), wanted)]
    except OSError:
        found = []
    who = f": {' and '.join(found)}" if found else ""
    return HostError(f"disk {path}: another machine is using it{who}")


def _called(pid: int, name: str) -> str:
    return f"process {pid} itself, for another guest or twice" if pid == os.getpid() else f"process {pid} ({name})"


def _processes(proc: Path) -> Iterator[tuple[int, str]]:
    for folder in proc.iterdir():
        if folder.name.isdigit():
            try:
                yield int(folder.name), (folder / "comm").read_text().strip()
            except OSError:
                continue


def _has_lock(process: Path, wanted: tuple[int, int, int]) -> bool:
    """proc_pid_fdinfo(5): `lock: 1: OFDLCK ADVISORY READ -1 08:01:1234 100 100`."""
    try:
        return any(wanted in _places(info.read_text()) for info in (process / "fdinfo").iterdir())
    except OSError:
        return False


def _places(text: str) -> Iterable[tuple[int, int, int]]:
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["lock:"] and len(words) > 6:
            major, minor, inode = words[6].split(":")
            yield int(major, 16), int(minor, 16), int(inode)
