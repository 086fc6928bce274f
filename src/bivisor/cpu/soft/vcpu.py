"""A soft processor: runs guest code in TCG and comes back with exits, or hands them to a handler in place.

One thread runs it. What other threads want (interrupts, NMIs, forgotten code) waits in `_inbox` until that thread
looks, which `poke()` makes it do soon; so neither the local APIC nor the library's data is ever touched by two threads.

An exit that nobody handled in place leaves the guest at the start of its instruction. The next `run()` executes that
instruction again with interrupts held off, and its accesses find their answers instead of coming out once more.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Never, cast

from bivisor.abi.x86 import Rflags, Vector
from bivisor.cpu.contract import ExitHandler
from bivisor.cpu.exits import (
    Debug,
    Exit,
    Hlt,
    InternalError,
    Interrupted,
    Shutdown,
)
from bivisor.cpu.registers import GuestDebug, Regs, Segment, Sregs
from bivisor.cpu.soft import private as p
from bivisor.cpu.soft import state
from bivisor.cpu.soft.alarm import Alarm
from bivisor.cpu.soft.callbacks import Callbacks
from bivisor.cpu.soft.interrupts import Interrupts
from bivisor.cpu.soft.msr import Msrs
from bivisor.cpu.soft.vcpustate import VcpuState
from bivisor.cpu.vmx import GuestState, HostState, Observer, VmEntry, VmExit, reason_of
from bivisor.errors import EngineError

if TYPE_CHECKING:
    from bivisor.cpu.soft.machine import SoftMachine
    from bivisor.cpu.soft.supervised import SoftSupervised
    from bivisor.cpu.supervisor import Supervisor

_INTERRUPTED = Interrupted()
_SHUTDOWN = Shutdown()
_HLT = Hlt()
_DR6_BS = 0x4000
_RESET_EDX = 0x600  # the processor's family, SDM 9.1.2
_HEARTBEAT = 0.05
_LONGEST_NAP = 3600.0


class _Closed:
    """Stands where the library's memory was."""

    def __getattr__(self, name: str) -> Never:
        raise EngineError("the processor is closed")


_CLOSED = cast(p.Cpu, _Closed())


class SoftVcpu(VcpuState):
    """See `bivisor.cpu.contract.Vcpu`; on top of it `observer`, which sees every VM exit and VM entry as an object."""

    def __init__(self, machine: SoftMachine, index: int) -> None:
        self.machine = machine
        self.index = index
        self.observer: Observer | None = None
        self.cpu = machine.open_cpu()
        self._exec = self.cpu.library.exec_
        self._interrupt_cpu = self.cpu.interrupt
        self._rdtsc = self.cpu.library.rdtsc
        self._inbox: deque[Callable[[], None]] = deque()
        self._kicked = False
        self._halted = False
        self._asleep = False
        self._wake = threading.Lock()
        self._wake.acquire()
        self._thread = 0
        self._running = threading.Lock()
        self._debug = GuestDebug()
        self._inject: tuple[int, int] | None = None
        self.resume: Callable[[], None] | None = None
        self.inside = False
        self._alarm = Alarm(self.poke, f"bivisor-timer-{index}")
        self.interrupts = Interrupts(self, self._alarm)
        self.msrs = Msrs(self.cpu, self.apic, machine, machine.tsc_khz)
        self.callbacks = Callbacks(self)
        self._closed = False
        self.set_sregs(Sregs(cs=Segment(base=0xFFFF_0000, selector=0xF000, type=11)))
        self.set_regs(Regs(rip=0xFFF0, rdx=_RESET_EDX))

    # ---------------------------------------------------------------- running

    def run(self, handler: ExitHandler | None = None) -> Exit:
        """See `Vcpu.run`."""
        if not self._running.acquire(blocking=False):
            raise EngineError(f"KVM_RUN: processor {self.index} is closed, or another thread runs it")
        try:
            return self._run(handler)
        finally:
            self._running.release()

    def _run(self, handler: ExitHandler | None) -> Exit:
        callbacks = self.callbacks
        callbacks.handler = self._observed(handler) if self.observer else handler
        self._thread = threading.get_ident()
        # Python runs signal handlers in its main thread between two of its own instructions; translated code has none.
        self._alarm.heartbeat = _HEARTBEAT if threading.current_thread() is threading.main_thread() else None
        cpu, exec_ = self.cpu, self._exec
        self.machine.fill_holes()
        turns = self.machine.turns
        if self.resume is not None:
            resume, self.resume = self.resume, None
            resume()
        try:
            while True:
                if turns is not None:
                    if not turns.take(self):
                        self._kicked = False
                        return self._left(_INTERRUPTED)
                    turns.catch_up()
                cpu.exit_request.value = 0  # before the look at what it stands for, so that nothing is missed
                self._service()
                if callbacks.replaying:
                    # a block of one instruction, which no interrupt can come before; then a kick can have its way
                    cpu.hflags.value |= p.HF_INHIBIT_IRQ
                elif self._kicked:
                    self._kicked = False
                    return self._left(_INTERRUPTED)
                if self._halted:
                    exit_ = self._halt()
                    if exit_ is not None:
                        return self._left(exit_)
                if self._inject is not None:
                    self._start_injection()
                elif self._debug.block_interrupts:
                    cpu.hflags.value |= p.HF_INHIBIT_IRQ
                self.inside = True
                code = exec_(cpu.uc, cpu.cpu)
                self.inside = False
                if callbacks.error is not None:
                    error, callbacks.error = callbacks.error, None
                    raise error
                if callbacks.exit is not None:
                    exit_, callbacks.exit = callbacks.exit, None
                    return self._left(exit_)
                if callbacks.replayed:
                    callbacks.replayed = False
                    callbacks.forget_replay()
                if code == p.EXCP_HLT:
                    exit_ = self._stopped()
                elif code == p.EXCP_DEBUG:
                    exit_ = Debug(Vector.DB, self._linear_rip(), _DR6_BS if self._debug.single_step else 1, cpu.dr[7])
                elif cpu.invalid_error.value:
                    exit_ = self._invalid()
                else:
                    continue
                if exit_ is not None:
                    return self._left(exit_)
        finally:
            self.inside = False
            if turns is not None:
                turns.leave(self)
            callbacks.handler = None
            self._thread = 0
            self._alarm.heartbeat = None

    def _left(self, exit_: Exit) -> Exit:
        self.callbacks.count(exit_)
        return exit_

    def _stopped(self) -> Exit | None:
        cpu = self.cpu
        if cpu.halted.value:
            cpu.halted.value = 0
            self._halted = True
            self.callbacks.halts += 1
            return None if self.machine.irqchip != "none" else self._wake_from_hlt()
        if cpu.old_exception.value == Vector.DF:
            cpu.old_exception.value = -1
            return _SHUTDOWN
        return self._invalid()

    def _wake_from_hlt(self) -> Exit:
        self._halted = False
        return _HLT

    def _invalid(self) -> Exit:
        code, self.cpu.invalid_error.value = self.cpu.invalid_error.value, 0
        return InternalError(1, (code, self.cpu.eip.value), f"Unicorn error {code} at {self.cpu.eip.value:#x}")

    def _service(self) -> None:
        """Do what other threads left in the inbox, and see whether an interrupt waits."""
        inbox = self._inbox
        while inbox:
            inbox.popleft()()
        self.interrupts.apic.tick()
        self.interrupts.apic_changed()

    def _halt(self) -> Exit | None:
        """HLT with interrupt controllers: sleep until something wakes the guest; None when it goes on."""
        cpu = self.cpu
        while True:
            if self._can_wake():
                self._halted = False
                return None
            if not cpu.eflags.value & Rflags.IF:
                return _HLT  # only an NMI could wake it, and nothing in this machine sends one by itself
            deadline = self.apic._deadline
            nap = _LONGEST_NAP if deadline is None else min(_LONGEST_NAP, max(0.0, deadline - time.monotonic()))
            self._asleep = True
            if not self._inbox and not self._kicked:
                self._wake.acquire(timeout=nap)
            self._asleep = False
            self._service()
            if self._kicked:
                self._kicked = False
                return _INTERRUPTED

    def _can_wake(self) -> bool:
        request = self.cpu.interrupt_request.value
        if request & p.INTERRUPT_NMI:
            return True
        return bool(request & p.INTERRUPT_HARD and self.cpu.eflags.value & Rflags.IF)

    @property
    def kicked(self) -> bool:
        """Whether `run()` has been asked to come back and has not done so yet."""
        return self._kicked

    @property
    def has_to_leave(self) -> bool:
        """Whether it can come back from `run()` at once: a kick, and no instruction half done."""
        return self._kicked and not self.callbacks.replaying

    def is_run_by(self, thread: int) -> bool:
        """Whether the thread with this identity is in `run()`."""
        return self._thread == thread

    def kick(self) -> None:
        """See `Vcpu.kick`."""
        self._kicked = True
        self.poke()

    def poke(self) -> None:
        """Make the processor's thread look into the inbox soon. From any thread."""
        self._interrupt_cpu()
        if self._asleep:
            try:
                self._wake.release()
            except RuntimeError:
                pass  # somebody else has woken it already

    def post(self, work: Callable[[], None]) -> None:
        """Have `work` done by the processor's thread; at once if that is the caller."""
        if threading.get_ident() == self._thread:
            work()
        else:
            self._inbox.append(work)
            self.poke()

    @property
    def is_running(self) -> bool:
        """Whether some thread is in `run()` and not about to look into the inbox."""
        return self._thread not in (0, threading.get_ident()) or self.inside

    def later(self, work: Callable[[], None]) -> None:
        """Have `work` done by the processor's thread once it is out of translated code. From any thread."""
        self._inbox.append(work)
        self.poke()

    def _observed(self, handler: ExitHandler | None) -> ExitHandler:
        observer = self.observer
        assert observer is not None
        host = HostState(getattr(handler, "__qualname__", "run"), threading.current_thread().name)

        def observed(exit_: Exit) -> bool:
            reason, qualification, gpa = reason_of(exit_)
            saved = GuestState(self.get_regs(), self.get_sregs())
            observer(VmExit(reason, qualification, gpa, exit_, saved, host))
            handled = handler is not None and handler(exit_)
            if handled:
                observer(VmEntry(GuestState(self.get_regs(), self.get_sregs())))
            return handled

        return observed

    # ---------------------------------------------------------------- interrupts

    def tsc(self) -> int:
        """The guest's time stamp counter now."""
        return int(self._rdtsc() + self.cpu.tsc_offset.value & (1 << 64) - 1)

    def interrupt(self, vector: int) -> None:
        """See `Vcpu.interrupt`."""
        self.interrupts.queue(vector)
        self._halted = False

    def request_interrupt_window(self, wanted: bool = True) -> None:
        """See `Vcpu.request_interrupt_window`."""
        self.interrupts.request_window(wanted)

    @property
    def ready_for_interrupt(self) -> bool:
        """See `Vcpu.ready_for_interrupt`."""
        flags = state.get_regs(self.cpu, inside=self.inside).rflags
        return bool(flags & Rflags.IF) and not self.cpu.hflags.value & p.HF_INHIBIT_IRQ and self.interrupts.queued < 0

    def nmi(self) -> None:
        """See `Vcpu.nmi`."""
        self.post(self.interrupts.apic_nmi)

    # ---------------------------------------------------------------- debugging

    def _start_injection(self) -> None:
        assert self._inject is not None
        vector, error = self._inject
        self._inject = None
        self.cpu.raise_fault(vector, error)

    def set_debug(self, debug: GuestDebug) -> None:
        """See `Vcpu.set_debug`. Of the debug registers, execution breakpoints."""
        cpu = self.cpu
        for number in range(len(debug.addresses)):
            if debug.dr7 >> 16 + 4 * number & 3:
                raise EngineError("the engine `soft` has breakpoints on execution only, not on data")
        self._debug = debug
        self.callbacks.trap_breakpoints(debug.software_breakpoints)
        cpu.singlestep.value = 1 if debug.single_step else 0
        self.callbacks.set_breakpoints(debug.addresses, self._linear_rip())
        self.machine.set_breakpoints(debug.addresses)

    def supervise(self, supervisor: Supervisor) -> SoftSupervised:
        """Have the guest's kernel run under `supervisor` from now on. Before the first `run()`."""
        from bivisor.cpu.soft.supervised import SoftSupervised

        return SoftSupervised(self, supervisor)

    @property
    def is_down(self) -> bool:
        """See `Vcpu.is_down`: `Hlt` comes out."""
        return False

    @property
    def counters(self) -> Mapping[str, int]:
        """See `Vcpu.counters`; `exception_N` are exceptions that the guest took, which are no exits."""
        return self.callbacks.counters()

    def close(self) -> None:
        """See `Vcpu.close`. A thread inside `run()` is kicked and waited for; EngineError from a handler."""
        if self._closed:
            return
        if self._thread == threading.get_ident():
            raise EngineError(f"processor {self.index} cannot be closed from inside its run()")
        while not self._running.acquire(timeout=_HEARTBEAT):
            self.kick()
        self._closed = True
        self._alarm.close()
        self.callbacks.close()
        self.cpu.detach()
        self.cpu = _CLOSED
        self.machine.close_cpu()
