"""A timer of the host's kernel that takes one thread out of the guest: no other thread has to run for it.

timer_create(2) with SIGEV_THREAD_ID sends the signal of kicks to the thread. One that comes while the thread is not in
the guest is lost, so it comes again and again until the timer is set anew or turned off.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import Final

from bivisor.cpu.kvm.kick import kick_signal
from bivisor.errors import HostError

_CREATE, _SETTIME, _DELETE = 222, 223, 226
_CLOCK_MONOTONIC, _SIGEV_THREAD_ID = 1, 4
_SIGEVENT: Final = struct.Struct("<QiiI44x")  # struct sigevent: value, signal, how, thread
_ITIMERSPEC: Final = struct.Struct("<4q")
_AGAIN_NS: Final = 2_000_000
_SECOND: Final = 1_000_000_000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Alarm:
    """That of the thread that makes it. HostError where the host has no timer left."""

    def __init__(self) -> None:
        number = ctypes.c_int()
        event = _SIGEVENT.pack(0, kick_signal(), _SIGEV_THREAD_ID, threading.get_native_id())
        if _libc.syscall(_CREATE, _CLOCK_MONOTONIC, event, ctypes.byref(number)) != 0:
            raise HostError("the host has no timer left for a processor (ulimit -i)")
        self._timer = number.value
        self._value = ctypes.create_string_buffer(_ITIMERSPEC.size)

    def set(self, after: int, again: int = _AGAIN_NS) -> None:
        """Signal in `after` nanoseconds, which is not 0, and every `again` from then on; not when it was to before."""
        _ITIMERSPEC.pack_into(self._value, 0, *divmod(again, _SECOND), *divmod(after, _SECOND))
        _libc.syscall(_SETTIME, self._timer, 0, self._value, None)

    def off(self) -> None:
        """Signal no more."""
        _ITIMERSPEC.pack_into(self._value, 0, 0, 0, 0, 0)
        _libc.syscall(_SETTIME, self._timer, 0, self._value, None)

    def close(self) -> None:
        """Give the timer back. Nothing else may be called after."""
        _libc.syscall(_DELETE, self._timer)
