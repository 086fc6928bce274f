"""Processors of a PV domain that come and go: vcpu_op (vcpu.h), and the state in which one begins (arch-x86/xen.h)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bivisor.abi.x86 import Efer, Msr, Rflags
from bivisor.abi.xen import pv as abi
from bivisor.abi.xen import xen
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.pv import CallbackType
from bivisor.abi.xen.xen import ShutdownReason, VcpuOp
from bivisor.cpu.contract import Vcpu
from bivisor.cpu.registers import DescriptorTable, Regs, Segment
from bivisor.memory import PAGE
from bivisor.xen.errors import XenError
from bivisor.xen.hypercalls.vcpu import vcpu_op
from bivisor.xen.pv import private as p
from bivisor.xen.pv.cpu_ops import canonical
from bivisor.xen.pv.machine import CR0, CR4, PvMachine
from bivisor.xen.pv.pages import L4
from bivisor.xen.pv.stub import ENTRIES

if TYPE_CHECKING:
    from bivisor.xen.pv.call import PvCall

_FMASK: Final = int(Rflags.AC | Rflags.VM | Rflags.RF | Rflags.NT | Rflags.DF | Rflags.IF | Rflags.TF)
_ARITHMETIC: Final = 0x8D5
_TRAP: Final = abi.TRAP_INFO.size


def enter(vcpu: Vcpu, machine: PvMachine, regs: Regs) -> None:
    """The state of a processor that is about to run the kernel with `regs`, on the page tables of `machine`."""
    private = machine.private
    sregs = vcpu.get_sregs()
    none = Segment(unusable=1)
    sregs.cs = Segment.flat(p.KERNEL_CS, code=True, long=True)
    sregs.ss = sregs.ds = sregs.es = sregs.fs = sregs.gs = none
    sregs.tr = Segment(base=private.tss, limit=p.TSS_LIMIT, selector=p.TASK, type=11, s=0)
    sregs.gdt, sregs.idt = DescriptorTable(private.gdt, p.GDT_LIMIT), DescriptorTable(private.idt, PAGE - 1)
    sregs.cr0, sregs.cr3, sregs.cr4 = CR0, machine.root * PAGE, CR4
    sregs.efer = int(Efer.SCE | Efer.LME | Efer.LMA | Efer.NX)
    vcpu.set_sregs(sregs)
    vcpu.set_msrs(
        {
            Msr.IA32_STAR: p.KERNEL_CS << 32,
            Msr.IA32_LSTAR: private.stub + ENTRIES.syscall,
            Msr.IA32_CSTAR: private.stub + ENTRIES.syscall32,
            Msr.IA32_FMASK: _FMASK,
        }
    )
    regs.rflags = regs.rflags & _ARITHMETIC | Rflags.IF | Rflags.FIXED
    vcpu.set_regs(regs)


@dataclass(frozen=True, slots=True)
class Context:
    """`struct vcpu_guest_context` as far as a processor that begins in the kernel needs it."""

    regs: Regs
    traps: tuple[tuple[int, int, int, int], ...]
    gdt: tuple[int, ...]
    ldt: tuple[int, int]
    kernel_sp: int
    root: int
    user_root: int
    debug: tuple[int, ...]
    event: int
    failsafe: int
    syscall: int
    syscall_masks_events: bool
    fs_base: int
    gs_base: int
    user_gs_base: int

    @classmethod
    def parse(cls, raw: bytes) -> Context:
        """XenError(EINVAL) where Xen would not take it, or where it begins in a program."""
        flags, *values = abi.GUEST_CONTEXT.unpack(raw)
        r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, rip, rflags, rsp = values[:18]
        traps, ldt_base, ldt_entries, *rest = values[18:]
        gdt_frames, gdt_entries, rest = rest[:16], rest[16], rest[17:]
        _, kernel_sp, *rest = rest
        controls, debug, (event, failsafe, syscall, _, fs, gs, user_gs) = rest[:8], rest[8:16], rest[16:]
        if not flags & abi.VGCF_IN_KERNEL or gdt_entries > abi.FIRST_RESERVED_GDT_ENTRY:
            raise XenError(Errno.EINVAL)
        if ldt_base & PAGE - 1 or ldt_entries > abi.MAX_LDT_ENTRIES:
            raise XenError(Errno.EINVAL)
        for address in (rip, kernel_sp, event, failsafe, syscall, fs, gs, user_gs):
            canonical(address)
        return cls(
            regs=Regs(
                rax=rax,
                rbx=rbx,
                rcx=rcx,
                rdx=rdx,
                rsi=rsi,
                rdi=rdi,
                rsp=rsp,
                rbp=rbp,
                r8=r8,
                r9=r9,
                r10=r10,
                r11=r11,
                r12=r12,
                r13=r13,
                r14=r14,
                r15=r15,
                rip=rip,
                rflags=rflags,
            ),
            traps=tuple(abi.TRAP_INFO.iter_unpack(traps)),
            gdt=tuple(gdt_frames[: -(-gdt_entries // abi.GDT_PAGE_ENTRIES)]),
            ldt=(ldt_base, ldt_entries),
            kernel_sp=kernel_sp,
            root=controls[3] >> 12,
            user_root=controls[1] >> 12,
            debug=tuple(debug),
            event=event,
            failsafe=failsafe,
            syscall=syscall,
            syscall_masks_events=bool(flags & abi.VGCF_SYSCALL_DISABLES_EVENTS),
            fs_base=fs,
            gs_base=gs,
            user_gs_base=user_gs,
        )

    def load(self, machine: PvMachine) -> None:
        """Have the processor begin with it. XenError(EINVAL) for page tables or descriptors that are none."""
        pages, private = machine.pages, machine.private
        pages.get(self.root, L4)
        machine.root = self.root
        try:
            if self.user_root:
                pages.get(self.user_root, L4)
                machine.user_root = self.user_root
            machine.set_gdt(self.gdt)
            machine.set_ldt(*self.ldt)
        except XenError:
            if machine.user_root:
                pages.put(machine.user_root)
            pages.put(self.root)
            machine.root = machine.user_root = 0
            raise
        for vector, (_, flags, _, address) in enumerate(self.traps):
            private.set_trap(vector, address, flags)
        private.set_stack(self.kernel_sp)
        private.set_callback(CallbackType.EVENT, self.event, masks_events=True)
        private.set_callback(CallbackType.SYSCALL, self.syscall, masks_events=self.syscall_masks_events)
        machine.debug[:4] = self.debug[:4]
        machine.frames.processors.enter(machine.index, self.regs)
        machine.cpu.set_base("fs", self.fs_base)
        machine.cpu.set_base("gs", self.gs_base)
        machine.cpu.set_base("kernel_gs", self.user_gs_base)


def _initialise(call: PvCall, index: int, arg: int) -> int:
    raw = call.read(arg, abi.GUEST_CONTEXT.size)
    call.machine.frames.processors.initialise(index, Context.parse(raw))
    return 0


def _up(call: PvCall, index: int, _: int) -> int:
    processors = call.machine.frames.processors
    if index not in processors.initialised:
        raise XenError(Errno.EINVAL)
    processors.up(index)
    return 0


def _down(call: PvCall, index: int, _: int) -> int:
    """The last to go down turns the domain off, as in Xen."""
    if call.domain.online <= {index}:
        call.hypervisor.shutdown(call.domain, ShutdownReason.POWEROFF)
    else:
        call.machine.frames.processors.down(index)
    return 0


def _register_info(call: PvCall, index: int, arg: int) -> int:
    mfn, offset = xen.REGISTER_VCPU_INFO.unpack(call.read(arg, xen.REGISTER_VCPU_INFO.size))
    call.domain.hold(mfn)  # the hypervisor writes there before `set_info` has it writable for good
    try:
        result = vcpu_op(call, VcpuOp.REGISTER_VCPU_INFO, index, arg)
        call.machine.frames.machines[index].set_info(mfn, offset)
    finally:
        call.domain.let_go(mfn)
    return result


_OPS: Final[dict[int, Callable[[PvCall, int, int], int]]] = {
    VcpuOp.INITIALISE: _initialise,
    VcpuOp.UP: _up,
    VcpuOp.DOWN: _down,
    VcpuOp.REGISTER_VCPU_INFO: _register_info,
}


def pv_vcpu_op(call: PvCall, cmd: int, index: int, arg: int, *_: int) -> int:
    """HYPERVISOR_vcpu_op(cmd, vcpuid, arg) of a PV domain."""
    if index >= len(call.domain.vcpus):  # which a kernel asks thousands of times, until it has counted them
        return -Errno.ENOENT
    op = _OPS.get(cmd)
    return vcpu_op(call, cmd, index, arg) if op is None else op(call, index, arg)


def processors_of(call: PvCall, mask: int) -> list[PvMachine]:
    """Those whose bits are set at `mask`: as many as the domain has. XenError(EINVAL) where the guest has no such."""
    machines = call.machine.frames.machines
    try:
        bits = int.from_bytes(call.read(mask, -(-len(machines) // 8)), "little")
    except XenError:
        raise XenError(Errno.EINVAL) from None
    return [machine for machine in machines if bits >> machine.index & 1]
