"""Error numbers that hypercalls return, negated (xen/include/public/errno.h)."""

from __future__ import annotations

from enum import IntEnum


class Errno(IntEnum):
    """XEN_E*: the numbers of Linux."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EINTR = 4
    EIO = 5
    ENXIO = 6
    E2BIG = 7
    EBADF = 9
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EXDEV = 18
    ENODEV = 19
    EINVAL = 22
    ENOSPC = 28
    ERANGE = 34
    ENOSYS = 38
    ENODATA = 61
    ETIME = 62
    EOPNOTSUPP = 95
    EISCONN = 106
    ENOTCONN = 107
