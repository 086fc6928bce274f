"""One place where KVM's ioctls are made: retried when a signal came in between, and named when they fail."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from bivisor.abi.linux_kvm import Ioctl
from bivisor.errors import EngineError

_libc = ctypes.CDLL(None, use_errno=True)


def call(fd: int, request: Ioctl, argument: int | bytes | bytearray = 0) -> int:
    """ioctl(fd, request, argument). A bytearray is filled in place. EngineError carries the request and the errno."""
    while True:
        try:
            match argument:
                case bytearray():
                    return int(fcntl.ioctl(fd, request, argument, True))
                case bytes():
                    fcntl.ioctl(fd, request, argument)  # returns the bytes; no such request has a result of its own
                    return 0
                case _:
                    return _call_with_long(fd, request, argument)
        except OSError as error:
            if error.errno == errno.EINTR:
                continue
            raise failure(request, error.errno or 0) from error


def _call_with_long(fd: int, request: Ioctl, argument: int) -> int:
    # fcntl.ioctl takes a C int, and an address can be above 2 GiB.
    result = int(_libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(request), ctypes.c_ulong(argument)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "ioctl")
    return result


def failure(request: Ioctl, number: int) -> EngineError:
    """The error for a request that failed with errno `number`."""
    name = errno.errorcode.get(number, str(number))
    return EngineError(f"KVM_{request.name} failed: {os.strerror(number)} ({name})")
