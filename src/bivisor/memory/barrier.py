"""A memory barrier for both sides of shared memory: this thread's, and that of every running thread of the process.

Two sides that each store and then load what the other stores need a full barrier in between, both of them (Intel SDM
volume 3, 9.2.3.4). Guest code has its own, a locked instruction; but the engine `soft` translates that into plain ones
as long as a guest has one processor. membarrier(2) makes up for it from here: when it returns, each thread of the
process has passed a full barrier since it was called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from bivisor.memory.atomics import address_of, atomics

_SYS_MEMBARRIER = 324  # arch/x86/entry/syscalls/syscall_64.tbl
_PRIVATE_EXPEDITED, _REGISTER_PRIVATE_EXPEDITED = 1 << 3, 1 << 4  # linux/membarrier.h


@cache
def heavy_fence() -> Callable[[], None]:
    """The barrier, as a function; on a host whose kernel lacks membarrier(2) it is that of the calling thread alone."""
    syscall = ctypes.PyDLL(None).syscall  # shorter than letting go of the interpreter lock
    if syscall(_SYS_MEMBARRIER, _REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0:

        def all_threads() -> None:
            syscall(_SYS_MEMBARRIER, _PRIVATE_EXPEDITED, 0, 0)

        return all_threads
    operand = memoryview(bytearray(8))
    or_u64, address = atomics().or_u64, address_of(operand)

    def this_thread(_: memoryview = operand) -> None:
        or_u64(address, 0)

    return this_thread
