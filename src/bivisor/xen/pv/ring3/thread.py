"""The processor of a PV domain whose kernel is at CPL 3: hypercalls and exceptions come out of the stub (stub.S)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from bivisor.abi.x86 import Cr4, Rflags, Vector
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import VCPU_UPCALL_MASK, VCPU_UPCALL_PENDING, ShutdownReason, Virq
from bivisor.cpu.contract import Vcpu
from bivisor.cpu.exits import Exit, Hypercall, InterruptWindow
from bivisor.memory import PAGE
from bivisor.xen.call import Preempted
from bivisor.xen.domain import Domain, State
from bivisor.xen.errors import XenError
from bivisor.xen.pv.call import PvCall
from bivisor.xen.pv.ring3 import hidden as h
from bivisor.xen.pv.ring3.debug import Ring3Debug
from bivisor.xen.pv.ring3.machine import INT_SIZE, Ring3Cpu, Ring3Machine
from bivisor.xen.pv.ring3.msrs import Msrs
from bivisor.xen.pv.ring3.stub import (
    CALL_PORT,
    CRASH_PORT,
    ENTRIES,
    SECOND_STACK,
    TRAP_PORT,
    UPCALL_VECTOR,
)
from bivisor.xen.pv.ring3.timer import OneShot
from bivisor.xen.pv.table import TABLE, step
from bivisor.xen.vcpu_thread import VcpuThread
from bivisor.xen.watched import watch_hypercalls

if TYPE_CHECKING:
    from bivisor.xen.pv.ring3.guest import Ring3Guest

_FUNCTION = TABLE.get
_MASK: Final = (1 << 64) - 1
_NOTHING: Final = memoryview(bytearray(8))
CALL, TRAP, CRASH = (Hypercall("xen-pv", number, (), 0, True, _NOTHING) for number in range(3))
"""The three exits of the stub."""
_RIP: Final = 16
_CODE_SIZE: Final = 2 * PAGE
_BS: Final = 1 << 14
_FRAME_RIP, _FRAME_CS, _FRAME_RFLAGS = 3, 4, 5
_OF_DEBUGGERS: Final = (Vector.DB, Vector.BP)
_IN_IDT: Final = 2  # in the error code of #GP
_DR6: Final = 6
_TIMEOUT: Final = h.STUB + ENTRIES.timeout
_GLANCE_S: Final = 0.00005
_TIMER: Final = int(Virq.TIMER)
_GO_FIRST_NS: Final = 250_000
"""How long a tick needs Python, and some more."""
_CR2: Final = 16  # in struct vcpu_info


class Ring3Thread(VcpuThread):
    """See `VcpuThread`."""

    _guest: Ring3Guest

    def __init__(self, guest: Ring3Guest, domain: Domain, vcpu: Vcpu, machine: Ring3Machine) -> None:
        super().__init__(guest, domain, vcpu)
        self.machine = machine
        self._has_nmi = False
        self._block = machine.private
        live = self._live = vcpu.live()  # type: ignore[attr-defined]
        self._registers: memoryview = live.words
        machine.cpu = Ring3Cpu(vcpu, live, self._block)
        machine.cpu.hold = self.hold
        msrs = Msrs(vcpu, self.tsc)
        machine.read_msr, machine.write_msr, machine.set_xcr0 = msrs.read, msrs.write, msrs.set_xcr0
        machine.forget_all = guest.forget_page_tables
        for port, exit_ in ((CALL_PORT, CALL), (TRAP_PORT, TRAP), (CRASH_PORT, CRASH)):
            vcpu.door(port, exit_)  # type: ignore[attr-defined]
        self._exits.handlers[InterruptWindow] = self._window
        self._pv_call = PvCall(guest.xen, domain, vcpu.index, machine, self._give_way)
        self._lock = guest.xen.lock
        self._timer = OneShot(machine.private)
        self._sites.append(watch_hypercalls(self._pv_call, TABLE, self._seen))
        self._seen(self._pv_call.watched is not None)
        self._calls = 0
        self.ident = 0
        """Of the thread in which it runs; 0 before."""
        self.debug = Ring3Debug(vcpu, live, machine, guest.control)
        self._aside = False
        """Whether the timer may be in the hands of another thread."""
        vcpu.on_signal = self._look_at_clock  # type: ignore[attr-defined]
        self.counts = dict.fromkeys(TABLE, 0)

    def hypercalls(self) -> dict[int, int]:
        """How often each was made; not iret, nor VCPUOP_set_singleshot_timer where the stub sees to it."""
        counts = dict(self.counts)
        for number, count in self.machine.fast.done().items():
            counts[number] += count
        return {number: count for number, count in counts.items() if count}

    def _seen(self, watched: bool) -> None:
        """While somebody listens to hypercalls, none is carried out where it could not be told of."""
        self._timer.listen(watched)
        self.machine.fast.set(not watched)

    # ---------------------------------------------------------------- exits of the stub

    def _hypercall(self, exit_: Exit) -> bool:
        if self._registers[_RIP] - h.STUB >= _CODE_SIZE or self._registers[_RIP] < h.STUB:
            return True  # the guest's own, on a processor that does not ask for privilege: nothing is there
        if exit_ is CALL:
            self._call_()
            if self.debug.stepping:
                self.vcpu.request_interrupt_window()
        elif exit_ is TRAP:
            if self._registers[11] in _OF_DEBUGGERS and self.debug.takes(self._registers[11]):
                return False
            self._trap()
        elif self._block.frame[_FRAME_RIP] == _TIMEOUT and not self._block.frame[_FRAME_CS] & 3:
            self._info.info[VCPU_UPCALL_MASK] = self._block.frame[_FRAME_CS] >> 32 & 1
            self._no_timeout(self._block.frame[0])
        else:
            self._no_way("no way into the kernel's handler")
        if self._timer.is_set:
            self._ring_if_due()
        return self._wish is None and self._domain.state is State.RUNNING and self.index in self._domain.online

    def _call_(self) -> None:
        """A hypercall: its number is in RAX (arch-x86/xen-x86_64.h)."""
        regs = self._registers
        number = regs[0]
        watched = self._pv_call.watched
        function = _FUNCTION(number) if watched is None else watched.get(number)
        if function is not None:
            self.counts[number] += 1
            try:
                with self._lock:
                    try:
                        result = function(self._pv_call, regs[5], regs[4], regs[3], regs[10], regs[8])
                    finally:
                        self.machine.collect()
            except XenError as error:
                result = -error.errno
            except Preempted as more:
                result = self._go_on(number, more)
        else:
            result = -Errno.ENOSYS
        self.machine.settle_call()
        regs[0] = result & _MASK
        self._live.changed()
        self._calls += 1
        if not self._calls & 63:
            self._guest.keep_time(self.tsc)

    def _go_on(self, number: int, more: Preempted) -> int:
        while True:
            time.sleep(0)
            if not self._pv_call.give_way():
                return -Errno.EINTR
            try:
                with self._lock:
                    try:
                        return step(self._pv_call, number, more.arguments)
                    finally:
                        self.machine.collect()
            except Preempted as again:
                more = again

    def _no_timeout(self, rip: int) -> None:
        """The stub has looked for a timer's time where the guest has nothing, for a kernel that is to go on at `rip`
        with -EFAULT. Its stack is in RAX."""
        regs = self._registers
        self._block.give_back(rip, regs[0])
        regs[0], regs[_RIP] = -Errno.EFAULT & _MASK, h.STUB + ENTRIES.give_back
        self._live.changed()

    def _no_way(self, why: str) -> None:
        text = f"d{self._domain.domid}v{self.index}: {why} (RIP {self._block.frame[3]:#x})\n"
        self._guest.xen.console_write(self._domain, text.encode())
        self._guest.xen.shutdown(self._domain, ShutdownReason.CRASH)

    # ---------------------------------------------------------------- exceptions that the stub shows first

    def _trap(self) -> None:
        vector = self._registers[11]
        block = self._block
        frame = block.frame
        at_first = vector not in SECOND_STACK
        if not (frame if at_first else block.second)[4] & 3:
            self._fault_of_stub(vector, at_first)
            return
        if not at_first:
            frame[:] = block.second
        self.machine.cpu.trap_registers.has_error = not at_first or vector == Vector.PF
        if block.in_kernel:
            block.bounce(not self._kernel(vector))
        else:
            self._program(vector)
        self.machine.settle()

    def _fault_of_stub(self, vector: int, at_first: bool) -> None:
        """IRETQ may fault: the frame that it took is where it was, and the exception is that of whom it names."""
        second = self._block.second
        if not at_first and second[_FRAME_RIP] == _TIMEOUT:
            self._no_timeout(second[0])
            return
        if at_first or second[3] != h.STUB + ENTRIES.iretq:
            self._no_way(f"exception {vector} where Xen's own frames are made")
            return
        self._block.frame[:3] = second[:3]
        self._block.bounce(True)

    def _kernel(self, vector: int) -> bool:
        machine = self.machine
        with self._lock:
            match vector:
                case Vector.UD:
                    return machine.forced_cpuid()
                case Vector.PF:
                    address = machine.cpu.fault_address
                    if machine.store_to_table(address):
                        machine.collect()
                        return True
                    self._info.info[_CR2 : _CR2 + 8] = address.to_bytes(8, "little")
                case Vector.GP:
                    if machine.cpu.rip == h.NO_HANDLER:
                        self._no_way("no handler for an exception")
                        return True
                    return machine.emulate()
        self._before(vector)
        return False

    def _program(self, vector: int) -> None:
        """An exception of a program's, which the kernel gets. INT n is another where the guest has a gate for it (Xen:
        "int n" in struct trap_info), and #GP where it has none, which a KVM that runs CPL 3 alone takes for #UD."""
        block = self._block
        if vector == Vector.UD and self.machine.forced_cpuid():
            block.bounce(False)
            return
        number = self.machine.software_interrupt() if vector in (Vector.UD, Vector.GP) else None
        if number is None:
            self._before(vector)
            block.bounce(True)
        elif number in block.callable:
            self.machine.cpu.rip += INT_SIZE
            self._registers[11] = number
            self._live.changed()
            if vector == Vector.UD:
                block.bounce(True)
            else:
                block.bounce_without_error()
        elif vector == Vector.GP:
            block.bounce(True)
        else:
            self._registers[11] = Vector.GP
            self._live.changed()
            block.bounce_with_error(number << 3 | _IN_IDT)

    def _before(self, vector: int) -> None:
        if vector == Vector.DB:
            stepped = self._block.frame[_FRAME_RFLAGS] & Rflags.TF
            self.machine.debug[_DR6] = self.machine.debug[_DR6] & ~_BS | (_BS if stepped else 0)
        elif vector == Vector.NM:
            self.machine.set_task_switched(False)

    # ---------------------------------------------------------------- its timer

    def set_timer(self, deadline: int | None) -> bool:
        """Ring at `deadline` (system time), or never. False from other threads than its own: somebody else has to."""
        if threading.get_ident() != self.ident:
            return False
        if self._aside:
            self._aside = False
            self._guest.set_timer_aside(self.index, None)
        if deadline is None:
            self._timer.stop()
        else:
            self._timer.set(deadline, self._xen.system_time())
        return True

    def _ring_if_due(self) -> None:
        if self._timer.is_due(self._xen.system_time()):
            self._ring()

    def _ring(self) -> None:
        with self._lock:
            self._domain.events.raise_virq(_TIMER, self.index)

    def _look_at_clock(self) -> None:
        """The alarm has taken it out of the guest."""
        self.handling = True
        if self._timer.alarmed(self._xen.system_time()):
            self._ring()
        self._interrupt_if_waiting()
        self.handling = False

    def _set_aside(self) -> None:
        """Give its timer into the hands of a thread that does not wait."""
        due = self._timer.take()
        if due is not None:
            self._guest.set_timer_aside(self.index, due)
            self._aside = True

    def _wait_for_event(self, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        """Its timer rings when the wait ends, so that no other thread has to run for it. All of a kernel's processors
        tick at the same moment: one that sleeps lets those that run have Python's lock first."""
        due = rings = self._timer.take()
        if rings is not None and any(thread.inside for thread in self._guest.threads):
            rings += _GO_FIRST_NS
        super()._wait_for_event(ports, min((each for each in (rings, deadline) if each is not None), default=None))
        if due is None or rings is None:
            return
        now = self._xen.system_time()
        if now < rings:
            self._timer.set(due, now)
            if not self._domain.runnable:
                self._set_aside()
            return
        self._ring()
        super()._wait_for_event(ports, deadline)

    def _leave(self) -> None:
        if not self._domain.runnable:
            self._set_aside()
        super()._leave()

    def _main(self) -> None:
        self.ident = threading.get_ident()
        try:
            super()._main()
        finally:
            self._timer.close()

    # ---------------------------------------------------------------- events

    def event(self) -> None:
        """The guest has an event to see, if it does not see it by itself: who is outside looks when it goes inside.
        From any thread."""
        if self.inside and threading.get_ident() != self.ident:
            self.vcpu.kick()

    def hold(self) -> None:
        """Have the guest leave this processor, which forgets translations when it goes on. By another's thread, with
        the hypervisor's lock. Nothing to do where the kernel does so when the stub changes a page table."""
        if self._guest.native and self.inside and threading.get_ident() != self.ident:
            self.vcpu.kick()  # also where it is between two entries, and has looked whether there is something to do
            while self.inside and not self.handling:
                time.sleep(_GLANCE_S)
                self.vcpu.kick()

    def _forget(self) -> None:
        """A change of CR4 makes KVM_SET_SREGS forget translations."""
        self.machine.cpu.flush = False
        sregs = self.vcpu.get_sregs()
        for cr4 in (sregs.cr4 ^ Cr4.TSD, sregs.cr4):
            sregs.cr4 = cr4
            self.vcpu.set_sregs(sregs)

    def before_entry(self) -> None:
        """Interrupt the guest if it has an event to see."""
        if self.machine.cpu.flush and self._guest.native:
            self._forget()
        if self.debug.entering() or self.debug.has_to_come_out:
            self.vcpu.request_interrupt_window()
            return
        if self._timer.is_set:
            self._ring_if_due()
        self._interrupt_if_waiting()

    def _interrupt_if_waiting(self) -> None:
        """Interrupt the guest as soon as can be, if there is something for it to see: the stub looks for events again
        when the kernel has seen an NMI."""
        info = self._info.info
        if self.debug.stepping or not (self._has_nmi or (info[VCPU_UPCALL_PENDING] and not info[VCPU_UPCALL_MASK])):
            return
        if self._live.interrupt(Vector.NMI if self._has_nmi else UPCALL_VECTOR):
            self._has_nmi = False
        else:
            self.vcpu.request_interrupt_window()

    def _deliver_nmi(self) -> None:
        """As an interrupt, which the stub never takes; the kernel has interrupts on always."""
        self._has_nmi = True
        self.before_entry()

    def _window(self, _: Exit) -> bool:
        self.vcpu.request_interrupt_window(False)
        if self.debug.out_of_stub():
            self.vcpu.kick()
        else:
            self._interrupt_if_waiting()
        return True
