"""renameat2(2), which module os lacks."""

from __future__ import annotations

import ctypes
import os

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
_renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """Rename `old` in the folder `old_fd` to `new` in `new_fd` as `flags` say. OSError with the call's errno."""
    if _renameat2(old_fd, old, new_fd, new, flags):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
