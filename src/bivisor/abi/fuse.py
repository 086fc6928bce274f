"""Numbers and structures of the FUSE protocol, version 7.31 (Linux, include/uapi/linux/fuse.h).

Names are the header's without the prefix FUSE_; a structure `fuse_x_in` is X_IN here. All of it is little-endian, as
virtio 1.2 section 5.11.6 has it for a guest of x86.
"""

from __future__ import annotations

import struct
from typing import Final

KERNEL_VERSION: Final = 7
KERNEL_MINOR_VERSION: Final = 31
ROOT_ID: Final = 1

# enum fuse_opcode
LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
READLINK: Final = 5
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
LINK: Final = 13
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
FLUSH: Final = 25
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = 29
FSYNCDIR: Final = 30
CREATE: Final = 35
INTERRUPT: Final = 36
DESTROY: Final = 38
BATCH_FORGET: Final = 42
FALLOCATE: Final = 43
READDIRPLUS: Final = 44
RENAME2: Final = 45
LSEEK: Final = 46

OPERATIONS: Final = {
    LOOKUP: "lookup",
    FORGET: "forget",
    GETATTR: "getattr",
    SETATTR: "setattr",
    READLINK: "readlink",
    SYMLINK: "symlink",
    MKNOD: "mknod",
    MKDIR: "mkdir",
    UNLINK: "unlink",
    RMDIR: "rmdir",
    RENAME: "rename",
    LINK: "link",
    OPEN: "open",
    READ: "read",
    WRITE: "write",
    STATFS: "statfs",
    RELEASE: "release",
    FSYNC: "fsync",
    FLUSH: "flush",
    INIT: "init",
    OPENDIR: "opendir",
    READDIR: "readdir",
    RELEASEDIR: "releasedir",
    FSYNCDIR: "fsyncdir",
    CREATE: "create",
    INTERRUPT: "interrupt",
    DESTROY: "destroy",
    BATCH_FORGET: "batch_forget",
    FALLOCATE: "fallocate",
    READDIRPLUS: "readdirplus",
    RENAME2: "rename2",
    LSEEK: "lseek",
}

# INIT flags
ASYNC_READ: Final = 1 << 0
BIG_WRITES: Final = 1 << 5
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
ASYNC_DIO: Final = 1 << 15
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22

# valid of SETATTR_IN
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8

GETATTR_FH: Final = 1 << 0
FSYNC_FDATASYNC: Final = 1 << 0

IN_HEADER: Final = struct.Struct("<IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, padding
OUT_HEADER: Final = struct.Struct("<IiQ")  # len, error, unique
ATTR: Final = struct.Struct("<6Q10I")
# ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags
ENTRY_HEAD: Final = struct.Struct("<QQQQII")
# nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec; an attr follows
ATTR_HEAD: Final = struct.Struct("<QII")  # attr_valid, attr_valid_nsec, dummy; an attr follows
FORGET_IN: Final = struct.Struct("<Q")  # nlookup
FORGET_ONE: Final = struct.Struct("<QQ")  # nodeid, nlookup
BATCH_FORGET_IN: Final = struct.Struct("<II")  # count, dummy; forget_one follow
GETATTR_IN: Final = struct.Struct("<IIQ")  # getattr_flags, dummy, fh
SETATTR_IN: Final = struct.Struct("<IIQQQqqqIIIIIIII")
# valid, padding, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, unused, uid, gid,
# unused
MKNOD_IN: Final = struct.Struct("<IIII")  # mode, rdev, umask, padding
MKDIR_IN: Final = struct.Struct("<II")  # mode, umask
RENAME_IN: Final = struct.Struct("<Q")  # newdir
RENAME2_IN: Final = struct.Struct("<QII")  # newdir, flags, padding
LINK_IN: Final = struct.Struct("<Q")  # oldnodeid
OPEN_IN: Final = struct.Struct("<II")  # flags, open_flags
CREATE_IN: Final = struct.Struct("<IIII")  # flags, mode, umask, open_flags
OPEN_OUT: Final = struct.Struct("<QII")  # fh, open_flags, padding
RELEASE_IN: Final = struct.Struct("<QIIQ")  # fh, flags, release_flags, lock_owner
READ_IN: Final = struct.Struct("<QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
WRITE_IN: Final = struct.Struct("<QQIIQII")  # fh, offset, size, write_flags, lock_owner, flags, padding
WRITE_OUT: Final = struct.Struct("<II")  # size, padding
STATFS_OUT: Final = struct.Struct("<QQQQQIIII24x")
# blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding, spare
FSYNC_IN: Final = struct.Struct("<QII")  # fh, fsync_flags, padding
INIT_IN: Final = struct.Struct("<IIII")  # major, minor, max_readahead, flags
INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2, unused
FALLOCATE_IN: Final = struct.Struct("<QQQII")  # fh, offset, length, mode, padding
LSEEK_IN: Final = struct.Struct("<QQII")  # fh, offset, whence, padding
LSEEK_OUT: Final = struct.Struct("<Q")  # offset
DIRENT: Final = struct.Struct("<QQII")  # ino, off, namelen, type; the name follows, padded to 8 bytes
