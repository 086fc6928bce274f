"""The processor as a hypervisor above has it in hand while its guest's kernel runs (`bivisor.cpu.supervisor`)."""

from __future__ import annotations

import ctypes as C
from collections.abc import MutableSequence
from typing import TYPE_CHECKING, cast

from bivisor.abi.x86 import Cr0, Vector
from bivisor.cpu.exits import Hypercall
from bivisor.cpu.registers import Segment
from bivisor.cpu.soft import private as p
from bivisor.cpu.soft.state import store_segment
from bivisor.cpu.supervisor import Supervisor

if TYPE_CHECKING:
    from bivisor.cpu.soft.vcpu import SoftVcpu

_CC_FLAGS = 0x8D5
_NO_NUMBER = (1 << 64) - 1
_CC_OP_EFLAGS = 1  # the flags are in cc_src
_CALLED = Hypercall("xen-pv", 0, (), 0, True, memoryview(bytearray(8)))
_LDT, _LDT_SELECTOR = 2, 0xE048
_STORE_OF_KERNEL, _CAUSE = 3, 7  # page-fault error codes: present and write, and not from CPL 3


class SoftSupervised:
    """See `bivisor.cpu.supervisor.Supervised`."""

    def __init__(self, vcpu: SoftVcpu, supervisor: Supervisor) -> None:
        self._vcpu = vcpu
        cpu = self._cpu = vcpu.cpu
        self.registers = cast(MutableSequence[int], cpu.regs)
        self._supervisor = supervisor
        self._call = supervisor.call
        self._cc_op = C.c_uint32.from_address(cpu.env + p.ENV_CC_OP)
        self._cc_src = C.c_uint64.from_address(cpu.env + p.ENV_CC_SRC)
        self._calls = 0
        context = vcpu.callbacks.context
        context.syscall = p.SYSCALL(self._syscall)
        context.read_cr = p.READ_CR(self._read_cr)
        context.write_cr = p.WRITE_CR(self._write_cr)
        context.page_fault_mask, context.page_fault_match = _CAUSE, _STORE_OF_KERNEL
        context.shortcut_number = _NO_NUMBER
        context.trap_mask |= 1 << Vector.PF
        vcpu.callbacks.supervised = self

    # ---------------------------------------------------------------- what the guest does

    def _syscall(self) -> None:
        try:
            if not self._call():
                self._vcpu.callbacks.exit = _CALLED
                self._cpu.leave()
        except BaseException as error:
            self._vcpu.callbacks.error = error
            self._cpu.leave()

    def _read_cr(self, number: int) -> int:
        try:
            return self._supervisor.read_cr(number)
        except BaseException as error:
            self._vcpu.callbacks.error = error
            self._cpu.interrupt()
            return 0

    def _write_cr(self, number: int, value: int) -> None:
        try:
            if not self._supervisor.write_cr(number, value):
                self._cpu.raise_fault(Vector.GP)
        except BaseException as error:
            self._vcpu.callbacks.error = error
            self._cpu.leave()

    def trap(self, vector: int) -> bool:
        """An exception that the supervisor wants to see first: whether it has dealt with it."""
        cpu = self._cpu
        if not self._supervisor.trap(vector, cpu.error_code.value):
            return False
        cpu.old_exception.value = -1
        return True

    # ---------------------------------------------------------------- its state

    @property
    def rip(self) -> int:
        """See `Supervised.rip`."""
        return int(self._cpu.eip.value)

    @rip.setter
    def rip(self, value: int) -> None:
        self._cpu.eip.value = value

    @property
    def cpl(self) -> int:
        """See `Supervised.cpl`."""
        return int(self._cpu.hflags.value & p.HF_CPL)

    @property
    def fault_address(self) -> int:
        """See `Supervised.fault_address`."""
        return int(self._cpu.cr[2])

    @property
    def flags(self) -> int:
        """See `Supervised.flags`."""
        return int(self._cpu.library.cc_compute_all(self._cpu.env, self._cc_op.value)) & _CC_FLAGS

    @flags.setter
    def flags(self, value: int) -> None:
        self._cc_src.value = value & _CC_FLAGS
        self._cc_op.value = _CC_OP_EFLAGS

    def load_cr3(self, value: int) -> None:
        """See `Supervised.load_cr3`."""
        self._cpu.library.update_cr3(self._cpu.env, value)

    def flush_tlb(self) -> None:
        """See `Supervised.flush_tlb`."""
        self._cpu.library.tlb_flush(self._cpu.cpu)

    def flush_page(self, linear: int) -> None:
        """See `Supervised.flush_page`."""
        self._cpu.library.tlb_flush_page(self._cpu.cpu, linear & -4096)

    def set_base(self, segment: str, base: int) -> None:
        """See `Supervised.set_base`."""
        if segment == "kernel_gs":
            self._cpu.kernel_gs_base.value = base
        else:
            self._cpu.segs[4 if segment == "fs" else 5].base = base

    def load_ldt(self, base: int, size: int) -> None:
        """See `LocalTables.load_ldt`."""
        table = Segment(base=base, limit=size - 1, type=_LDT, s=0) if size else Segment(unusable=1)
        table.selector = _LDT_SELECTOR if size else 0
        store_segment(self._cpu.ldt, table)

    def set_task_switched(self, wanted: bool) -> None:
        """See `Supervised.set_task_switched`."""
        cpu = self._cpu
        cpu.cr[0] = cpu.cr[0] & ~Cr0.TS | (Cr0.TS if wanted else 0)
        mask = Cr0.TS >> 1 << p.HF_MP_SHIFT
        cpu.hflags.value = cpu.hflags.value & ~mask | (mask if wanted else 0)

    def shortcut(self, number: int, rip: int) -> None:
        """See `Supervised.shortcut`."""
        context = self._vcpu.callbacks.context
        context.shortcut_number, context.shortcut_rip = number, rip

    def native(self, code: bytes, state: int) -> None:
        """See `Supervised.native`."""
        context = self._vcpu.callbacks.context
        context.native_state = state
        context.native = self._cpu.library.executable(code) if code else 0

    def interrupt(self, vector: int) -> None:
        """See `Supervised.interrupt`."""
        if self._vcpu.interrupts.queued != Vector.NMI:  # which comes before any other, and only once
            self._vcpu.interrupt(vector)
