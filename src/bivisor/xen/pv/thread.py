"""The processor of a PV domain: hypercalls come by SYSCALL while translated code is still below, and go back there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from bivisor.abi.x86 import Msr, Vector
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import VCPU_UPCALL_MASK, VCPU_UPCALL_PENDING, Hypercall, ShutdownReason
from bivisor.cpu.contract import Vcpu
from bivisor.cpu.exits import Exit, RdMsr, WrMsr
from bivisor.xen.call import Preempted
from bivisor.xen.domain import Domain, State
from bivisor.xen.errors import XenError
from bivisor.xen.pv.call import PvCall
from bivisor.xen.pv.fast import CODE, SWITCHES, UPDATES
from bivisor.xen.pv.machine import PvMachine
from bivisor.xen.pv.msrs import IGNORED, READABLE
from bivisor.xen.pv.stub import CRASH_CALL, ENTRIES, EVENTS_CALL
from bivisor.xen.pv.table import TABLE, step
from bivisor.xen.vcpu_thread import VcpuThread
from bivisor.xen.watched import watch_hypercalls

if TYPE_CHECKING:
    from bivisor.xen.pv.guest import PvGuest

_FUNCTION = TABLE.get
_MASK: Final = (1 << 64) - 1


class PvThread(VcpuThread):
    """See `VcpuThread`, and `cpu.supervisor.Supervisor` for what else it answers."""

    def __init__(self, guest: PvGuest, domain: Domain, vcpu: Vcpu, machine: PvMachine) -> None:
        super().__init__(guest, domain, vcpu)
        self.machine = machine
        self.read_cr, self.write_cr, self.trap = machine.read_cr, machine.write_cr, machine.trap
        machine.cpu = vcpu.supervise(self)  # type: ignore[attr-defined]
        machine.cpu.shortcut(Hypercall.IRET, machine.private.stub + ENTRIES.iret)
        machine.cpu.native(CODE, machine.fast.address)
        self._registers = machine.cpu.registers
        self._pv_call = PvCall(guest.xen, domain, vcpu.index, machine, self._give_way)
        self._lock = guest.xen.lock
        self._online = domain.online
        self._sites.append(watch_hypercalls(self._pv_call, TABLE, self._seen))
        self._calls = 0
        self.counts = dict.fromkeys(TABLE, 0)
        """How often each hypercall came here."""

    def _seen(self, watched: bool) -> None:
        """While somebody listens to hypercalls, none is carried out where it could not be told of."""
        self.machine.cpu.native(b"" if watched else CODE, self.machine.fast.address)

    def hypercalls(self) -> dict[int, int]:
        """How often each was made, but for iret, which is made without the hypervisor."""
        counts, state = dict(self.counts), self.machine.fast.values
        counts[Hypercall.MMU_UPDATE] += state[UPDATES]
        counts[Hypercall.MMUEXT_OP] += state[SWITCHES]
        return {number: count for number, count in counts.items() if count}

    def call(self) -> bool:
        """See `Supervisor.call`: a hypercall, whose number is in RAX (arch-x86/xen-x86_64.h)."""
        self.handling = True
        regs = self._registers
        number = regs[0]
        watched = self._pv_call.watched
        function = _FUNCTION(number) if watched is None else watched.get(number)
        if function is not None:
            self.counts[number] += 1
            try:
                with self._lock:
                    result = function(self._pv_call, regs[7], regs[6], regs[2], regs[10], regs[8])
            except XenError as error:
                result = -error.errno
            except Preempted as more:
                result = self._go_on(number, more)
        else:
            result = self._unknown(number)
        regs[0] = result & _MASK
        info = self._info.info
        if info[VCPU_UPCALL_PENDING] and not info[VCPU_UPCALL_MASK]:
            self.machine.interrupt()
        self._calls += 1
        if not self._calls & 63:
            self._guest.keep_time(self.tsc)
        self.handling = False
        return self._wish is None and self._domain.state is State.RUNNING and self.index in self._online

    def _unknown(self, number: int) -> int:
        if number == EVENTS_CALL:
            return 0
        if number == CRASH_CALL:
            self._guest.xen.console_write(
                self._domain, f"d{self._domain.domid}v{self.index}: no way into the kernel's handler\n".encode()
            )
            self._guest.xen.shutdown(self._domain, ShutdownReason.CRASH)
            return 0
        return -Errno.ENOSYS

    def _go_on(self, number: int, more: Preempted) -> int:
        """A long hypercall: others have their turn between two parts."""
        while True:
            time.sleep(more.pause)
            if not self._pv_call.give_way():
                return -Errno.EINTR
            try:
                with self._lock:
                    return step(self._pv_call, number, more.arguments)
            except Preempted as again:
                more = again

    def _deliver_nmi(self) -> None:
        """As an interrupt, which the stub never takes in the middle of a frame; the kernel has interrupts on always."""
        self.machine.cpu.interrupt(Vector.NMI)

    def look_for_events(self) -> None:
        """Interrupt the guest if it has an event to see. By its own thread."""
        info = self._info.info
        if info[VCPU_UPCALL_PENDING] and not info[VCPU_UPCALL_MASK]:
            self.machine.interrupt()

    def _rdmsr(self, exit_: Exit) -> bool:
        assert isinstance(exit_, RdMsr)
        value = self.tsc() if exit_.index == Msr.IA32_TIME_STAMP_COUNTER else READABLE.get(exit_.index)
        if value is None:
            exit_.error[0] = 1
        else:
            exit_.data[:] = value.to_bytes(8, "little")
        return True

    def _wrmsr(self, exit_: Exit) -> bool:
        assert isinstance(exit_, WrMsr)
        if exit_.index not in IGNORED:
            exit_.error[0] = 1
        return True
