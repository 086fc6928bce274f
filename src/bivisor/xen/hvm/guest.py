"""Runs an HVM domain on an engine: a PC whose processor begins at the reset vector, with Xen's own devices around it.

Ports and addresses that are not Xen's go to whoever has an ioreq server for them; see `thread.py`.
"""

from __future__ import annotations

from collections import deque

from bivisor.abi.xen import xen as abi
from bivisor.cpu.contract import Vcpu
from bivisor.cpu.exits import Exit, Shutdown
from bivisor.cpu.windows import MachineWindows
from bivisor.xen.cpuid import domain_cpuid
from bivisor.xen.domain import Domain
from bivisor.xen.guest import PvhGuest
from bivisor.xen.hvm import kernels
from bivisor.xen.hvm.irq import Lines
from bivisor.xen.hvm.platform import HvmDevices
from bivisor.xen.hvm.servers import IoreqServers
from bivisor.xen.hvm.state import HvmState
from bivisor.xen.hvm.thread import HvmThread
from bivisor.xen.vcpu_thread import VcpuThread

_SECOND = 1e9
_LINES = 256


class HvmGuest(PvhGuest):
    """The processors of one HVM domain, and what Xen emulates for it."""

    def _prepare(self) -> None:
        self._said: deque[bytes] = deque(maxlen=_LINES)
        self.devices = HvmDevices(self.machine, lambda: self.xen.wall() / _SECOND, self._say, self.failed)
        self._instruction = self.machine.take_xen_hypercalls(abi.HYPERCALL_PAGE_MSR)
        if self.replaces_hypercalls:
            self.machine.filter_msrs([(abi.HYPERCALL_PAGE_MSR, 1), (kernels.EFER, 1)])
        self._has_callback = self.devices.chip is not None
        self.windows = MachineWindows(self.machine, self.memory)

    def _say(self, line: bytes) -> None:
        """What firmware writes to the debug port: called with the devices' lock, in which Xen's may not be taken."""
        self._said.append(line)
        self._timers.set("say", 0, self._tell)

    def _tell(self) -> None:
        while self._said:
            self.xen.console_write(self.domain, b"(d%d) %s" % (self.domain.domid, self._said.popleft()))

    def attach(self, domain: Domain) -> None:
        """See `PvhGuest.attach`."""
        self.lines = Lines(self.devices.set_irq)
        self.servers = IoreqServers(domain, lambda vcpu: self.threads[vcpu].answered())  # type: ignore[attr-defined]
        super().attach(domain)
        domain.hvm = HvmState(
            self.servers, self.lines, self.windows, self.machine.signal_msi, self.devices.press_power_button
        )
        domain.physmap.occupied = self.windows.places
        domain.params[abi.HvmParam.TRIPLE_FAULT_REASON] = abi.ShutdownReason.REBOOT
        chip = self.devices.chip
        if chip is not None:
            chip.callback_vector = lambda: domain.vcpus[0].callback_vector
            chip.ended = self.look_at_line
        self.machine.gather_strings()
        self.devices.start()

    def _processor(self, domain: Domain, vcpu: Vcpu) -> VcpuThread:
        vcpu.set_cpuid(domain_cpuid(self._engine, vcpu, len(self.vcpus), domain.domid))
        return HvmThread(self, domain, vcpu)

    def _interrupt(self, vcpu: int) -> None:
        info = self.domain.vcpus[vcpu]
        chip = self.devices.chip
        if info.upcall_vector:
            super()._interrupt(vcpu)
        elif info.callback_vector:
            if chip is not None and vcpu == 0:
                chip.raise_callback()
            else:
                self.machine.signal_msi(0xFEE0_0000 | vcpu << 12, info.callback_vector)
        elif vcpu == 0:
            self.lines.callback_level(True)

    def kernel_starts(self, gpa: int) -> None:
        """A kernel of the domain's own begins, at `gpa`: make its hypercalls come out (see `loaded`)."""
        kernels.replace_around(self.memory, gpa, self._instruction)

    def look_at_line(self) -> None:
        """The line of event channels is up for as long as processor 0 has an upcall to take."""
        if not self.lines.callback_is_up:
            return
        with self.xen.lock:
            if not self.domain.vcpus[0].info[abi.VCPU_UPCALL_PENDING]:
                self.lines.callback_level(False)

    def ended(self, vcpu: int, exit_: Exit) -> None:
        """See `PvhGuest.ended`: a triple fault resets a PC."""
        if isinstance(exit_, Shutdown):
            reason = self.domain.params[abi.HvmParam.TRIPLE_FAULT_REASON]
            if reason in list(abi.ShutdownReason):
                self.xen.console_write(self.domain, f"d{self.domain.domid}v{vcpu}: triple fault\n".encode())
                self.xen.shutdown(self.domain, abi.ShutdownReason(reason))
                return
        super().ended(vcpu, exit_)

    def close(self) -> None:
        """See `PvhGuest.close`."""
        self.stop()
        self.devices.close()
        self.windows.close()
        if hasattr(self, "domain"):
            self.domain.hvm = None
        super().close()
