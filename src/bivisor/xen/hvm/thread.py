"""A processor of an HVM domain: where its accesses to ports and addresses go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bivisor.cpu.contract import Vcpu
from bivisor.cpu.exits import Direction, Exit, Mmio, PortIo, RdMsr, WrMsr
from bivisor.memory import PAGE
from bivisor.xen.domain import Domain
from bivisor.xen.hvm import kernels
from bivisor.xen.hvm.ioreq import BadState, Ioreqs
from bivisor.xen.vcpu_thread import VcpuThread

if TYPE_CHECKING:
    from bivisor.xen.hvm.guest import HvmGuest

STRING_GFN = 0xFEFF8 + 2
"""A page of the domain, beside its rings, through which the data of string instructions goes: an engine hands over the
data and not its address, and a device model reaches nothing but the domain's memory."""


class HvmThread(VcpuThread):
    """See `VcpuThread`."""

    def __init__(self, guest: HvmGuest, domain: Domain, vcpu: Vcpu) -> None:
        super().__init__(guest, domain, vcpu)
        self._hvm = guest
        self._devices = guest.devices
        self._ioreqs = Ioreqs(guest, guest.servers, vcpu.index)

    def answered(self) -> None:
        """The device model has notified this processor."""
        self._ioreqs.answered()

    def kick(self) -> None:
        """See `VcpuThread.kick`."""
        super().kick()
        self._ioreqs.answered()

    def _port(self, exit_: Exit) -> bool:
        assert isinstance(exit_, PortIo)
        self._hvm.look_at_line()
        try:
            if exit_.count > 1:
                self._string(exit_)
            elif exit_.direction is Direction.OUT:
                self._out(exit_.port, exit_.size, int.from_bytes(exit_.data[: exit_.size], "little"))
            else:
                exit_.data[: exit_.size] = self._in(exit_.port, exit_.size).to_bytes(exit_.size, "little")
        except BadState as error:
            return self._give_up(error)
        return True

    def _in(self, port: int, size: int) -> int:
        value = self._devices.read_port(port, size)
        return (self._ioreqs.port(port, size, None) if value is None else value) & (1 << 8 * size) - 1

    def _out(self, port: int, size: int, value: int) -> None:
        if not self._devices.write_port(port, size, value):
            self._ioreqs.port(port, size, value)

    def _string(self, exit_: PortIo) -> None:
        """A string instruction: as one ioreq a page, or item by item where the port is Xen's own."""
        port, size, data = exit_.port, exit_.size, exit_.data
        is_out = exit_.direction is Direction.OUT
        if self._devices.ports.find(port) is not None:
            for at in range(0, size * exit_.count, size):
                if is_out:
                    self._out(port, size, int.from_bytes(data[at : at + size], "little"))
                else:
                    data[at : at + size] = self._in(port, size).to_bytes(size, "little")
            return
        page = self._domain.frame(STRING_GFN)
        for at in range(0, size * exit_.count, PAGE):
            end = min(at + PAGE, size * exit_.count)
            if is_out:
                page[: end - at] = data[at:end]
            value = 0 if is_out else None
            self._ioreqs.port(port, size, value, (end - at) // size, STRING_GFN * PAGE)
            if not is_out:
                data[at:end] = page[: end - at]

    def _mmio(self, exit_: Exit) -> bool:
        assert isinstance(exit_, Mmio)
        self._hvm.look_at_line()
        address, size = exit_.address, exit_.length
        claim = self._devices.mmio.find(address)
        try:
            if claim is not None:
                with self._devices.lock:
                    if exit_.is_write:
                        claim.device.write(address - claim.base, size, int.from_bytes(exit_.data[:size], "little"))
                    else:
                        value = claim.device.read(address - claim.base, size) & (1 << 8 * size) - 1
                        exit_.data[:size] = value.to_bytes(size, "little")
            elif exit_.is_write:
                self._ioreqs.memory(address, size, int.from_bytes(exit_.data[:size], "little"))
            else:
                exit_.data[:size] = self._ioreqs.memory(address, size, None).to_bytes(size, "little")
        except BadState as error:
            return self._give_up(error)
        return True

    def _rdmsr(self, exit_: Exit) -> bool:
        assert isinstance(exit_, RdMsr)
        if exit_.index != kernels.EFER or not self._hvm.replaces_hypercalls:
            return super()._rdmsr(exit_)
        exit_.data[:] = kernels.read_efer(self.vcpu).to_bytes(8, "little")
        return True

    def _wrmsr(self, exit_: Exit) -> bool:
        assert isinstance(exit_, WrMsr)
        if exit_.index != kernels.EFER or not self._hvm.replaces_hypercalls:
            return super()._wrmsr(exit_)
        before = kernels.read_efer(self.vcpu)
        if not kernels.write_efer(self.vcpu, exit_.value):
            exit_.error[0] = 1
        elif kernels.is_kernel_start(before, exit_.value):
            gpa = self.vcpu.translate(self.vcpu.get_regs().rip)
            if gpa is not None:
                self._hvm.kernel_starts(gpa)
        return True

    def _give_up(self, error: BadState) -> bool:
        """As Xen does: the domain crashes, and the log says why."""
        self._xen.console_write(self._domain, f"d{self._domain.domid}v{self.index}: {error}\n".encode())
        return False
