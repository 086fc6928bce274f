"""Runs a PV domain on the engine `soft`: memory, processors, and the hypervisor's own part of the machine."""

from __future__ import annotations

from collections.abc import Callable

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import Hypercall
from bivisor.boot.xenframes import MachineFrames
from bivisor.cpu.contract import Engine, Vcpu
from bivisor.cpu.registers import CpuidEntry, Regs
from bivisor.errors import UsageError
from bivisor.memory import PAGE, GuestMemory
from bivisor.xen.domain import Domain
from bivisor.xen.errors import XenError
from bivisor.xen.guest import PvhGuest
from bivisor.xen.hypervisor import Xen
from bivisor.xen.pv import private as p
from bivisor.xen.pv.cpuid import pv_cpuid
from bivisor.xen.pv.frames import Frames
from bivisor.xen.pv.machine import PvMachine
from bivisor.xen.pv.thread import PvThread
from bivisor.xen.pv.vcpus import Context, enter
from bivisor.xen.vcpu_thread import VcpuThread

_SEGMENT_BASES = (0xC000_0100, 0xC000_0104)
ADDRESS_BITS = 40
_LARGEST = p.GPA - (1 << 30)
_ALIGN = 512
_ENTRY_SIZE = 32
_ENTRY = b"\x51\x41\x53\xb8%s\x0f\x05\x41\x5b\x59\xc3"  # push rcx, r11; mov eax, number; syscall; pop r11, rcx; ret
_IRET = b"\x51\x41\x53\x50\xb8\x17\0\0\0\x0f\x05"  # push rcx, r11, rax; mov eax, 23; syscall


class PvGuest(PvhGuest):
    """See `PvhGuest`. UsageError where a domain is larger than it can be."""

    frames: Frames
    frames_type: type[Frames] = Frames
    machine_type: type[PvMachine] = PvMachine
    machine_view: PvMachine
    """The first processor."""

    def __init__(
        self,
        xen: Xen,
        engine: Engine,
        memory: GuestMemory,
        punch_hole: Callable[[int, int, int], None],
        vcpus: int = 1,
        machine_frames: MachineFrames | None = None,
    ) -> None:
        if memory.size > _LARGEST:
            raise UsageError(f"{memory.size >> 20} MiB: a PV domain has less than {_LARGEST >> 30} GiB here")
        frames = memory.size // PAGE
        self._machine_frames = machine_frames or MachineFrames.of(memory.size, 0)
        self.private = self._make_private(frames, vcpus)
        self._machine_frames.fill_m2p(self.private.m2p)
        self.initialised = {0}
        self.shared_mfn = -(-frames // _ALIGN) * _ALIGN
        """The first of the hypervisor's frames that the guest may map: its shared_info; grant frames follow."""
        try:
            super().__init__(xen, engine, memory, punch_hole, vcpus)
        except BaseException:
            self.private.close()
            raise

    def _make_private(self, frames: int, vcpus: int) -> p.Private:
        return p.Private(frames, vcpus)

    @staticmethod
    def _most_vcpus(engine: Engine) -> int:
        return getattr(engine, "max_supervised_vcpus", engine.max_vcpus)

    def attach(self, domain: Domain) -> None:
        """See `PvhGuest.attach`."""
        domain.absent.update(self._machine_frames.hole)
        super().attach(domain)
        turns = getattr(self.machine, "turns", None)
        if turns is None:
            return
        lock = self.xen.lock

        def defer(work: Callable[[], None]) -> bool:
            def locked() -> None:
                with lock:
                    work()

            return bool(turns.defer(locked))

        def quiesce() -> None:
            for thread in self.threads:
                thread.pass_by()

        domain.events.defer = defer
        domain.quiesce = quiesce

    def _prepare(self) -> None:
        self.machine.map(self.private.slot)
        self.machine.filter_msrs([(0, _SEGMENT_BASES[0]), (_SEGMENT_BASES[1], (1 << 32) - _SEGMENT_BASES[1])])

    def _processor(self, domain: Domain, vcpu: Vcpu) -> VcpuThread:
        cpuid = self._cpuid(domain, vcpu)
        vcpu.set_cpuid(cpuid)
        if not vcpu.index:
            page = domain.frame_for(self.shared_mfn)
            domain.move_shared_info(page, self.shared_mfn)
            self.frames = self.frames_type(domain, self.private, self.shared_mfn, self)
            self.frames.devices = self._machine_frames.devices
        domain.vcpus[vcpu.index].info[abi.VCPU_UPCALL_MASK] = 1
        machine = self.machine_type(self.frames, vcpu.index, cpuid)
        if not vcpu.index:
            self.machine_view = machine
        thread = self._make_thread(domain, vcpu, machine)
        machine.set_info(self.shared_mfn, vcpu.index * abi.SHARED_VCPU_INFO_SIZE)
        return thread

    def _cpuid(self, domain: Domain, vcpu: Vcpu) -> tuple[CpuidEntry, ...]:
        return pv_cpuid(self._engine, vcpu, len(self.vcpus), domain.domid, ADDRESS_BITS)

    def _make_thread(self, domain: Domain, vcpu: Vcpu, machine: PvMachine) -> VcpuThread:
        return PvThread(self, domain, vcpu, machine)

    def begin(self, rip: int, rsi: int, rsp: int, root: int) -> None:
        """The state in which the kernel is entered, on the page tables at frame `root`. XenError(EINVAL) if they are
        not what a guest may have."""
        self.machine_view.start(root)
        self.enter(0, Regs(rip=rip, rsi=rsi, rsp=rsp))

    # ---------------------------------------------------------------- Processors

    def enter(self, index: int, regs: Regs) -> None:
        """See `Processors.enter`."""
        enter(self.vcpus[index], self.frames.machines[index], regs)

    def initialise(self, index: int, context: Context) -> None:
        """See `Processors.initialise`."""
        if index in self.initialised:
            raise XenError(Errno.EEXIST)
        context.load(self.frames.machines[index])
        self.initialised.add(index)

    def up(self, index: int) -> None:
        """See `Processors.up`."""
        self.domain.online.add(index)
        self.threads[index].start()
        self.threads[index].wake()

    def down(self, index: int) -> None:
        """See `Processors.down`."""
        self.domain.online.discard(index)
        self.threads[index].kick()

    def may_begin(self, thread: VcpuThread) -> bool:
        """See `PvhGuest.may_begin`."""
        return thread.index in self.domain.online

    def may_enter(self, thread: VcpuThread) -> bool:
        """See `PvhGuest.may_enter`; a processor that is down waits until it is up."""
        while super().may_enter(thread):
            if thread.index in self.domain.online:
                return True
            thread.wait_while(lambda: thread.index not in self.domain.online)
        return False

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
        total: dict[int, int] = {}
        for thread in self.threads:
            for number, count in thread.hypercalls().items():  # type: ignore[attr-defined]
                total[number] = total.get(number, 0) + count
        return total

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
