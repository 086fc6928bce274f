"""Several processors of one soft machine: each is an engine of the library of its own, and they take turns.

One executes at a time, from one block of translated code to another, so that a locked instruction, which translated
code carries out in several steps, is atomic for the others. A turn ends after `SLICE_S`, or when the processor comes
out by itself: PAUSE comes out, so who spins for a lock makes room for who holds it.

Code that one has translated goes stale when another stores to its page. The map of pages with code is one for all, with
a bit for each processor; who stores to such a page has native code forget its translations everywhere (thunks.S).
"""

from __future__ import annotations

import ctypes as C
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bivisor.errors import EngineError
from bivisor.memory import PAGE

if TYPE_CHECKING:
    from bivisor.cpu.soft.machine import SoftMachine
    from bivisor.cpu.soft.vcpu import SoftVcpu

SLICE_S: Final = 0.002
MAX_VCPUS: Final = 8
"""One bit of the map's bytes for each."""
_SPARE_PAGES: Final = 1 << 14


class Turns:
    """The turns of the processors of `machines`, which have the same memory. The first is processor 0's."""

    def __init__(self, first: SoftMachine) -> None:
        self._machines: list[SoftMachine] = []
        self._lock = threading.Condition(threading.Lock())
        self._holder: SoftVcpu | None = None
        self._waiting: deque[SoftVcpu] = deque()
        self._deferred: deque[Callable[[], None]] = deque()
        pages = first.ram_end // PAGE + _SPARE_PAGES
        self.code_map = (C.c_uint8 * pages)()
        C.memmove(self.code_map, *first.translated)
        self._peers: list[C.Array[C.c_uint64]] = []
        self.join(first)

    def join(self, machine: SoftMachine) -> None:
        """Another processor's. EngineError where there are too many, or where its memory is laid out otherwise."""
        if len(self._machines) >= MAX_VCPUS:
            raise EngineError(f"the engine `soft` has at most {MAX_VCPUS} processors for a machine")
        self._machines.append(machine)
        machine.share_code_map(self.code_map, 1 << len(self._machines) - 1)
        self._peers = []
        for member in self._machines:
            others = [other for other in self._machines if other is not member]
            words = [value for other in others for value in (other.handle, 1 << self._machines.index(other))]
            peers = (C.c_uint64 * (len(words) + 1))(*words, 0)
            self._peers.append(peers)
            member.context.peers = C.addressof(peers)

    # ---------------------------------------------------------------- turns

    def take(self, vcpu: SoftVcpu) -> bool:
        """By its thread, before it executes: wait for its turn, or go on with it. False if it was kicked meanwhile."""
        if self._holder is vcpu:
            if not self._waiting:
                return True
            self.leave(vcpu)
        with self._lock:
            self._waiting.append(vcpu)
            while self._holder is not None or self._waiting[0] is not vcpu:
                if vcpu.has_to_leave:
                    self._waiting.remove(vcpu)
                    self._lock.notify_all()
                    return False
                if not self._lock.wait(SLICE_S) and self._waiting[0] is vcpu and self._holder is not None:
                    self._holder.poke()
            self._waiting.popleft()
            self._holder = vcpu
        return True

    def leave(self, vcpu: SoftVcpu) -> None:
        """Its turn is over, once what was put off for it is done."""
        if self._holder is not vcpu:
            return
        while True:
            with self._lock:
                if not self._deferred:
                    self._holder = None
                    self._lock.notify_all()
                    return
            self.catch_up()

    def is_turn_of(self, thread: int) -> bool:
        """Whether the thread with this identity is the one that executes."""
        holder = self._holder
        return holder is not None and holder.is_run_by(thread)

    def defer(self, work: Callable[[], None]) -> bool:
        """Have `work` done between two blocks of guest code. False if it has to be done at once by the caller, whose
        turn it is. From any thread."""
        if self.is_turn_of(threading.get_ident()):
            return False
        with self._lock:
            if self._holder is None:
                work()
                return True
            self._deferred.append(work)
            self._holder.poke()
        return True

    def catch_up(self) -> None:
        """Do what was put off. By the processor whose turn it is."""
        while self._deferred:
            self._deferred.popleft()()
