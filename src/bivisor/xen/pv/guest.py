"""Runs a PV domain on the engine `soft`: memory, one processor, and the hypervisor's own part of the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bivisor.abi.x86 import Efer, Msr, Rflags
from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.xen import Hypercall
from bivisor.cpu.contract import Engine, Vcpu
from bivisor.cpu.registers import DescriptorTable, Regs, Segment
from bivisor.errors import UsageError
from bivisor.memory import HOLE_START, PAGE, GuestMemory
from bivisor.xen.domain import Domain
from bivisor.xen.guest import PvhGuest
from bivisor.xen.hypervisor import Xen
from bivisor.xen.pv import private as p
from bivisor.xen.pv.cpuid import pv_cpuid
from bivisor.xen.pv.frames import Frames
from bivisor.xen.pv.machine import CR0, CR4, PvMachine
from bivisor.xen.pv.stub import ENTRIES
from bivisor.xen.pv.thread import PvThread
from bivisor.xen.vcpu_thread import VcpuThread

_FMASK: Final = int(Rflags.AC | Rflags.VM | Rflags.RF | Rflags.NT | Rflags.DF | Rflags.IF | Rflags.TF)
_SEGMENT_BASES = (0xC000_0100, 0xC000_0104)
_ADDRESS_BITS = 40
_ALIGN = 512
_ENTRY_SIZE = 32
_ENTRY = b"\x51\x41\x53\xb8%s\x0f\x05\x41\x5b\x59\xc3"  # push rcx, r11; mov eax, number; syscall; pop r11, rcx; ret
_IRET = b"\x51\x41\x53\x50\xb8\x17\0\0\0\x0f\x05"  # push rcx, r11, rax; mov eax, 23; syscall


class PvGuest(PvhGuest):
    """See `PvhGuest`. UsageError where the engine has no supervised kernels, or a domain is larger than it can be."""

    frames: Frames
    machine_view: PvMachine
    """The first processor."""

    def __init__(
        self,
        xen: Xen,
        engine: Engine,
        memory: GuestMemory,
        punch_hole: Callable[[int, int, int], None],
        vcpus: int = 1,
    ) -> None:
        if memory.size > HOLE_START:
            raise UsageError(f"{memory.size >> 20} MiB: a PV domain has at most {HOLE_START >> 20} MiB here")
        frames = memory.size // PAGE
        self.private = p.Private(frames, vcpus)
        self.shared_mfn = -(-frames // _ALIGN) * _ALIGN
        """The first of the hypervisor's frames that the guest may map: its shared_info; grant frames follow."""
        try:
            super().__init__(xen, engine, memory, punch_hole, vcpus)
        except BaseException:
            self.private.close()
            raise

    def _prepare(self) -> None:
        self.machine.map(self.private.slot)
        self.machine.filter_msrs([(0, _SEGMENT_BASES[0]), (_SEGMENT_BASES[1], (1 << 32) - _SEGMENT_BASES[1])])

    def _processor(self, domain: Domain, vcpu: Vcpu) -> VcpuThread:
        if not hasattr(vcpu, "supervise"):
            raise UsageError(f"a PV domain runs on the engine soft, and not on {self._engine.name}")
        cpuid = pv_cpuid(self._engine, vcpu, domain.domid, _ADDRESS_BITS)
        vcpu.set_cpuid(cpuid)
        if not vcpu.index:
            page = domain.frame_for(self.shared_mfn)
            domain.move_shared_info(page, self.shared_mfn)
            self.frames = Frames(domain, self.private, self.shared_mfn)
        domain.vcpus[vcpu.index].info[abi.VCPU_UPCALL_MASK] = 1
        machine = PvMachine(self.frames, vcpu.index, cpuid)
        if not vcpu.index:
            self.machine_view = machine
        thread = PvThread(self, domain, vcpu, machine)
        machine.set_info(self.shared_mfn, vcpu.index * abi.SHARED_VCPU_INFO_SIZE)
        return thread

    def begin(self, rip: int, rsi: int, rsp: int, root: int) -> None:
        """The state in which the kernel is entered, on the page tables at frame `root`. XenError(EINVAL) if they are
        not what a guest may have."""
        vcpu, private = self.vcpu, self.machine_view.private
        self.machine_view.start(root)
        sregs = vcpu.get_sregs()
        none = Segment(unusable=1)
        sregs.cs = Segment.flat(p.KERNEL_CS, code=True, long=True)
        sregs.ss = sregs.ds = sregs.es = sregs.fs = sregs.gs = none
        sregs.tr = Segment(base=private.tss, limit=p.TSS_LIMIT, selector=p.TASK, type=11, s=0)
        sregs.gdt, sregs.idt = DescriptorTable(private.gdt, p.GDT_LIMIT), DescriptorTable(private.idt, PAGE - 1)
        sregs.cr0, sregs.cr3, sregs.cr4 = CR0, root * PAGE, CR4
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
        vcpu.set_regs(Regs(rip=rip, rsi=rsi, rsp=rsp, rflags=Rflags.IF | Rflags.FIXED))

    def fill_hypercall_page(self, gpa: int | None) -> None:
        """Write the page of a kernel that has one: 32 bytes for each number; see xen-x86_64.h for the frame of iret."""
        if gpa is None:
            return
        entries = [_ENTRY % number.to_bytes(4, "little") for number in range(PAGE // _ENTRY_SIZE)]
        entries[Hypercall.IRET] = _IRET
        self.memory.write(gpa, b"".join(entry.ljust(_ENTRY_SIZE, b"\xcc") for entry in entries))

    @property
    def hypercalls(self) -> dict[int, int]:
        """How often the guest made each hypercall, but for iret, which it makes without the hypervisor."""
        thread = self.threads[0]
        assert isinstance(thread, PvThread)
        return thread.hypercalls()

    def _interrupt(self, vcpu: int) -> None:
        thread = self.threads[vcpu]
        assert isinstance(thread, PvThread)
        thread.vcpu.post(thread.look_for_events)  # type: ignore[attr-defined]

    def close(self) -> None:
        """See `PvhGuest.close`."""
        self.stop()
        if hasattr(self, "frames"):
            self.frames.close()
        super().close()
        self.private.close()
