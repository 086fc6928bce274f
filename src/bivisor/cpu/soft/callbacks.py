"""What translated code calls besides `accesses.py`: MSRs, CPUID, CR8, exceptions, hypercalls, interrupts, breakpoints.

The rules are the same: nothing is raised here, an exception is kept for `run()`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from bivisor.abi.x86 import Vector
from bivisor.cpu.exits import (
    Cpuid,
    Debug,
    Exit,
    Hlt,
    Hypercall,
    InterruptWindow,
    Mmio,
    PortIo,
    RdMsr,
    WrMsr,
)
from bivisor.cpu.soft import private as p
from bivisor.cpu.soft.accesses import Accesses
from bivisor.cpu.soft.msr import HANDLED, LIBRARY_OWNED, USE_LIBRARY, MsrFault, Msrs

if TYPE_CHECKING:
    from bivisor.cpu.soft.supervised import SoftSupervised
    from bivisor.cpu.soft.vcpu import SoftVcpu

_VMCALL = b"\x0f\x01\xc1"
_VMMCALL = b"\x0f\x01\xd9"
_U32 = (1 << 32) - 1
_DELIVER, _DEALT_WITH, _LEAVE = range(3)
_KVM_ARGUMENTS = (3, 1, 2, 6)  # RBX, RCX, RDX, RSI
_XEN_ARGUMENTS = (7, 6, 2, 10, 8, 9)  # RDI, RSI, RDX, R10, R8, R9
_XEN_ARGUMENTS_32 = (3, 1, 2, 6, 7, 5)  # EBX, ECX, EDX, ESI, EDI, EBP


class Callbacks(Accesses):
    """All callbacks of one processor."""

    def __init__(self, vcpu: SoftVcpu) -> None:
        super().__init__(vcpu)
        context = self.context
        self.exit_on_cpuid = False
        self.bypass = False
        self.breakpoints: tuple[int, ...] = ()
        self._stepped_over = -1
        self.supervised: SoftSupervised | None = None
        context.rdmsr = p.RDMSR(self._rdmsr)
        context.wrmsr = p.WRMSR(self._wrmsr)
        context.cpuid = p.CPUID(self._cpuid)
        context.trap = p.TRAP(self._trap)
        context.inta = p.INTA(self._inta)
        context.read_cr8 = p.READ_CR8(self._read_cr8)
        context.write_cr8 = p.WRITE_CR8(self._write_cr8)
        context.break_ = p.BREAK(self._break)
        context.trap_mask = 1 << Vector.UD

    # ---------------------------------------------------------------- MSRs, CPUID, CR8

    def _rdmsr(self, index: int) -> int:
        try:
            if self.bypass:
                return USE_LIBRARY
            vcpu = self._vcpu
            reader = vcpu.msrs.readers.get(index)
            if not vcpu.machine.filtered(index):
                if reader is not None:
                    self._store(reader())
                    return HANDLED
                if index in LIBRARY_OWNED:
                    return USE_LIBRARY
            key = ("rdmsr", index)
            if self.replaying:
                value = self._replayed(key)
                if value is not None:
                    self._finish_rdmsr(value)
                    return HANDLED
            self._u64.value = 0
            self._error_flag[0] = 0
            exit_ = RdMsr(index, self._data[8], self._error_flag)
            if self._handled(exit_, key):
                self._count("RdMsr")
                self._finish_rdmsr(self._u64.value)
            else:
                self._leave(exit_, key)
        except MsrFault:
            self._cpu.raise_fault(Vector.GP)
        except BaseException as error:
            self._fail(error)
        return HANDLED

    def _finish_rdmsr(self, value: int) -> None:
        if self._error_flag[0]:
            self._cpu.raise_fault(Vector.GP)
        else:
            self._store(value)

    def _store(self, value: int) -> None:
        regs = self._cpu.regs
        regs[0] = value & _U32
        regs[2] = value >> 32 & _U32

    def _wrmsr(self, index: int, value: int) -> int:
        try:
            if self.bypass:
                return USE_LIBRARY
            vcpu = self._vcpu
            if not vcpu.machine.filtered(index):
                writer = vcpu.msrs.writers.get(index)
                if writer is not None:
                    writer(value)
                    return HANDLED
                if index in LIBRARY_OWNED:
                    Msrs.check_library_write(index, value)
                    return USE_LIBRARY
            key = ("wrmsr", index)
            if self.replaying and self._replayed(key) is not None:
                self._finish_wrmsr()
                return HANDLED
            self._error_flag[0] = 0
            exit_ = WrMsr(index, value, self._error_flag)
            if self._handled(exit_, key):
                self._count("WrMsr")
                self._finish_wrmsr()
            else:
                self._leave(exit_, key)
        except MsrFault:
            self._cpu.raise_fault(Vector.GP)
        except BaseException as error:
            self._fail(error)
        return HANDLED

    def _finish_wrmsr(self) -> None:
        if self._error_flag[0]:
            self._cpu.raise_fault(Vector.GP)

    def _cpuid(self) -> None:
        try:
            regs = self._cpu.regs
            leaf, subleaf = regs[0] & _U32, regs[1] & _U32
            if not self.exit_on_cpuid:
                regs[0], regs[3], regs[1], regs[2] = self._vcpu.cpuid.look_up(leaf, subleaf)
                return
            key = ("cpuid", leaf, subleaf)
            if self.replaying and self._replayed(key) is not None:
                self._finish_cpuid()
                return
            struct.pack_into("<4I", self._view, 0, *self._vcpu.cpuid.look_up(leaf, subleaf))
            exit_ = Cpuid(leaf, subleaf, self._view[:16])
            if self._handled(exit_, key):
                self._count("Cpuid")
                self._finish_cpuid()
            else:
                self._leave(exit_, key)
        except BaseException as error:
            self._fail(error)

    def _finish_cpuid(self) -> None:
        regs = self._cpu.regs
        regs[0], regs[3], regs[1], regs[2] = struct.unpack_from("<4I", self._view)

    def _read_cr8(self) -> int:
        return self._vcpu.apic.tpr >> 4

    def _write_cr8(self, value: int) -> None:
        try:
            if value > 15:
                self._cpu.raise_fault(Vector.GP)
            else:
                self._vcpu.apic.write(0x80, value << 4)
        except BaseException as error:
            self._fail(error)

    # ---------------------------------------------------------------- exceptions and interrupts

    def trap_breakpoints(self, wanted: bool) -> None:
        """Whether INT3 in the guest is the host's breakpoint."""
        mask = self.context.trap_mask & ~(1 << Vector.BP)
        self.context.trap_mask = mask | (1 << Vector.BP if wanted else 0)

    def _trap(self, vector: int) -> int:
        try:
            cpu = self._cpu
            if vector == Vector.BP and cpu.is_int.value:
                cpu.eip.value = cpu.next_eip.value - 1
                pc = cpu.eip.value + cpu.segs[1].base
                self.exit = Debug(Vector.BP, pc, 0, 0)
                cpu.old_exception.value = -1
                return _LEAVE
            if self.supervised is not None and vector != Vector.BP:
                return _DEALT_WITH if self.supervised.trap(vector) else _DELIVER
            if vector == Vector.UD:
                code = self._vcpu.read_linear(cpu.eip.value + cpu.segs[1].base, 3)
                if code in (_VMCALL, _VMMCALL):
                    cpu.old_exception.value = -1
                    return self._hypercall()
        except BaseException as error:
            self.error = error
            return _LEAVE
        return _DELIVER

    def set_breakpoints(self, addresses: tuple[int, ...], rip: int) -> None:
        """Stop at these linear addresses; the guest is at `rip`."""
        self.breakpoints = addresses
        if rip != self._stepped_over:  # it went on from there while there was no breakpoint
            self._stepped_over = -1

    def _break(self, address: int) -> int:
        """Stop before the instruction at a breakpoint, but not a second time when the guest goes on from there."""
        if self._stepped_over == address:
            self._stepped_over = -1
            return 0
        self._stepped_over = address
        self.exit = Debug(Vector.DB, address, 1 << self.breakpoints.index(address), self._cpu.dr[7])
        return 1

    def _hypercall(self) -> int:
        cpu, regs = self._cpu, self._cpu.regs
        abi = self._vcpu.machine.hypercall_abi
        long_mode = bool(cpu.hflags.value & p.HF_CS64)
        order = _KVM_ARGUMENTS if abi == "kvm" else _XEN_ARGUMENTS if long_mode else _XEN_ARGUMENTS_32
        mask = (1 << 64) - 1 if long_mode else _U32
        self._u64.value = 0
        exit_ = Hypercall(
            abi,
            regs[0] & mask,
            tuple(regs[i] & mask for i in order),
            cpu.hflags.value & p.HF_CPL,
            long_mode,
            self._data[8],
        )
        handler = self.handler
        if handler is not None and handler(exit_):
            self._count("Hypercall")
            self._finish_hypercall()
            return _DEALT_WITH
        self.exit = exit_
        self._vcpu.resume = self._finish_hypercall
        return _LEAVE

    def _finish_hypercall(self) -> None:
        self._cpu.regs[0] = self._u64.value
        self._cpu.eip.value += 3

    def _inta(self) -> int:
        try:
            return self._vcpu.interrupts.inta()
        except BaseException as error:
            self.error = error
            self._cpu.interrupt()
            return -1

    def leave_with_window(self) -> None:
        """The interrupt window that was asked for is open."""
        self.exit = InterruptWindow()
        self._cpu.interrupt()

    # ---------------------------------------------------------------- counters

    def _count(self, name: str) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1

    def count(self, exit_: Exit) -> None:
        """Count an exit that left `run()`; port and memory accesses have been counted where they came in."""
        if not isinstance(exit_, (PortIo, Mmio, Hlt)):
            self._count(type(exit_).__name__)

    def counters(self) -> dict[str, int]:
        """Exits by class, their finer counts, and the exceptions that the guest took by itself."""
        counts = {
            "PortIo": self.outs + self.ins,
            "PortIo_in": self.ins,
            "PortIo_out": self.outs,
            "Mmio": self.mmio_reads + self.mmio_writes,
            "Mmio_read": self.mmio_reads,
            "Mmio_write": self.mmio_writes,
            "Hlt": self.halts,
            **self._counts,
        }
        for vector, number in enumerate(self.context.vectors):
            if number:
                counts[f"exception_{vector}"] = number
        return counts

    def close(self) -> None:
        """Let go of the views and of the references that make a circle with the processor."""
        for name, type_ in p.Context._fields_:
            if isinstance(getattr(self.context, name), Callable):  # type: ignore[arg-type]
                setattr(self.context, name, type_())
