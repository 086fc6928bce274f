"""What a soft processor is made of as others read and write it: registers, MSRs, events, CPUID, linear addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from bivisor.cpu.registers import CpuidEntry, Events, Fpu, Regs, Sregs
from bivisor.cpu.soft import private as p
from bivisor.cpu.soft import state
from bivisor.cpu.soft.model import CpuidTable, cpuid_model
from bivisor.cpu.soft.msr import LIBRARY_OWNED, MsrFault, Msrs
from bivisor.errors import EngineError, GuestAddressError
from bivisor.memory import PAGE

if TYPE_CHECKING:
    from bivisor.cpu.soft.callbacks import Callbacks
    from bivisor.cpu.soft.interrupts import Interrupts
    from bivisor.cpu.soft.lapic import LocalApic
    from bivisor.cpu.soft.machine import SoftMachine


class VcpuState:
    """The half of `SoftVcpu` that holds state; that one makes what is only named here."""

    machine: SoftMachine
    index: int
    cpu: p.Cpu
    inside: bool
    interrupts: Interrupts
    msrs: Msrs
    callbacks: Callbacks
    resume: Callable[[], None] | None
    _inject: tuple[int, int] | None

    @property
    def apic(self) -> LocalApic:
        """Its local APIC."""
        return self.interrupts.apic

    @cached_property
    def cpuid(self) -> CpuidTable:
        """What CPUID says. Its own model is made when it is first asked for: its frequency takes time to measure."""
        return CpuidTable(cpuid_model(self.machine.tsc_khz(), self.index))

    def set_cpuid(self, entries: Iterable[CpuidEntry]) -> None:
        """See `Vcpu.set_cpuid`."""
        self.cpuid = CpuidTable(tuple(entries))

    def get_cpuid(self) -> tuple[CpuidEntry, ...]:
        """See `Vcpu.get_cpuid`."""
        return self.cpuid.entries

    def _sync(self) -> None:
        """Bring RIP and the lazy flags up to date while a callback of the running guest asks."""
        address = self.callbacks.context.return_address
        if self.inside and address and self.callbacks.in_access:
            self.cpu.library.restore_state(self.cpu.cpu, address, 0)

    def get_regs(self) -> Regs:
        """See `Vcpu.get_regs`."""
        self._sync()
        return state.get_regs(self.cpu, inside=self.inside)

    def set_regs(self, regs: Regs) -> None:
        """See `Vcpu.set_regs`. From a handler, answer False after it: the guest's RIP is set when `run()` is left."""
        if self.inside:
            self.resume = lambda: state.set_regs(self.cpu, regs)
            self.callbacks.forget_replay()
        else:
            self.callbacks.forget_replay()
            state.set_regs(self.cpu, regs)
            self.callbacks.set_breakpoints(self.callbacks.breakpoints, self._linear_rip())

    def get_sregs(self) -> Sregs:
        """See `Vcpu.get_sregs`."""
        sregs = state.get_sregs(self.cpu)
        sregs.cr8 = self.apic.tpr >> 4
        sregs.apic_base = self.apic.base
        return sregs

    def set_sregs(self, sregs: Sregs) -> None:
        """See `Vcpu.set_sregs`."""
        state.set_sregs(self.cpu, sregs)
        self.apic.tpr = sregs.cr8 << 4
        if self.machine.irqchip != "none":
            self.apic.base = sregs.apic_base & ~0x100 | (0x100 if self.index == 0 else 0)

    def get_fpu(self) -> Fpu:
        """See `Vcpu.get_fpu`."""
        return state.get_fpu(self.machine.uc, self.machine.constants)

    def set_fpu(self, fpu: Fpu) -> None:
        """See `Vcpu.set_fpu`."""
        state.set_fpu(self.machine.uc, self.machine.constants, fpu)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """See `Vcpu.get_msrs`."""
        return {index: self._get_msr(index) for index in indices}

    def _get_msr(self, index: int) -> int:
        reader = self.msrs.readers.get(index)
        if reader is not None:
            try:
                return reader()
            except MsrFault:
                pass
        elif index in LIBRARY_OWNED:
            self.callbacks.bypass = True  # the public call ends in our own callback, which must not exit
            try:
                return int(self.machine.uc.msr_read(index))
            finally:
                self.callbacks.bypass = False
        raise EngineError(f"KVM_GET_MSRS: this processor has no MSR {index:#x}")

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """See `Vcpu.set_msrs`."""
        for index, value in values.items():
            try:
                self._set_msr(index, value)
            except MsrFault:
                raise EngineError(f"KVM_SET_MSRS: MSR {index:#x} does not take {value:#x}") from None

    def _set_msr(self, index: int, value: int) -> None:
        writer = self.msrs.writers.get(index)
        if writer is not None:
            writer(value)
        elif index in LIBRARY_OWNED:
            Msrs.check_library_write(index, value)
            self.callbacks.bypass = True
            try:
                self.machine.uc.msr_write(index, value)
            finally:
                self.callbacks.bypass = False
        else:
            raise MsrFault

    def get_events(self) -> Events:
        """See `Vcpu.get_events`."""
        cpu = self.cpu
        inject = self._inject
        return Events(
            exception=None if inject is None else inject[0],
            exception_error=None if inject is None or inject[0] not in p.WITH_ERROR_CODE else inject[1],
            interrupt=self.interrupts.queued if self.interrupts.queued >= 0 else None,
            interrupt_shadow=bool(cpu.hflags.value & p.HF_INHIBIT_IRQ),
            nmi_pending=bool(cpu.interrupt_request.value & p.INTERRUPT_NMI),
            nmi_masked=bool(cpu.hflags2.value & p.HF2_NMI_MASK),
        )

    def set_events(self, events: Events) -> None:
        """See `Vcpu.set_events`."""
        cpu = self.cpu
        self._inject = None if events.exception is None else (events.exception, events.exception_error or 0)
        self.interrupts.queued = -1 if events.interrupt is None else events.interrupt
        shadow = p.HF_INHIBIT_IRQ if events.interrupt_shadow else 0
        cpu.hflags.value = cpu.hflags.value & ~p.HF_INHIBIT_IRQ | shadow
        request = cpu.interrupt_request.value & ~p.INTERRUPT_NMI
        cpu.interrupt_request.value = request | (p.INTERRUPT_NMI if events.nmi_pending or events.nmi_injected else 0)
        masked = p.HF2_NMI_MASK if events.nmi_masked else 0
        cpu.hflags2.value = cpu.hflags2.value & ~p.HF2_NMI_MASK | masked
        self.interrupts.apic_changed()

    def translate(self, linear: int) -> int | None:
        """See `Vcpu.translate`."""
        from bivisor.cpu.soft.paging import translate

        cpu = self.cpu
        return translate(self.machine.read_number, cpu.cr[0], cpu.cr[3], cpu.cr[4], cpu.efer.value, linear)

    def read_linear(self, linear: int, length: int) -> bytes | None:
        """Up to `length` bytes at a linear address, or None where the first is not mapped to memory."""
        found = b""
        while length > 0:
            gpa = self.translate(linear)
            part = min(length, PAGE - linear % PAGE)
            try:
                found += b"" if gpa is None else bytes(self.machine.view(gpa, part))
            except GuestAddressError:
                gpa = None
            if gpa is None:
                break
            linear, length = linear + part, length - part
        return found or None

    def _linear_rip(self) -> int:
        cpu = self.cpu
        return int(cpu.eip.value + cpu.segs[1].base)
