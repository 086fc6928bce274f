"""A folder of the host that a guest reads and writes, and that it cannot leave.

Every file is reached name by name from the folder down, and no symbolic link is ever followed here: a guest gets it as
a link, and follows it among its own files. Only regular files are opened, so none waits for its other end. New files
belong to whoever runs this program, without the bits that would let others act as that user (S_ISUID, S_ISGID).

Every method may raise OSError, whose number is the guest's answer. What may take long is not done but given back as a
function, for another thread.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bivisor.errors import UsageError
from bivisor.host.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from bivisor.host.renameat2 import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from bivisor.host.shared_calls import (
    FILE_END,
    Work,
    allocation,
    by_fd,
    checked_name,
    checked_offset,
    data_sync,
    error,
    full_sync,
    with_fd,
)
from bivisor.host.shared_listing import Listing
from bivisor.host.shared_nodes import Node, Nodes, identity_of

HANDLES_MAX = 4096
LISTED_MAX = 1 << 20
_MODE = 0o1777
_KEPT_FLAGS = os.O_APPEND | os.O_SYNC
_OPEN = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FALLOC = (
    0,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_ZERO_RANGE,
    FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
)
Entry = tuple[int, os.stat_result]
"""The number of a node, and what is known of its file."""


class _File:
    """An open file of the guest's. `waits`: a write is only done when it is stable."""

    __slots__ = ("fd", "node", "waits")

    def __init__(self, fd: int, node: Node, waits: bool) -> None:
        self.fd = fd
        self.node = node
        self.waits = waits


class SharedFolder:
    """The folder at `path`. With `read_only`, whatever would change it is refused with EROFS.

    `uid` and `gid` are those that this program has. UsageError where `path` is no folder that can be read.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self.uid, self.gid = os.geteuid(), os.getegid()
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._nodes = Nodes(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except (OSError, ValueError) as problem:
            why = problem.strerror if isinstance(problem, OSError) else str(problem)
            raise UsageError(f"share {path}: {why}; a folder that can be read is needed") from None
        # A part of what this process may have open: its guests have other things, too.
        self._handles_max = min(HANDLES_MAX, max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._handles: dict[int, _File | Listing] = {}
        self._numbers = itertools.count(1)
        self._hurry = threading.Event()

    # Names

    def lookup(self, parent: int, name: bytes) -> Entry:
        """What stands as `name` in the folder `parent`; counted, until it is forgotten as often."""
        folder = self._nodes.get(parent)
        status = os.stat(checked_name(name), dir_fd=self._nodes.fd(folder), follow_symlinks=False)
        return self._nodes.found(folder, name, status).id, status

    def forget(self, node: int, count: int) -> None:
        """See `Nodes.forget`."""
        self._nodes.forget(node, count)

    def hurry(self) -> None:
        """Nobody waits any more for what other threads do: it may end early, until `forget_all`."""
        self._hurry.set()

    def forget_all(self) -> None:
        """The guest has closed and forgotten everything."""
        self._hurry.clear()
        for handle in list(self._handles):
            self.release(handle)
        self._nodes.forget_all()

    def symlink(self, parent: int, name: bytes, target: bytes) -> Entry:
        """Make a symbolic link. `target` is not looked at."""
        if not target:
            raise error(errno.ENOENT)
        return self._make(parent, name, lambda fd: os.symlink(target, name, dir_fd=fd))

    def mknod(self, parent: int, name: bytes, mode: int) -> Entry:
        """Make an empty regular file. EPERM for anything else."""
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise error(errno.EPERM)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | _OPEN
        return self._make(parent, name, lambda fd: os.close(os.open(name, flags, mode & _MODE, dir_fd=fd)))

    def mkdir(self, parent: int, name: bytes, mode: int) -> Entry:
        """Make a folder."""
        return self._make(parent, name, lambda fd: os.mkdir(name, mode & _MODE, dir_fd=fd))

    def link(self, node: int, parent: int, name: bytes) -> Entry:
        """Give a file another name."""
        source = self._nodes.get(node)
        if source.kind == stat.S_IFDIR:
            raise error(errno.EPERM)
        with self._held(source) as fd:
            return self._make(parent, name, lambda into: os.link(by_fd(fd), name, dst_dir_fd=into), fresh=False)

    def _make(self, parent: int, name: bytes, make: Callable[[int], None], *, fresh: bool = True) -> Entry:
        self._may_write()
        checked_name(name)
        folder = self._nodes.get(parent)
        fd = self._nodes.fd(folder)
        make(fd)
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        return self._nodes.found(folder, name, status, fresh=fresh).id, status

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name that is not a folder's."""
        self._remove(parent, name, lambda fd: os.unlink(name, dir_fd=fd))

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty folder."""
        self._remove(parent, name, lambda fd: os.rmdir(name, dir_fd=fd))

    def _remove(self, parent: int, name: bytes, remove: Callable[[int], None]) -> None:
        self._may_write()
        fd = self._nodes.fd(self._nodes.get(parent))
        status = os.stat(checked_name(name), dir_fd=fd, follow_symlinks=False)
        remove(fd)
        self._removed(status)

    def _removed(self, status: os.stat_result) -> None:
        """A name of a file is gone, of which `status` was known before."""
        node = self._nodes.known(status)
        if node is not None and (status.st_nlink <= 1 or stat.S_ISDIR(status.st_mode)):
            self._nodes.lost(node)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """Move `name` of `parent`; `flags` are renameat2(2)'s, RENAME_NOREPLACE or RENAME_EXCHANGE."""
        self._may_write()
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise error(errno.EINVAL)
        source, target = self._nodes.get(parent), self._nodes.get(new_parent)
        with self._held(source) as old_fd:
            new_fd = self._nodes.fd(target)
            moved = os.stat(checked_name(name), dir_fd=old_fd, follow_symlinks=False)
            try:
                over = os.stat(checked_name(new_name), dir_fd=new_fd, follow_symlinks=False)
            except FileNotFoundError:
                over = None
            renameat2(old_fd, name, new_fd, new_name, flags)
        if over is not None and identity_of(over) == identity_of(moved):
            return
        if over is not None and flags == RENAME_EXCHANGE:
            self._moved(over, source, name)
        elif over is not None:
            self._removed(over)
        self._moved(moved, target, new_name)

    def _moved(self, status: os.stat_result, parent: Node, name: bytes) -> None:
        node = self._nodes.known(status)
        if node is not None:
            self._nodes.moved(node, parent, name)

    # What a file is

    def status(self, node: int, handle: int | None = None) -> os.stat_result:
        """What is known of a file, or of the one that is open as `handle`."""
        known = self._nodes.get(node)
        return os.fstat(self._nodes.fd(known) if handle is None else self._file(handle).fd)

    def readlink(self, node: int) -> bytes:
        """Where a symbolic link leads: the words, as they are."""
        known = self._nodes.get(node)
        if known.kind != stat.S_IFLNK:
            raise error(errno.EINVAL)
        return os.readlink(b"", dir_fd=self._nodes.fd(known))

    def set_mode(self, node: int, mode: int) -> None:
        """Change the permissions."""
        self._may_write()
        Path(by_fd(self._nodes.fd(self._nodes.get(node)))).chmod(mode & _MODE)

    def set_size(self, node: int, size: int, handle: int | None = None) -> None:
        """Cut a file off, or make it longer."""
        self._may_write()
        known = self._nodes.get(node)
        if size > FILE_END:
            raise error(errno.EFBIG)
        if handle is not None:
            os.ftruncate(self._file(handle).fd, size)
            return
        if known.kind != stat.S_IFREG:
            raise error(errno.EISDIR if known.kind == stat.S_IFDIR else errno.EINVAL)
        os.truncate(by_fd(self._nodes.fd(known)), size)

    def set_times(self, node: int, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set when a file was read and changed last (ns since the epoch); None leaves it."""
        self._may_write()
        fd = self._nodes.fd(self._nodes.get(node))
        now = os.fstat(fd)
        times = (
            now.st_atime_ns if atime_ns is None else atime_ns,
            now.st_mtime_ns if mtime_ns is None else mtime_ns,
        )
        os.utime(by_fd(fd), ns=times)

    def statfs(self, node: int) -> os.statvfs_result:
        """The file system that a file is in."""
        return os.fstatvfs(self._nodes.fd(self._nodes.get(node)))

    # Open files

    def open(self, node: int, flags: int) -> int:
        """Open a regular file as `flags` (open(2)) say, and give the handle."""
        known = self._nodes.get(node)
        if known.kind != stat.S_IFREG:
            raise error({stat.S_IFDIR: errno.EISDIR, stat.S_IFLNK: errno.ELOOP}.get(known.kind, errno.ENXIO))
        access = self._access(flags)
        self._room()
        fd = os.open(by_fd(self._nodes.fd(known)), access | flags & _KEPT_FLAGS | _OPEN)
        return self._keep(_File(fd, known, bool(flags & os.O_DSYNC)))

    def create(self, parent: int, name: bytes, flags: int, mode: int) -> tuple[Entry, int]:
        """Open the regular file `name`, which is made if need be, and give the handle."""
        self._may_write()
        self._room()
        folder = self._nodes.get(parent)
        wanted = self._access(flags) | flags & _KEPT_FLAGS | _OPEN | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            fd = os.open(checked_name(name), wanted, mode & _MODE, dir_fd=self._nodes.fd(folder))
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return self._open_entry(self.lookup(parent, name), flags)
        try:
            status = os.fstat(fd)
            node = self._nodes.found(folder, name, status, fresh=True)
        except OSError:
            os.close(fd)
            raise
        return (node.id, status), self._keep(_File(fd, node, bool(flags & os.O_DSYNC)))

    def _open_entry(self, entry: Entry, flags: int) -> tuple[Entry, int]:
        node = entry[0]
        try:
            handle = self.open(node, flags)
        except OSError:
            self.forget(node, 1)
            raise
        if flags & os.O_TRUNC:
            os.ftruncate(self._file(handle).fd, 0)
        return (node, self.status(node)), handle

    def readv(self, handle: int, views: Sequence[memoryview], offset: int) -> int:
        """Fill `views` from `offset` on; how many bytes there were."""
        return os.preadv(self._file(handle).fd, views, checked_offset(offset, views)) if views else 0

    def writev(self, handle: int, views: Sequence[memoryview], offset: int) -> int | Work:
        """Write `views` to `offset` on; how many bytes were written, or what will write them."""
        file = self._file(handle)
        checked_offset(offset, views)
        if not views:
            return 0
        if not file.waits:
            return os.pwritev(file.fd, views, offset)
        return with_fd(os.dup(file.fd), lambda fd: os.pwritev(fd, views, offset))

    def sync(self, handle: int, data_only: bool) -> Work:
        """What waits until everything written is stable."""
        return with_fd(os.dup(self._file(handle).fd), data_sync if data_only else full_sync)

    def allocate(self, handle: int, mode: int, offset: int, length: int) -> Work:
        """What changes the space behind a part of a file, as fallocate(2)."""
        self._may_write()
        if mode not in _FALLOC:
            raise error(errno.EOPNOTSUPP)
        if not 0 < length <= FILE_END - min(offset, FILE_END):
            raise error(errno.EINVAL)
        return with_fd(os.dup(self._file(handle).fd), allocation(mode, offset, length, self._hurry))

    def seek(self, handle: int, offset: int, whence: int) -> int:
        """Where data or a hole begins (SEEK_DATA, SEEK_HOLE of lseek(2))."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE) or offset > FILE_END:
            raise error(errno.EINVAL)
        return os.lseek(self._file(handle).fd, offset, whence)

    def release(self, handle: int) -> None:
        """Close a file or folder. EBADF."""
        kept = self._handles.pop(handle, None)
        if kept is None:
            raise error(errno.EBADF)
        if isinstance(kept, Listing):
            kept.close()
        else:
            kept.node.open_fds.remove(kept.fd)
            os.close(kept.fd)

    # Open folders

    def opendir(self, node: int) -> int:
        """Open a folder to list it, and give the handle."""
        known = self._nodes.get(node)
        if known.kind != stat.S_IFDIR:
            raise error(errno.ENOTDIR)
        self._room()
        fd = self._nodes.fd(known)
        return self._keep(Listing(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)))

    def listing(self, handle: int) -> Listing:
        """An open folder. EBADF; ENOMEM where the guest has listed too much that it has not closed."""
        listing = self._handles.get(handle)
        if not isinstance(listing, Listing):
            raise error(errno.EBADF)
        if sum(len(each) for each in self._handles.values() if isinstance(each, Listing)) > LISTED_MAX:
            raise error(errno.ENOMEM)
        return listing

    def sync_folder(self, handle: int) -> Work:
        """What waits until the names of an open folder are stable."""
        return with_fd(os.dup(self.listing(handle).fd), full_sync)

    def close(self) -> None:
        """Close everything."""
        self.forget_all()
        self._nodes.close()

    def _may_write(self) -> None:
        if self.read_only:
            raise error(errno.EROFS)

    def _access(self, flags: int) -> int:
        access = flags & os.O_ACCMODE
        if access == os.O_ACCMODE:
            raise error(errno.EINVAL)
        if access != os.O_RDONLY:
            self._may_write()
        return access

    def _room(self) -> None:
        # A guest that opens without end would leave its host no descriptor.
        if len(self._handles) >= self._handles_max:
            raise error(errno.ENFILE)

    def _keep(self, opened: _File | Listing) -> int:
        handle = next(self._numbers)
        self._handles[handle] = opened
        if isinstance(opened, _File):
            opened.node.open_fds.append(opened.fd)
        return handle

    def _file(self, handle: int) -> _File:
        file = self._handles.get(handle)
        if not isinstance(file, _File):
            raise error(errno.EBADF)
        return file

    @contextmanager
    def _held(self, node: Node) -> Iterator[int]:
        """A descriptor of `node` that stays while others are opened."""
        fd = os.dup(self._nodes.fd(node))
        try:
            yield fd
        finally:
            os.close(fd)
