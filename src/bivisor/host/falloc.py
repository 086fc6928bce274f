"""fallocate(2), which module os lacks: holes in files and in memory."""

from __future__ import annotations

import ctypes
import os

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
FALLOC_FL_ZERO_RANGE = 16

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the space behind `length` bytes at `offset` of `fd` as `mode` says. OSError with the call's errno."""
    if _fallocate(fd, mode, offset, length):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give `length` bytes at `offset` back to the file system; they read as zero, and the file keeps its size."""
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
