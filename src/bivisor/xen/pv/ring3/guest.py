"""Runs a PV domain on the engine `kvm`: kernel and programs at CPL 3, and the hypervisor's stub at CPL 0."""

from __future__ import annotations

import threading
from dataclasses import astuple, replace
from typing import Final

from bivisor.abi.x86 import FEATURES, Cr4, Efer, Msr, Rflags
from bivisor.cpu.contract import Vcpu
from bivisor.cpu.exits import Interrupted
from bivisor.cpu.kvm.hostcpuid import host_cpuid
from bivisor.cpu.registers import CpuidEntry, DescriptorTable, Regs, Segment, Sregs
from bivisor.errors import UsageError
from bivisor.memory import PAGE
from bivisor.xen.domain import Domain
from bivisor.xen.pv.guest import PvGuest
from bivisor.xen.pv.machine import CR0, CR4, PvMachine
from bivisor.xen.pv.ring3 import hidden as h
from bivisor.xen.pv.ring3.block import Block
from bivisor.xen.pv.ring3.machine import Ring3Frames, Ring3Machine
from bivisor.xen.pv.ring3.thread import CALL, TRAP, Ring3Thread
from bivisor.xen.vcpu_thread import VcpuThread

_FMASK: Final = int(Rflags.AC | Rflags.VM | Rflags.RF | Rflags.NT | Rflags.DF | Rflags.IF | Rflags.TF)
_ARITHMETIC: Final = 0x8D5
_XSTATE: Final = 0xD
_XSTATE_PARTS: Final = 9  # up to the last of AVX-512
_XSAVEOPT: Final = 1
_AVX: Final = 1 << 28
_EXTENDED: Final = 7
_AVX512: Final = 1 << 5 | 1 << 16  # AVX2, AVX512F
_STAR: Final = 0xE023 << 48 | h.CODE_SELECTOR << 32
_KERNEL_CS, _KERNEL_SS = 0xE033, 0xE02B


def _xstate() -> list[CpuidEntry]:
    """CPUID leaf 0xD of the host: the parts of the extended state, as XCR0 has them."""
    found = []
    for subleaf in range(_XSTATE_PARTS):
        leaf = host_cpuid(_XSTATE, subleaf)
        if leaf is not None and (subleaf < 2 or leaf[0]):
            found.append(CpuidEntry(_XSTATE, subleaf, *leaf))
    return found


class Ring3Guest(PvGuest):
    """See `PvGuest`."""

    frames: Ring3Frames
    frames_type = Ring3Frames
    machine_type = Ring3Machine
    private: h.Hidden  # type: ignore[assignment]
    native: bool | None = None
    """Whether SYSCALL leads to CPL 0, as the architecture has it; None before a processor was asked."""

    def _make_private(self, frames: int, vcpus: int) -> h.Hidden:  # type: ignore[override]
        hidden = h.Hidden(frames, vcpus)
        hidden.cpus = [Block(hidden, index) for index in range(vcpus)]
        return hidden

    def _prepare(self) -> None:
        self.machine.map(self.private.slot)

    def _make_thread(self, domain: Domain, vcpu: Vcpu, machine: PvMachine) -> VcpuThread:
        assert isinstance(machine, Ring3Machine)
        return Ring3Thread(self, domain, vcpu, machine)

    def _cpuid(self, domain: Domain, vcpu: Vcpu) -> tuple[CpuidEntry, ...]:
        """With XSAVE, for all that the host has: a KVM that runs CPL 3 alone shows programs the host's own CPUID and
        XCR0, so that they use registers which a kernel that knows of SSE alone would not save. XSAVE itself needs no
        privilege; XSAVES does, and XSAVEC is left out with it."""
        bit = FEATURES["xsave"]
        both = 1 << bit.bit | 1 << FEATURES["osxsave"].bit  # a PV kernel looks for the second: Xen turns it on
        found = []
        entries = [entry for entry in super()._cpuid(domain, vcpu) if entry.leaf != _XSTATE]
        for entry in (*entries, *_xstate()):
            if entry.leaf == bit.leaf:
                host = host_cpuid(bit.leaf) or (0, 0, 0, 0)
                entry = replace(entry, ecx=entry.ecx | both | host[2] & _AVX)
            elif entry.leaf == _EXTENDED and not entry.subleaf:
                host = host_cpuid(_EXTENDED) or (0, 0, 0, 0)
                entry = replace(entry, ebx=entry.ebx | host[1] & _AVX512)
            elif entry.leaf == _XSTATE and entry.subleaf == 1:
                entry = replace(entry, eax=entry.eax & _XSAVEOPT)
            found.append(entry)
        return tuple(found)

    # ---------------------------------------------------------------- start

    def enter(self, index: int, regs: Regs) -> None:
        """See `Processors.enter`."""
        vcpu, machine = self.vcpus[index], self.frames.machines[index]
        block = self.private.cpus[index]
        assert isinstance(block, Block) and isinstance(machine, Ring3Machine)
        block.set_root(machine.root << 12)
        block.set_user_root(machine.user_root << 12)
        sregs = self._sregs(vcpu, block, machine.root)
        if self.native is None:
            vcpu.set_sregs(sregs)
            self.native = self._syscall_leads_to_cpl0(vcpu)
        vcpu.set_sregs(sregs)
        machine.is_shadowed = not self.native
        if self.native:
            self.private.use_near()
        lstar = block.linear + h.NATIVE * PAGE if self.native else h.GATE
        vcpu.set_msrs({Msr.IA32_STAR: _STAR, Msr.IA32_LSTAR: lstar, Msr.IA32_FMASK: _FMASK if self.native else 0})
        regs.rflags = regs.rflags & _ARITHMETIC | Rflags.IF | Rflags.FIXED
        vcpu.set_regs(regs)
        vcpu.live().load(astuple(regs))  # type: ignore[attr-defined]

    def _sregs(self, vcpu: Vcpu, block: Block, root: int) -> Sregs:
        sregs = vcpu.get_sregs()
        sregs.cs = Segment.flat(_KERNEL_CS, code=True, long=True, dpl=3)
        sregs.ss = Segment.flat(_KERNEL_SS, code=False, dpl=3)
        sregs.ds = sregs.es = sregs.fs = sregs.gs = Segment(unusable=1)
        sregs.ldt = Segment(limit=0, unusable=1)  # an emulated processor looks at the limit alone
        sregs.tr = Segment(base=block.linear + h.TSS * PAGE, limit=h.TSS_LIMIT, selector=h.TASK, type=11, s=0)
        sregs.gdt = DescriptorTable(block.linear, h.GDT_LIMIT)
        sregs.idt = DescriptorTable(h.IDT, PAGE - 1)
        sregs.cr0, sregs.cr3, sregs.cr4 = CR0, root * PAGE, CR4 | Cr4.OSXSAVE
        sregs.efer = int(Efer.SCE | Efer.LME | Efer.LMA | Efer.NX)
        return sregs

    def _syscall_leads_to_cpl0(self, vcpu: Vcpu) -> bool:
        """Some KVMs leave SYSCALL at CPL 3: have the processor execute one that leads to an OUT, which traps there."""
        vcpu.set_msrs({Msr.IA32_STAR: _STAR, Msr.IA32_LSTAR: h.PROBED, Msr.IA32_FMASK: 0})
        vcpu.set_regs(Regs(rip=h.PROBE, rflags=Rflags.FIXED))
        exit_ = vcpu.run()
        if exit_ is not CALL and exit_ is not TRAP:
            raise UsageError(f"a PV domain does not run on this engine: {exit_}")
        vcpu.kick()  # the write to the port ends with the next entry
        if not isinstance(vcpu.run(), Interrupted):
            raise UsageError("a PV domain does not run on this engine: it cannot be stopped")
        return exit_ is CALL

    # ---------------------------------------------------------------- while it runs

    def forget_page_tables(self) -> None:
        """Have the engine forget all that it knows of page tables in the domain's memory."""
        for slot in self.memory.slots:
            self.machine.unmap(slot)
            self.machine.map(slot)

    def may_enter(self, thread: VcpuThread) -> bool:
        """See `PvGuest.may_enter`; a processor that is in the stub comes out of it before it is held."""
        assert isinstance(thread, Ring3Thread)
        may = (thread.debug.has_to_come_out and self._may_come_out(thread)) or super().may_enter(thread)
        if may:
            thread.before_entry()
        return may

    def _may_come_out(self, thread: VcpuThread) -> bool:
        with self.xen.lock:
            thread.inside = self.domain.runnable and not self.stopping and self.error is None
            return thread.inside

    @property
    def debugged(self) -> tuple[Vcpu, ...]:
        """See `PvhGuest.debugged`."""
        return tuple(thread.debug for thread in self.threads)  # type: ignore[attr-defined]

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        """See `Upcall.set_timer`. A processor's own thread has an alarm for it, but while it sleeps."""
        thread = self.threads[vcpu]
        assert isinstance(thread, Ring3Thread)
        if not thread.set_timer(deadline):
            super().set_timer(vcpu, deadline)

    def set_timer_aside(self, vcpu: int, deadline: int | None) -> None:
        """As `set_timer`, by a thread that is none of the processors'."""
        super().set_timer(vcpu, deadline)

    def event(self, vcpu: int) -> None:
        """See `Upcall.event`. The processor's own thread looks for itself before it enters the guest, or waits."""
        thread = self.threads[vcpu]
        assert isinstance(thread, Ring3Thread)
        if self._probe is not None or threading.get_ident() != thread.ident:
            super().event(vcpu)

    def _interrupt(self, vcpu: int) -> None:
        thread = self.threads[vcpu]
        assert isinstance(thread, Ring3Thread)
        thread.event()

    def close(self) -> None:
        """See `PvGuest.close`."""
        self.stop()
        if hasattr(self, "frames"):
            for machine in self.frames.machines:
                assert isinstance(machine, Ring3Machine)
                machine.let_go()
        for block in self.private.cpus:
            block.close()
        super().close()
