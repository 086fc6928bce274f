"""The server's side of FUSE (include/uapi/linux/fuse.h, version 7.31): requests become calls of a `Folder`.

What a guest's kernel does well without is answered ENOSYS, after which it asks for it no more: locks and access checks
are its own, a FLUSH has nothing to do here, there are no extended attributes.

Every number in a request is hostile. Those of nodes and handles, names, offsets and sizes are checked by the folder,
lengths of messages here.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable

from bivisor.abi import fuse as abi
from bivisor.platform.virtio.device import gather, scatter, skip
from bivisor.platform.virtio.folder import Entry, Folder, Work

MAX_PAGES = 256
MAX_IO = MAX_PAGES << 12
LIST_MAX = 64 << 10
MESSAGE_MAX = 64 << 10
_SECOND = 1_000_000_000
_NOBODY = 65534
_HEADER, _ANSWER = abi.IN_HEADER.size, abi.OUT_HEADER.size
_OFFERED = abi.ASYNC_READ | abi.BIG_WRITES | abi.AUTO_INVAL_DATA | abi.ASYNC_DIO | abi.PARALLEL_DIROPS | abi.MAX_PAGES
_PLUS = abi.DO_READDIRPLUS | abi.READDIRPLUS_AUTO

Answer = bytes | int | Work | None
"""A body, the length of one that is in its place already, work for another thread, or nothing at all to be sent."""


class FuseServer:
    """Serves `folder`. The guest may take what it was told of a file for true for `cache` seconds."""

    def __init__(self, folder: Folder, *, cache: float = 0.0) -> None:
        self._folder = folder
        self._valid = divmod(int(cache * _SECOND), _SECOND)
        self._flags = _OFFERED | (_PLUS if cache else 0)
        self._plain: dict[int, Callable[[int, bytes], Answer]] = {
            abi.LOOKUP: self._lookup,
            abi.FORGET: self._forget,
            abi.BATCH_FORGET: self._batch_forget,
            abi.INTERRUPT: lambda _, __: None,
            abi.INIT: self._init,
            abi.DESTROY: self._destroy,
            abi.GETATTR: self._getattr,
            abi.SETATTR: self._setattr,
            abi.READLINK: lambda node, _: self._folder.readlink(node),
            abi.SYMLINK: self._symlink,
            abi.MKNOD: self._mknod,
            abi.MKDIR: self._mkdir,
            abi.UNLINK: self._unlink,
            abi.RMDIR: self._rmdir,
            abi.RENAME: self._rename,
            abi.RENAME2: self._rename2,
            abi.LINK: self._link,
            abi.OPEN: self._open,
            abi.OPENDIR: lambda node, _: abi.OPEN_OUT.pack(self._folder.opendir(node), 0, 0),
            abi.CREATE: self._create,
            abi.RELEASE: self._release,
            abi.RELEASEDIR: self._release,
            abi.FSYNC: self._fsync,
            abi.FSYNCDIR: lambda _, body: self._folder.sync_folder(abi.FSYNC_IN.unpack_from(body)[0]),
            abi.STATFS: self._statfs,
            abi.LSEEK: self._lseek,
            abi.FALLOCATE: self._fallocate,
        }

    def serve(self, opcode: int, node: int, readable: list[memoryview], writable: list[memoryview]) -> Answer:
        """Carry out one request, whose header stands at the beginning of `readable`; data that is asked for goes into
        `writable` behind its header. OSError for an answer that is an error."""
        try:
            match opcode:
                case abi.READ:
                    return self._read(readable, writable)
                case abi.WRITE:
                    return self._write(readable)
                case abi.READDIR | abi.READDIRPLUS:
                    return self._readdir(node, readable, writable, plus=opcode == abi.READDIRPLUS)
            operation = self._plain.get(opcode)
            if operation is None:
                raise OSError(errno.ENOSYS, "no such operation")
            return operation(node, _body(readable, MESSAGE_MAX))
        except (struct.error, OverflowError, ValueError) as error:
            raise OSError(errno.EINVAL, str(error)) from None

    def hurry(self) -> None:
        """See `Folder.hurry`."""
        self._folder.hurry()

    def forget_all(self) -> None:
        """The guest is gone, or begins anew."""
        self._folder.forget_all()

    # The connection

    def _init(self, _: int, body: bytes) -> bytes:
        major, _minor, readahead, flags = abi.INIT_IN.unpack_from(body)
        if major < abi.KERNEL_VERSION:
            raise OSError(errno.EPROTO, "too old")
        self._folder.forget_all()
        versions = (abi.KERNEL_VERSION, abi.KERNEL_MINOR_VERSION)
        return abi.INIT_OUT.pack(*versions, readahead, flags & self._flags, 64, 48, MAX_IO, 1, MAX_PAGES, 0, 0)

    def _destroy(self, _: int, __: bytes) -> bytes:
        self._folder.forget_all()
        return b""

    def _forget(self, node: int, body: bytes) -> None:
        self._folder.forget(node, abi.FORGET_IN.unpack_from(body)[0])

    def _batch_forget(self, _: int, body: bytes) -> None:
        count, _dummy = abi.BATCH_FORGET_IN.unpack_from(body)
        at, one = abi.BATCH_FORGET_IN.size, abi.FORGET_ONE.size
        for place in range(at, min(at + count * one, len(body) - one + 1), one):
            self._folder.forget(*abi.FORGET_ONE.unpack_from(body, place))

    # Names

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(self._folder.lookup(node, _name(body)))

    def _symlink(self, node: int, body: bytes) -> bytes:
        return self._entry(self._folder.symlink(node, *_names(body, 2)))

    def _mknod(self, node: int, body: bytes) -> bytes:
        mode, *_ = abi.MKNOD_IN.unpack_from(body)
        return self._entry(self._folder.mknod(node, _name(body, abi.MKNOD_IN.size), mode))

    def _mkdir(self, node: int, body: bytes) -> bytes:
        mode, _umask = abi.MKDIR_IN.unpack_from(body)
        return self._entry(self._folder.mkdir(node, _name(body, abi.MKDIR_IN.size), mode))

    def _link(self, node: int, body: bytes) -> bytes:
        (source,) = abi.LINK_IN.unpack_from(body)
        return self._entry(self._folder.link(source, node, _name(body, abi.LINK_IN.size)))

    def _unlink(self, node: int, body: bytes) -> bytes:
        self._folder.unlink(node, _name(body))
        return b""

    def _rmdir(self, node: int, body: bytes) -> bytes:
        self._folder.rmdir(node, _name(body))
        return b""

    def _rename(self, node: int, body: bytes) -> bytes:
        (target,) = abi.RENAME_IN.unpack_from(body)
        old, new = _names(body, 2, abi.RENAME_IN.size)
        self._folder.rename(node, old, target, new)
        return b""

    def _rename2(self, node: int, body: bytes) -> bytes:
        target, flags, _ = abi.RENAME2_IN.unpack_from(body)
        old, new = _names(body, 2, abi.RENAME2_IN.size)
        self._folder.rename(node, old, target, new, flags)
        return b""

    # What a file is

    def _getattr(self, node: int, body: bytes) -> bytes:
        flags, _, handle = abi.GETATTR_IN.unpack_from(body)
        return self._status(self._folder.status(node, handle if flags & abi.GETATTR_FH else None))

    def _setattr(self, node: int, body: bytes) -> bytes:
        words = abi.SETATTR_IN.unpack_from(body)
        valid, _, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = words
        handle = fh if valid & abi.FATTR_FH else None
        self._same_owner(self._folder.status(node), uid, gid, valid)
        if valid & abi.FATTR_MODE:
            self._folder.set_mode(node, mode)
        if valid & abi.FATTR_SIZE:
            self._folder.set_size(node, size, handle)
        if valid & (abi.FATTR_ATIME | abi.FATTR_MTIME):
            read = _moment(valid, abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, atime, atime_ns)
            changed = _moment(valid, abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, mtime, mtime_ns)
            self._folder.set_times(node, read, changed)
        return self._status(self._folder.status(node, handle))

    def _same_owner(self, status: os.stat_result, uid: int, gid: int, valid: int) -> None:
        """Files stay whose they are, and setting what is so already is fine."""
        shown = self._owner(status)
        if (valid & abi.FATTR_UID and uid != shown[0]) or (valid & abi.FATTR_GID and gid != shown[1]):
            raise OSError(errno.EPERM, "the owner cannot be changed")

    def _owner(self, status: os.stat_result) -> tuple[int, int]:
        """Whose a file is for the guest: what is ours is root's, all else nobody's."""
        folder = self._folder
        return 0 if status.st_uid == folder.uid else _NOBODY, 0 if status.st_gid == folder.gid else _NOBODY

    def _attr(self, status: os.stat_result) -> bytes:
        times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
        seconds = (at // _SECOND & 0xFFFF_FFFF_FFFF_FFFF for at in times)
        parts = (at % _SECOND for at in times)
        links = min(status.st_nlink, 0xFFFF_FFFF)
        more = (status.st_mode, links, *self._owner(status), 0, status.st_blksize & 0xFFFF_FFFF, 0)
        return abi.ATTR.pack(status.st_ino, status.st_size, status.st_blocks, *seconds, *parts, *more)

    def _status(self, status: os.stat_result) -> bytes:
        return abi.ATTR_HEAD.pack(*self._valid, 0) + self._attr(status)

    def _entry(self, entry: Entry) -> bytes:
        node, status = entry
        seconds, parts = self._valid
        return abi.ENTRY_HEAD.pack(node, 0, seconds, seconds, parts, parts) + self._attr(status)

    def _statfs(self, node: int, _: bytes) -> bytes:
        found = self._folder.statfs(node)
        blocks = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return abi.STATFS_OUT.pack(*blocks, found.f_bsize, found.f_namemax, found.f_frsize, 0)

    # Open files and folders

    def _open(self, node: int, body: bytes) -> bytes:
        flags, _ = abi.OPEN_IN.unpack_from(body)
        return abi.OPEN_OUT.pack(self._folder.open(node, flags), 0, 0)

    def _create(self, node: int, body: bytes) -> bytes:
        flags, mode, _umask, _ = abi.CREATE_IN.unpack_from(body)
        entry, handle = self._folder.create(node, _name(body, abi.CREATE_IN.size), flags, mode)
        return self._entry(entry) + abi.OPEN_OUT.pack(handle, 0, 0)

    def _release(self, _: int, body: bytes) -> bytes:
        self._folder.release(abi.RELEASE_IN.unpack_from(body)[0])
        return b""

    def _fsync(self, _: int, body: bytes) -> Work:
        handle, flags, _ = abi.FSYNC_IN.unpack_from(body)
        return self._folder.sync(handle, bool(flags & abi.FSYNC_FDATASYNC))

    def _lseek(self, _: int, body: bytes) -> bytes:
        handle, offset, whence, _ = abi.LSEEK_IN.unpack_from(body)
        return abi.LSEEK_OUT.pack(self._folder.seek(handle, offset, whence))

    def _fallocate(self, _: int, body: bytes) -> Work:
        handle, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(body)
        return self._folder.allocate(handle, mode, offset, length)

    def _read(self, readable: list[memoryview], writable: list[memoryview]) -> int:
        handle, offset, size, *_ = abi.READ_IN.unpack(_body(readable, abi.READ_IN.size))
        return self._folder.readv(handle, _cut(skip(writable, _ANSWER), min(size, MAX_IO)), offset)

    def _write(self, readable: list[memoryview]) -> bytes | Work:
        handle, offset, size, *_ = abi.WRITE_IN.unpack(_body(readable, abi.WRITE_IN.size))
        data = skip(readable, _HEADER + abi.WRITE_IN.size)
        if size > MAX_IO or size != sum(map(len, data)):
            raise OSError(errno.EINVAL, "not as much data as was said")
        done = self._folder.writev(handle, data, offset)
        return abi.WRITE_OUT.pack(done, 0) if isinstance(done, int) else done

    def _readdir(self, node: int, readable: list[memoryview], writable: list[memoryview], *, plus: bool) -> int:
        handle, place, size, *_ = abi.READ_IN.unpack(_body(readable, abi.READ_IN.size))
        data = skip(writable, _ANSWER)
        room = min(size, sum(map(len, data)), LIST_MAX)
        out = bytearray()
        for name, inode, kind in self._folder.listing(handle).since(place):
            place += 1
            record = abi.DIRENT.pack(inode, place, len(name), kind) + name
            record += bytes(-len(record) % 8)
            if len(out) + len(record) + (_ENTRY_SIZE if plus else 0) > room:
                break
            if plus:
                out += self._known(node, name)
            out += record
        return scatter(data, out)

    def _known(self, node: int, name: bytes) -> bytes:
        """What comes with a name in READDIRPLUS; node 0 is for one that the guest has to look up itself."""
        if name not in (b".", b".."):
            try:
                return self._entry(self._folder.lookup(node, name))
            except OSError:  # gone since
                pass
        return bytes(_ENTRY_SIZE)


_ENTRY_SIZE = abi.ENTRY_HEAD.size + abi.ATTR.size


def work_answer(opcode: int, count: int) -> bytes:
    """The body for work that another thread has done, which gave `count`."""
    return abi.WRITE_OUT.pack(count, 0) if opcode == abi.WRITE else b""


def _body(readable: list[memoryview], limit: int) -> bytes:
    """What follows the header of a request."""
    return gather(skip(readable, _HEADER), limit)


def _name(body: bytes, at: int = 0) -> bytes:
    """The name that stands in `body` from `at` on. EINVAL."""
    return _names(body, 1, at)[0]


def _names(body: bytes, count: int, at: int = 0) -> list[bytes]:
    """`count` names that stand in `body` from `at` on, each with its zero. EINVAL."""
    names = body[at:].split(b"\0", count)
    if len(names) <= count:
        raise OSError(errno.EINVAL, "a name without its end")
    return names[:count]


def _cut(views: list[memoryview], size: int) -> list[memoryview]:
    """The first `size` bytes of `views`."""
    found = []
    for view in views:
        if size <= 0:
            break
        found.append(view if len(view) <= size else view[:size])
        size -= len(view)
    return found


def _moment(valid: int, given: int, now: int, seconds: int, parts: int) -> int | None:
    """Nanoseconds since the epoch that a request sets, or None: it does not."""
    if valid & now:
        return time.time_ns()
    if not valid & given:
        return None
    if parts >= _SECOND:
        raise OSError(errno.EINVAL, "more nanoseconds than a second has")
    return seconds * _SECOND + parts
