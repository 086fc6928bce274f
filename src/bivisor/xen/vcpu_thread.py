"""One processor of a domain: the thread that runs it, what its exits ask for, and how it sleeps and is woken."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.cpu.contract import Vcpu
from bivisor.cpu.exits import Debug, Direction, Exit, Hlt, Hypercall, Interrupted, Mmio, PortIo, RdMsr, WrMsr
from bivisor.cpu.exittable import ExitTable
from bivisor.memory import PAGE
from bivisor.xen.call import Call
from bivisor.xen.domain import Domain
from bivisor.xen.table import TABLE, hypercall
from bivisor.xen.timers import LONGEST_S
from bivisor.xen.watched import watch_hypercalls

if TYPE_CHECKING:
    from bivisor.xen.guest import PvhGuest

_MASK = (1 << 64) - 1
_PIT_COUNTER_2 = 0x42
_TSC = 0x10
_GLANCE_S = 0.0005


class VcpuThread:
    """Processor `vcpu` of `domain`, which `guest` runs. `start()` begins the thread; it ends when `guest` stops."""

    def __init__(self, guest: PvhGuest, domain: Domain, vcpu: Vcpu) -> None:
        self._guest = guest
        self._xen = guest.xen
        self._domain = domain
        self._info = domain.vcpus[vcpu.index]
        self.vcpu = vcpu
        self.index = vcpu.index
        self.inside = False
        """Whether guest code may be running. Changed under Xen's lock."""
        self.handling = False
        """Whether it is between two instructions of the guest: in an exit's handler, or on its way out. Known without
        Xen's lock, which whoever asks in `pass_by` may hold."""
        self.down = False
        """Whether it halts with interrupts off, or has never been started."""
        self._was_here = False
        self._nmi = False
        self._call = Call(guest.xen, domain, vcpu.index, vcpu, self._give_way)
        self._wish: tuple[tuple[int, ...] | None, int | None] | None = None
        self._woken = threading.Event()
        self._deferred: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._exits = ExitTable(
            {
                Hypercall: self._hypercall,
                PortIo: self._port,
                Mmio: self._mmio,
                RdMsr: self._rdmsr,
                WrMsr: self._wrmsr,
            }
        )
        self._table = self._exits.handlers
        self._sites = [
            *self._exits.watch(guest.xen.events, domain.domid, vcpu.index),
            watch_hypercalls(self._call, TABLE),
        ]

    # ---------------------------------------------------------------- from other threads

    def start(self) -> None:
        """Begin the thread. Nothing to do where it has begun."""
        if self._thread is None:
            name = f"bivisor-dom{self._domain.domid}-vcpu{self.index}"
            self._thread = threading.Thread(target=self._main, name=name, daemon=True)
            self._guest.control.enter_thread()
            self._thread.start()

    def kick(self) -> None:
        """Have the thread look whether it may run on."""
        self._woken.set()
        self.vcpu.kick()

    def send_nmi(self) -> None:
        """Give the processor a non-maskable interrupt, which ends a block or poll as well."""
        self._nmi = True
        self.kick()

    def look(self) -> None:
        """Have a processor come out that has not been seen since the last look: it may be down."""
        if self.inside and not self._was_here:
            self.vcpu.kick()
        self._was_here = False

    def wake(self) -> None:
        """Have a processor that blocks or polls look for what it waits for."""
        if not self._woken.is_set():  # who waits clears it first, and looks then
            self._woken.set()

    def join(self) -> None:
        """Wait for the end of the thread, unless it is the caller's."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._xen.events.remove(*self._sites)

    @property
    def native_id(self) -> int:
        """The host's number of the thread while it runs guest code, which includes waiting in HLT; 0 otherwise."""
        thread = self._thread
        return 0 if thread is None or thread.native_id is None or not self.inside else thread.native_id

    def cpu_time(self) -> int:
        """For how many nanoseconds it has run."""
        thread = self._thread
        if thread is None or not thread.is_alive() or thread.ident is None:
            return 0
        return time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))

    def defer(self, work: Callable[[], None]) -> bool:
        """Do `work` between two blocks of guest code, if guest code runs now; False if it can be done at once. For an
        engine that carries out a guest's locked instructions in several steps (see `EventChannels.defer`)."""
        if not self.inside or threading.current_thread() is self._thread:
            return False
        self._deferred.append(work)
        self.vcpu.post(self._catch_up)  # type: ignore[attr-defined]
        return True

    def _catch_up(self) -> None:
        was, self.handling = self.handling, True
        with self._xen.lock:
            while self._deferred:
                self._deferred.popleft()()
        self.handling = was

    def pass_by(self) -> None:
        """See `Domain.quiesce`."""
        if not self.inside or self.handling:
            return
        passed = threading.Event()
        self.vcpu.post(passed.set)  # type: ignore[attr-defined]
        # It may have come out meanwhile, and wait for the lock that the caller holds.
        while not passed.wait(_GLANCE_S) and self.inside and not self.handling and self.vcpu.inside:  # type: ignore[attr-defined]
            pass

    def block(self, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        """See `Upcall.block`. From its own thread, out of a hypercall."""
        self._wish = ports, deadline

    # ---------------------------------------------------------------- running

    def _main(self) -> None:
        guest = self._guest
        try:
            while guest.may_enter(self):
                if self._nmi:
                    self._nmi = False
                    self._deliver_nmi()
                self.handling = False
                self._exits.entering()
                exit_ = self.vcpu.run(self._handle)
                self._exits.left(exit_)
                self._leave()
                if self._wish is not None:
                    self._sleep()
                match exit_:
                    case Hypercall():
                        pass
                    case Interrupted():
                        if self.vcpu.is_down:
                            self._is_down()
                    case Hlt():
                        self._is_down()
                    case Debug() if guest.control.hit(self.vcpu, exit_):
                        pass
                    case _:
                        guest.ended(self.index, exit_)
        except BaseException as error:
            self._leave()
            guest.failed(error)
            guest.may_enter(self)  # until it is stopped
        finally:
            guest.control.leave_thread()

    def _deliver_nmi(self) -> None:
        self.vcpu.nmi()

    def _is_down(self) -> None:
        self.down = True
        self._guest.is_down()

    def _leave(self) -> None:
        self.handling = True  # before the lock: who holds it may be waiting for this processor in `pass_by`
        with self._xen.lock:
            self.inside = False
        if self._deferred:
            self._catch_up()
        if not self._domain.runnable:
            self._guest.still()

    def wait_while(self, down: Callable[[], bool]) -> None:
        """Stay out of guest code while `down()`, until the domain may not run. From its own thread; `wake()` helps."""
        self._leave()
        while down() and self._domain.runnable and not self._guest.stopping:
            self._woken.clear()
            if down() and self._domain.runnable and not self._guest.stopping:
                self._woken.wait()

    def _sleep(self) -> None:
        assert self._wish is not None
        ports, deadline = self._wish
        self._wish = None
        self._info.blocked = True
        try:
            with self._guest.control.aside():
                self._wait_for_event(ports, deadline)
        finally:
            self._info.blocked = False
            self._info.polling = None

    def _wait_for_event(self, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        events, domain = self._domain.events, self._domain
        # Who paused the domain meanwhile wakes it: a guest takes that for one event too many.
        while domain.runnable and not self._nmi:
            self._woken.clear()
            # a poll ends with any upcall too, as a block does
            if events.pending(self.index) or (ports is not None and events.any_pending(ports)):
                return
            wait = None if deadline is None else min((deadline - self._xen.system_time()) / 1e9, LONGEST_S)
            if wait is not None and wait <= 0:
                return
            if domain.runnable and not self._nmi:
                self._woken.wait(wait)

    # ---------------------------------------------------------------- exits

    def _handle(self, exit_: Exit) -> bool:
        handler = self._table.get(type(exit_))
        if handler is None:
            return False
        self.handling = True
        goes_on = handler(exit_)
        self.handling = False
        return goes_on

    def _hypercall(self, exit_: Exit) -> bool:
        assert isinstance(exit_, Hypercall)
        self._was_here, self.down = True, False
        result = hypercall(self._call, exit_.nr, exit_.args) if exit_.cpl == 0 else -Errno.EPERM
        exit_.result[:] = (result & _MASK).to_bytes(8, "little")
        if self.index == 0:
            self._guest.keep_time(self.tsc)
        return self._wish is None and self._domain.runnable

    def _give_way(self) -> bool:
        """See `Call.give_way`."""
        if self._domain.runnable and not self._guest.stopping:
            return True
        self._leave()
        return self._guest.may_enter(self)

    def tsc(self) -> int:
        """The processor's counter. From its own thread, or while it does not run."""
        return self.vcpu.get_msrs([_TSC])[_TSC]

    def _port(self, exit_: Exit) -> bool:
        """There are no devices. Where Linux looks for an 8254 it finds zero instead of ones, which it would count
        100,000 times before it gave up."""
        assert isinstance(exit_, PortIo)
        if exit_.direction is Direction.IN:
            exit_.data[:] = (b"\0" if exit_.port == _PIT_COUNTER_2 else b"\xff") * len(exit_.data)
        return True

    def _mmio(self, exit_: Exit) -> bool:
        assert isinstance(exit_, Mmio)
        if not exit_.is_write:
            exit_.data[: exit_.length] = b"\xff" * exit_.length
        return True

    def _rdmsr(self, exit_: Exit) -> bool:
        assert isinstance(exit_, RdMsr)
        exit_.error[0] = 1
        return True

    def _wrmsr(self, exit_: Exit) -> bool:
        assert isinstance(exit_, WrMsr)
        if exit_.index != abi.HYPERCALL_PAGE_MSR or exit_.value & PAGE - 1 or not self._guest.fill_page(exit_.value):
            exit_.error[0] = 1
        return True
