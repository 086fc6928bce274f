"""Unix sockets that only their owner may use, in a folder that only their owner may enter (unix(7)).

A socket is never open to others, not even for a moment: it gets its mode before it gets its name. Who connects is asked
for all the same, by SO_PEERCRED.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path

from bivisor.errors import HostError

PATH_MAX = 107
"""sizeof sun_path less its final zero."""
_UCRED = struct.Struct("iII")  # pid, uid, gid


def private_folder(path: Path) -> Path:
    """The folder `path`, made with mode 0700 if need be. HostError where others own it or can look into it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except (FileExistsError, NotADirectoryError):
        raise HostError(f"{path} is not a folder, or not in one: name another") from None
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise HostError(f"{path} is not a folder of its own")
    if found.st_uid != os.geteuid():
        raise HostError(f"{path} belongs to user {found.st_uid}: name another folder")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise HostError(f"{path} is open to others: chmod 700 it, or name another folder")
    return path


def listen(path: Path) -> socket.socket:
    """A listening socket at `path` with mode 0600. One that is there is replaced: the caller knows that it is dead.

    HostError where it cannot be made, or something is there that is no socket: that is somebody's file.
    """
    _check(path)
    if os.path.lexists(path) and not path.is_socket():
        raise HostError(f"{path}: there is something already, and it is no socket; name another place")
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        os.fchmod(end.fileno(), 0o600)  # bind() gives the file the mode of the socket
        end.bind(os.fspath(path))
        end.listen(64)
    except OSError as error:
        end.close()
        raise HostError(f"{path}: {error.strerror or error}") from None
    return end


def connect(path: Path) -> socket.socket | None:
    """A connection to the socket `path`, or None where nobody listens. HostError where it may not be opened."""
    _check(path)
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        end.connect(os.fspath(path))
    except OSError as error:
        end.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            return None
        raise HostError(f"{path}: {error.strerror or error}") from None
    return end


def peer_uid(end: socket.socket) -> int:
    """The user id of the process at the other end, as of when it connected."""
    return int(_UCRED.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1])


def _check(path: Path) -> None:
    if len(os.fsencode(path)) > PATH_MAX:
        raise HostError(f"{path}: a socket's path has at most {PATH_MAX} bytes; name a shorter folder")


def own_uid() -> int:
    """This process's effective user id."""
    return os.geteuid()
