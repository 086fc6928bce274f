"""Getting a processor out of the guest from another thread.

`immediate_exit` in kvm_run makes the *next* KVM_RUN return; a signal to the thread makes a *running* one return
(KVM API 5, `immediate_exit`). Only its arrival matters, so the handler does nothing.

The signal is the first real-time signal, counted from SIGRTMAX down, that nobody in the process handles. It is set with
sigaction(2) and not with Python's `signal`, because that works in the main thread alone and would wake the interpreter.
It stays set as long as the process lives: a late signal that finds the default action would end the process.
"""

from __future__ import annotations

import ctypes
import functools
import signal
import threading

from bivisor.errors import HostError

_SYS_TGKILL = 234
_SA_RESTART = 0x1000_0000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Sigaction(ctypes.Structure):
    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


@functools.cache
def kick_signal() -> int:
    """The number of the signal, which is set up by the first call. HostError where every real-time signal is taken."""
    # A C function that takes an int and touches nothing is all that a handler has to be here: abs(3).
    nothing = ctypes.cast(_libc.abs, ctypes.c_void_p).value
    for number in range(signal.SIGRTMAX, signal.SIGRTMIN - 1, -1):
        old = _Sigaction()
        if _libc.sigaction(number, None, ctypes.byref(old)) != 0 or old.handler:
            continue
        new = _Sigaction(handler=nothing, flags=_SA_RESTART)
        if _libc.sigaction(number, ctypes.byref(new), None) == 0:
            return number
    raise HostError("every real-time signal of this process is in use: the engine needs one to stop its processors")


def accept_kicks(known: int = 0) -> int:
    """Let this thread be kicked; returns what `kick_thread` needs to find it. `known` is the last answer: for the same
    thread there is nothing left to do."""
    thread = threading.get_native_id()
    if thread != known:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {kick_signal()})
    return thread


def kick_thread(process: int, thread: int) -> None:
    """Signal a thread. One that has ended is no error: unlike pthread_kill(3), tgkill(2) looks its argument up."""
    _libc.syscall(_SYS_TGKILL, process, thread, kick_signal())
