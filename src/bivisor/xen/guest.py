"""Runs a domain's code on an engine: a PVH guest, whose kernel is entered at its PVH note and asks Xen for the rest.

The processor exits for hypercalls; events interrupt it through its local APIC at the vector that the guest registered
(HVMOP_set_evtchn_upcall_vector, which CPUID offers). Ports and addresses that are not memory answer all ones.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.cpu.contract import Engine, Machine, Vcpu
from bivisor.cpu.exits import Direction, Exit, Hlt, Hypercall, Interrupted, Mmio, PortIo, RdMsr, WrMsr
from bivisor.cpu.registers import CpuidEntry
from bivisor.host.loop import Loop, Timer
from bivisor.memory import PAGE, GuestMemory, MemoryRegion, Slot
from bivisor.xen.call import Call
from bivisor.xen.domain import Domain, State
from bivisor.xen.hypervisor import Xen
from bivisor.xen.table import hypercall

_MASK = (1 << 64) - 1
_MSI = 0xFEE0_0000
_NUDGE_S = 0.005
_HYPERCALL_PAGE = b"".join(
    (b"\xb8" + nr.to_bytes(4, "little") + b"\x0f\x01\xd9\xc3").ljust(32, b"\xcc") for nr in range(PAGE // 32)
)  # mov eax, nr; vmmcall; ret
_SIGNATURE = struct.unpack("<3I", b"XenVMMXenVMM")
_HVM_CPUID_VCPU_ID, _HVM_CPUID_UPCALL_VECTOR, _HVM_CPUID_DOMID = 1 << 3, 1 << 6, 1 << 4
_KVM_LEAVES = range(0x4000_0000, 0x4000_0100)


class PvhGuest:
    """The processors of one domain. It is the domain's `Upcall`, so it is made before it: see `attach`.

    `punch_hole(fd, offset, length)` gives the memory of pages that the guest released back to the host.
    """

    def __init__(
        self, xen: Xen, engine: Engine, memory: GuestMemory, loop: Loop, punch_hole: Callable[[int, int, int], None]
    ) -> None:
        self._xen = xen
        self._punch_hole = punch_hole
        self._engine = engine
        self._loop = loop
        self.memory = memory
        self.machine: Machine = engine.create_machine()
        self._regions: list[MemoryRegion] = []
        self._timers: dict[int, Timer] = {}
        self._timer_wish: dict[int, int | None] = {}
        self._wish: tuple[tuple[int, ...] | None, int | None] | None = None
        self._woken = threading.Event()
        self._heard = self._nudging = False
        self._deferred: deque[Callable[[], None]] = deque()
        self._runs_code = False
        self._stopping = False
        self._paused = False
        self._ended = True
        self._gate = threading.Condition()
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.on_stop: Callable[[], None] = lambda: None
        for slot in memory.slots:
            self.machine.map(slot)
        self.machine.create_irqchip()
        memory.listen(self.machine.invalidate)
        if self.machine.irqchip == "user":
            self.machine.connect_irqchip(_Callback(self))
        self.vcpu: Vcpu = self.machine.create_vcpu(0)

    def attach(self, domain: Domain) -> None:
        """This is the domain whose code it runs."""
        self.domain = domain
        domain.on_run = self._may_run
        self._call = Call(self._xen, domain, 0, self.vcpu)
        self.vcpu.set_cpuid(self._cpuid())
        if hasattr(self.machine, "hypercall_abi"):
            self.machine.hypercall_abi = "xen"
        self._table: dict[type[Exit], Callable[[Exit], bool]] = {
            Hypercall: self._hypercall,
            PortIo: self._port,
            Mmio: self._mmio,
            RdMsr: self._rdmsr,
            WrMsr: self._wrmsr,
        }
        if hasattr(self.vcpu, "post"):  # TCG as a library carries out a guest's locked instructions in several steps
            domain.events.defer = self._defer
        domain.write_time(0)
        self._write_wall_clock()

    def _cpuid(self) -> tuple[CpuidEntry, ...]:
        khz = self._engine.tsc_khz()
        own = [entry for entry in self.vcpu.get_cpuid() if entry.leaf not in _KVM_LEAVES]
        hvm = _HVM_CPUID_VCPU_ID | _HVM_CPUID_UPCALL_VECTOR | _HVM_CPUID_DOMID
        base = abi.CPUID_BASE
        multiplier, shift = _tsc_scale(khz)
        return (
            *own,
            CpuidEntry(base, None, base + 4, *_SIGNATURE),
            CpuidEntry(base + 1, None, abi.XEN_VERSION, 0, 0, 0),
            CpuidEntry(base + 2, None, 1, abi.HYPERCALL_PAGE_MSR, 0, 0),
            CpuidEntry(base + 3, 0, 0, 0, khz, 0),
            CpuidEntry(base + 3, 1, 0, 0, multiplier, shift & 0xFFFF_FFFF),
            CpuidEntry(base + 3, 2, khz, 0, 0, 0),
            CpuidEntry(base + 4, None, hvm, 0, self.domain.domid, 0),
        )

    def _write_wall_clock(self) -> None:
        boot = self._xen.wall() - self._xen.system_time()
        seconds, nanoseconds = divmod(boot, 1_000_000_000)
        info = self.domain.shared_info
        clock = abi.WALL_CLOCK.pack(2, seconds & 0xFFFF_FFFF, nanoseconds)
        info[abi.SHARED_WC_VERSION : abi.SHARED_WC_VERSION + len(clock)] = clock
        info[abi.SHARED_WC_SEC_HI : abi.SHARED_WC_SEC_HI + 4] = (seconds >> 32).to_bytes(4, "little")

    # ---------------------------------------------------------------- domain.Upcall

    def event(self, vcpu: int) -> None:
        """See `Upcall.event`."""
        self._signal(vcpu)
        self._woken.set()
        if not self._heard and not self._nudging:
            self._nudging = True
            self._loop.call_soon(self._nudge)

    def _defer(self, work: Callable[[], None]) -> bool:
        """Do `work` between two blocks of guest code, if guest code runs now; False if it can be done at once."""
        if not self._runs_code or threading.current_thread() is self._thread:
            return False
        self._deferred.append(work)
        self.vcpu.post(self._catch_up)  # type: ignore[attr-defined]
        return True

    def _catch_up(self) -> None:
        with self._xen.lock:
            while self._deferred:
                self._deferred.popleft()()

    def _nudge(self) -> None:
        """Until the guest has taken its first upcall: its local APIC may be off yet, and then drops interrupts, where
        Xen's would have kept this one."""
        if self._stopping or self.domain.vcpus[0].info[abi.VCPU_UPCALL_PENDING] == 0:
            self._heard = not self._stopping
            return
        self._signal(0)
        self._loop.call_at(self._loop.now() + _NUDGE_S, self._nudge)

    def _signal(self, vcpu: int) -> None:
        info = self.domain.vcpus[vcpu]
        if info.upcall_vector:
            self.machine.signal_msi(_MSI | vcpu << 12, info.upcall_vector)
        elif info.callback_vector and self.machine.irqchip == "user":
            self.machine.set_intr(True)

    def wake(self, vcpu: int) -> None:
        """See `Upcall.wake`."""
        del vcpu
        self._woken.set()

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        """See `Upcall.block`."""
        del vcpu
        self._wish = (ports, deadline)

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        """See `Upcall.set_timer`. Done once the hypercall has let go of Xen's lock: the loop has one of its own."""
        self._timer_wish[vcpu] = deadline

    def _set_timers(self) -> None:
        while self._timer_wish:
            vcpu, deadline = self._timer_wish.popitem()
            old = self._timers.pop(vcpu, None)
            if old is not None:
                old.cancel()
            if deadline is not None:
                self._start_timer(vcpu, deadline)

    def _start_timer(self, vcpu: int, deadline: int) -> None:
        def ring() -> None:
            if self._timers.get(vcpu) is timer:
                del self._timers[vcpu]
                with self._xen.lock:
                    self.domain.events.raise_virq(abi.Virq.TIMER, vcpu)

        wait = max(0, deadline - self._xen.system_time()) / 1e9
        with self._loop.lock:
            timer = self._timers[vcpu] = self._loop.call_at(self._loop.now() + wait, ring)

    def add_page(self, gfn: int) -> memoryview:
        """See `Upcall.add_page`."""
        region = MemoryRegion(PAGE, "bivisor-xen-page")
        self._regions.append(region)
        slot = Slot(gfn << abi.PAGE_SHIFT, PAGE, region)
        self.memory.add(slot)
        self.machine.map(slot)
        return self.memory.view(slot.gpa, PAGE)

    def populated(self, gfn: int, count: int) -> None:
        """See `Upcall.populated`: the memory comes back with the first touch."""

    def released(self, gfn: int, count: int) -> None:
        """See `Upcall.released`."""
        for slot in self.memory.slots:
            start = gfn * PAGE - slot.gpa
            if 0 <= start < slot.size:
                self._punch_hole(slot.region.fd, slot.offset + start, count * PAGE)

    def time_info(self) -> bytes:
        """See `Upcall.time_info`."""
        khz = self._engine.tsc_khz()
        multiplier, shift = _tsc_scale(khz)
        tsc = self.vcpu.get_msrs([0x10])[0x10]
        return abi.VCPU_TIME_INFO.pack(2, 0, tsc, self._xen.system_time(), multiplier, shift, 1)

    # ---------------------------------------------------------------- exits

    def _handle(self, exit_: Exit) -> bool:
        handler = self._table.get(type(exit_))
        return handler is not None and handler(exit_)

    def _hypercall(self, exit_: Exit) -> bool:
        assert isinstance(exit_, Hypercall)
        with self._xen.lock:
            result = hypercall(self._call, exit_.nr, exit_.args) if exit_.cpl == 0 else -Errno.EPERM
        if self._timer_wish:
            self._set_timers()
        exit_.result[:] = (result & _MASK).to_bytes(8, "little")
        return self._wish is None and self.domain.runnable

    def _port(self, exit_: Exit) -> bool:
        assert isinstance(exit_, PortIo)
        if exit_.direction is Direction.IN:
            exit_.data[:] = b"\xff" * len(exit_.data)
        return True

    def _mmio(self, exit_: Exit) -> bool:
        assert isinstance(exit_, Mmio)
        if not exit_.is_write:
            exit_.data[: exit_.length] = b"\xff" * exit_.length
        return True

    def _rdmsr(self, exit_: Exit) -> bool:
        assert isinstance(exit_, RdMsr)
        exit_.error[0] = 1
        return True

    def _wrmsr(self, exit_: Exit) -> bool:
        assert isinstance(exit_, WrMsr)
        if exit_.index != abi.HYPERCALL_PAGE_MSR or exit_.value & PAGE - 1 or not self._fill(exit_.value):
            exit_.error[0] = 1
        return True

    def _fill(self, gpa: int) -> bool:
        if not self.memory.contains(gpa, PAGE):
            return False
        self.memory.write(gpa, _HYPERCALL_PAGE)
        return True

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Unpause it for the first time."""
        with self._xen.lock:
            self.domain.unpause()

    def _may_run(self, may: bool) -> None:
        """See `Domain.on_run`. A thread that found the domain shut down has ended, and another begins."""
        if not may:
            self.vcpu.kick()
        elif self._ended:
            self._ended = False
            name = f"bivisor-dom{self.domain.domid}-vcpu0"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
        with self._gate:
            self._gate.notify_all()

    def pause(self) -> None:
        """Pause the domain, once: when it returns, no guest code runs. A second call does nothing. From any thread but
        its processors', and not with a lock held that a hypercall takes."""
        with self._xen.lock:
            if not self._paused:
                self._paused = True
                self.domain.pause()
        self.wait_until_still()

    def wait_until_still(self) -> None:
        """After the domain was paused: wait until no guest code runs. As for `pause`."""
        with self._gate:
            self._gate.wait_for(lambda: not self._runs_code)

    def resume(self) -> None:
        """Undo `pause()`. Nothing to do where it does not hold the domain."""
        with self._xen.lock:
            if self._paused:
                self._paused = False
                self.domain.unpause()

    def _enter(self) -> bool:
        """Wait while the domain is paused; whether guest code may run now."""
        while True:
            with self._gate:
                self._gate.wait_for(lambda: self.domain.state is not State.PAUSED or self._stopping)
            with self._xen.lock:
                if self.domain.runnable and not self._stopping:
                    self._runs_code = True
                    return True
                if self.domain.state is not State.PAUSED or self._stopping:
                    self._ended = True
                    return False

    def _leave(self) -> None:
        with self._xen.lock:
            self._runs_code = False
        with self._gate:
            self._gate.notify_all()

    def _run(self) -> None:
        try:
            while self._enter():
                exit_ = self.vcpu.run(self._handle)
                self._leave()
                self._catch_up()
                if self._wish is not None:
                    self._sleep()
                match exit_:
                    case Interrupted() | Hypercall():
                        continue
                    case Hlt():  # with interrupts off and nobody to wake it: Xen takes that for the wish to be off
                        self._xen.shutdown(self.domain, abi.ShutdownReason.POWEROFF)
                    case _:
                        self._xen.shutdown(self.domain, abi.ShutdownReason.CRASH)
        except BaseException as error:
            self.error = error
            self._xen.shutdown(self.domain, abi.ShutdownReason.CRASH)
        finally:
            self._leave()
            self._catch_up()
            self.on_stop()

    def _sleep(self) -> None:
        assert self._wish is not None
        ports, deadline = self._wish
        self._wish = None
        vcpu = self.domain.vcpus[0]
        vcpu.blocked = True
        try:
            self._wait_for_event(ports, deadline)
        finally:
            vcpu.blocked = False

    def _wait_for_event(self, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        events = self.domain.events
        while not self._stopping:
            self._woken.clear()
            # a poll ends with any upcall too, as a block does
            if events.pending(0) or (ports is not None and events.any_pending(ports)):
                return
            wait = None if deadline is None else (deadline - self._xen.system_time()) / 1e9
            if wait is not None and wait <= 0:
                return
            self._woken.wait(wait)

    def stop(self) -> None:
        """Stop running it, from any thread but its own, and wait."""
        self._stopping = True
        self._woken.set()
        self.vcpu.kick()
        with self._gate:
            self._gate.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def close(self) -> None:
        """Stop, and give back the machine and the pages that were added."""
        self.stop()
        for timer in self._timers.values():
            timer.cancel()
        self.machine.close()
        self.domain.shared_info = memoryview(bytearray(PAGE))
        for vcpu in self.domain.vcpus:
            vcpu.info = memoryview(bytearray(abi.SHARED_VCPU_INFO_SIZE))
        self.domain._added.clear()
        self.memory.close()
        for region in self._regions:
            region.close()
        self._regions.clear()


class _Callback:
    """HVM_PARAM_CALLBACK_IRQ by vector: an interrupt that the local APIC knows nothing of, so no EOI ends it. It enters
    where an 8259's would (see `cpu.contract.IrqChip`)."""

    def __init__(self, guest: PvhGuest) -> None:
        self._guest = guest

    def set_irq(self, gsi: int, level: bool) -> None:
        """See `IrqChip.set_irq`: a PVH guest has no lines."""

    def acknowledge(self) -> int:
        """See `IrqChip.acknowledge`."""
        self._guest.machine.set_intr(False)
        return self._guest.domain.vcpus[0].callback_vector

    def end_of_interrupt(self, vector: int) -> None:
        """See `IrqChip.end_of_interrupt`."""


def _tsc_scale(khz: int) -> tuple[int, int]:
    """(multiplier, shift) of vcpu_time_info: nanoseconds are (ticks << shift) * multiplier >> 32."""
    shift, hz = 0, khz * 1000
    while hz > 2_000_000_000:
        hz >>= 1
        shift -= 1
    while hz <= 1_000_000_000:
        hz <<= 1
        shift += 1
    return (1_000_000_000 << 32) // hz & 0xFFFF_FFFF, shift
