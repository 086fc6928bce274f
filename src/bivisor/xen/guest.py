"""Runs a domain's code on an engine: a PVH guest, whose kernel is entered at its PVH note and asks Xen for the rest.

Each processor has a thread (`vcpu_thread.py`) and exits for hypercalls. Events interrupt it through its local APIC, at
the vector that the guest registered (HVMOP_set_evtchn_upcall_vector, which CPUID offers). Processors but the first wait
for INIT and SIPI from the guest, as on a board.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from bivisor.abi.xen import xen as abi
from bivisor.cpu.contract import Engine, Machine, Vcpu
from bivisor.cpu.exits import Exit
from bivisor.cpu.runcontrol import RunControl
from bivisor.errors import EngineError, UsageError
from bivisor.events import Interrupt, Kind, Probe, Site
from bivisor.memory import PAGE, GuestMemory, Slot
from bivisor.xen.clock import GuestClock, wall_clock
from bivisor.xen.cpuid import domain_cpuid
from bivisor.xen.domain import Domain, State
from bivisor.xen.hypercall_entry import VMCALL, VMMCALL, hypercall_page, replace_hypercalls
from bivisor.xen.hypervisor import Xen
from bivisor.xen.timers import Timers
from bivisor.xen.vcpu_thread import VcpuThread

_MSI: Final = 0xFEE0_0000
_AGAIN_NS: Final = 2_000_000
_LOOK_NS: Final = 100_000_000
_MTRR_DEF_TYPE, _MTRRS_ON_WRITE_BACK = 0x2FF, 0xC06


class PvhGuest:
    """The processors of one domain. It is the domain's `Upcall`, so it is made before it: see `attach`.

    `punch_hole(fd, offset, length)` gives the memory of pages that the guest released back to the host. UsageError
    where the engine cannot have so many processors.
    """

    def __init__(
        self,
        xen: Xen,
        engine: Engine,
        memory: GuestMemory,
        punch_hole: Callable[[int, int, int], None],
        vcpus: int = 1,
    ) -> None:
        most = self._most_vcpus(engine)
        if not 1 <= vcpus <= most:
            raise UsageError(f"{vcpus} processors: the engine {engine.name} has at most {most} for such a domain")
        self.xen = xen
        self._engine = engine
        self._punch_hole = punch_hole
        self.memory = memory
        self.machine: Machine = engine.create_machine()
        self._timers = Timers(xen.system_time)
        self._periods: dict[int, Callable[[], None]] = {}
        """What rings periodically on each processor: changed under Xen's lock."""
        self._gate = threading.Condition()
        self._stopping = self._paused = self._reported = False
        self.sleeps: Callable[[int], bool] = lambda _: False
        """Whether a thread of the host's waits, by its native id."""
        self.error: BaseException | None = None
        self._probe: Probe | None = None
        self._site: Site | None = None
        self.on_stop: Callable[[], None] = lambda: None
        """Called by a processor's thread when the domain has shut down."""
        self.threads: tuple[VcpuThread, ...] = ()
        for slot in memory.slots:
            self.machine.map(slot)
        self._has_callback = False
        self._prepare()
        memory.listen(self.machine.invalidate)
        self.vcpus = [self.machine.create_vcpu(index) for index in range(vcpus)]
        self.vcpu = self.vcpus[0]
        self.control = RunControl(self.vcpus, self._kick)

    @staticmethod
    def _most_vcpus(engine: Engine) -> int:
        return engine.max_vcpus

    @property
    def debugged(self) -> tuple[Vcpu, ...]:
        """The processors as a debugger sees them, where that is not what their engine says of them; else none."""
        return ()

    def _prepare(self) -> None:
        """Before there are processors."""
        self.machine.create_local_apics()
        self._instruction = self.machine.take_xen_hypercalls(abi.HYPERCALL_PAGE_MSR)
        self._has_callback = self._connect_callback()

    def _processor(self, domain: Domain, vcpu: Vcpu) -> VcpuThread:
        """The thread of a processor, which is told what it says of itself."""
        vcpu.set_cpuid(domain_cpuid(self._engine, vcpu, len(self.vcpus), domain.domid))
        vcpu.set_msrs({_MTRR_DEF_TYPE: _MTRRS_ON_WRITE_BACK})
        return VcpuThread(self, domain, vcpu)

    def _connect_callback(self) -> bool:
        """Whether upcalls can go past the local APIC, as kernels before Linux 6.0 want them."""
        try:
            self.machine.connect_irqchip(_Callback(self))
        except EngineError:
            return False
        return True

    def attach(self, domain: Domain) -> None:
        """This is the domain whose code it runs."""
        self.domain = domain
        self._site = self.xen.events.site(Kind.INTERRUPT, partial(setattr, self, "_probe"), domain.domid)
        domain.on_run = self._may_run
        domain.send_nmi = lambda index: self.threads[index].send_nmi()
        domain.set_periodic_timer = self._set_periodic_timer
        domain.cpu_time = lambda index: self.threads[index].cpu_time()
        domain.halts = lambda index: self.sleeps(self.threads[index].native_id)
        self.threads = tuple(self._processor(domain, vcpu) for vcpu in self.vcpus)
        self._clock = GuestClock(self._engine.tsc_khz(), self.threads[0].tsc(), self.xen.system_time())
        if hasattr(self.vcpu, "post"):
            domain.events.defer = self.threads[0].defer
            domain.quiesce = self.threads[0].pass_by
        for index in range(len(self.vcpus)):
            domain.write_time(index)
        self._write_wall_clock()

    @property
    def replaces_hypercalls(self) -> bool:
        """Whether VMCALL and VMMCALL do not come out of the processor, so that kernels get something else for them."""
        return self._instruction not in (VMCALL, VMMCALL)

    def loaded(self, gpa: int, size: int) -> None:
        """A kernel's code has been put there: make its hypercalls come out, where the processor's own do not."""
        if self.replaces_hypercalls:
            replace_hypercalls(self.memory, gpa, size, self._instruction)

    def fill_page(self, gpa: int) -> bool:
        """Write the hypercall page at `gpa`; False where the domain has no memory."""
        if not self.memory.contains(gpa, PAGE):
            return False
        self.memory.write(gpa, hypercall_page(self._instruction))
        return True

    @property
    def counters(self) -> dict[str, int]:
        """Exits by reason, summed over the processors."""
        total: dict[str, int] = {}
        for vcpu in self.vcpus:
            for name, count in vcpu.counters.items():
                total[name] = total.get(name, 0) + count
        return total

    # ---------------------------------------------------------------- time

    def _write_wall_clock(self) -> None:
        clock, high = wall_clock(self.xen.wall() - self.xen.system_time())
        info = self.domain.shared_info
        info[abi.SHARED_WC_VERSION : abi.SHARED_WC_VERSION + len(clock)] = clock
        info[abi.SHARED_WC_SEC_HI : abi.SHARED_WC_SEC_HI + 4] = high

    def keep_time(self, tsc: Callable[[], int]) -> None:
        """Now and then, tell the guest how its counter and system time stand to each other."""
        if not self._clock.is_due(self.xen.system_time()):
            return
        with self.xen.lock:
            self._clock.update(tsc(), self.xen.system_time())
            for index in range(len(self.vcpus)):
                self.domain.write_time(index)

    def time_info(self) -> bytes:
        """See `Upcall.time_info`."""
        return self._clock.info()

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        """See `Upcall.set_timer`."""
        if deadline is None:
            self._timers.cancel(vcpu)
        else:
            self._timers.set(vcpu, deadline, lambda: self._ring(vcpu))

    def _set_periodic_timer(self, vcpu: int, period: int | None) -> None:
        key = ("periodic", vcpu)
        self._periods.pop(vcpu, None)
        self._timers.cancel(key)
        if period is None:
            return
        due = self.xen.system_time() + period

        def ring() -> None:
            nonlocal due
            with self.xen.lock:
                if self._periods.get(vcpu) is not ring:
                    return
                due = max(due + period, self.xen.system_time())  # those that were missed ring once, as in Xen
                self._timers.set(key, due, ring)
                self.domain.events.raise_virq(abi.Virq.TIMER, vcpu)

        self._periods[vcpu] = ring
        self._timers.set(key, due, ring)

    def _ring(self, vcpu: int) -> None:
        with self.xen.lock:
            self.domain.events.raise_virq(abi.Virq.TIMER, vcpu)

    # ---------------------------------------------------------------- events

    def event(self, vcpu: int) -> None:
        """See `Upcall.event`."""
        probe = self._probe
        if probe is not None:
            vector = self.domain.vcpus[vcpu].upcall_vector
            probe.tell(Interrupt(probe.clock(), self.domain.domid, vcpu, 0, "upcall", vector))
        self._interrupt(vcpu)
        self.threads[vcpu].wake()

    def _interrupt(self, vcpu: int) -> None:
        info = self.domain.vcpus[vcpu]
        if info.upcall_vector:
            if not self.machine.signal_msi(_MSI | vcpu << 12, info.upcall_vector):
                # Xen's own local APIC keeps an upcall until it is turned on; these lose it.
                self._timers.set(
                    ("again", vcpu), self.xen.system_time() + _AGAIN_NS, lambda: self._interrupt_again(vcpu)
                )
        elif info.callback_vector and self._has_callback:
            self.machine.set_intr(True)

    def _interrupt_again(self, vcpu: int) -> None:
        with self.xen.lock:
            if not self._stopping and self.domain.vcpus[vcpu].info[abi.VCPU_UPCALL_PENDING]:
                self._interrupt(vcpu)

    def wake(self, vcpu: int) -> None:
        """See `Upcall.wake`."""
        self.threads[vcpu].wake()

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        """See `Upcall.block`."""
        self.threads[vcpu].block(ports, deadline)

    # ---------------------------------------------------------------- memory

    def add_slot(self, slot: Slot) -> None:
        """See `Upcall.add_slot`."""
        self.machine.map(slot)

    def populated(self, gfn: int, count: int) -> None:
        """See `Upcall.populated`: the memory comes back with the first touch."""

    def released(self, gfn: int, count: int) -> None:
        """See `Upcall.released`."""
        for slot in self.memory.slots:
            start = gfn * PAGE - slot.gpa
            if 0 <= start < slot.size:
                self._punch_hole(slot.region.fd, slot.offset + start, count * PAGE)

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Unpause it for the first time."""
        with self.xen.lock:
            self.domain.unpause()

    def _may_run(self, may: bool) -> None:
        """See `Domain.on_run`."""
        for thread in self.threads:
            if not may:
                thread.kick()
            elif self.may_begin(thread):
                thread.start()
        if may and self.machine.halts_inside:
            self._look_for_the_end()
        with self._gate:
            self._reported = self._reported and not may
            self._gate.notify_all()

    def may_begin(self, thread: VcpuThread) -> bool:
        """Whether a processor's thread begins with the domain: all do, and those that are down wait in the engine."""
        return True

    def may_enter(self, thread: VcpuThread) -> bool:
        """Wait while the domain may not run. True: `thread` is inside now; False: it has to end."""
        while True:
            self.control.gate(thread.vcpu)
            with self.xen.lock:
                if self._stopping:
                    return False
                if self.domain.runnable and self.error is None and self.control.is_open(thread.vcpu):
                    thread.inside = True
                    return True
            if self._is_first_to_report():
                self.on_stop()
            with self.control.aside(), self._gate:
                self._gate.wait_for(self._may_look_again)

    def _may_look_again(self) -> bool:
        if self._stopping or (self.domain.runnable and self.error is None):
            return True
        return self.domain.state is State.SHUTDOWN and not self._reported

    def _is_first_to_report(self) -> bool:
        with self._gate:
            first = self.domain.state is State.SHUTDOWN and not self._reported
            self._reported = self._reported or first
            return first

    @property
    def stopping(self) -> bool:
        """Whether `stop()` was called."""
        return self._stopping

    def still(self) -> None:
        """A processor has left guest code, and the domain may not run."""
        with self._gate:
            self._gate.notify_all()

    def pause(self) -> None:
        """Pause the domain, once: when it returns, no guest code runs. A second call does nothing. From any thread but
        its processors', and not with a lock held that a hypercall takes."""
        with self.xen.lock:
            if not self._paused:
                self._paused = True
                self.domain.pause()
        self.wait_until_still()

    def wait_until_still(self) -> None:
        """After the domain was paused: wait until no guest code runs. As for `pause`."""
        with self._gate:
            self._gate.wait_for(lambda: not any(thread.inside for thread in self.threads))

    def resume(self) -> None:
        """Undo `pause()`. Nothing to do where it does not hold the domain."""
        with self.xen.lock:
            if self._paused:
                self._paused = False
                self.domain.unpause()

    def is_down(self) -> None:
        """A processor halts with interrupts off. Once all of them do, Xen takes that for the wish to be off."""
        if all(thread.down for thread in self.threads):
            self.xen.shutdown(self.domain, abi.ShutdownReason.POWEROFF)

    def _look_for_the_end(self) -> None:
        if not self.domain.runnable:
            return
        for thread in self.threads:
            thread.look()
        self._timers.set("look", self.xen.system_time() + _LOOK_NS, self._look_for_the_end)

    def ended(self, vcpu: int, exit_: Exit) -> None:
        """A processor came out for good."""
        self.xen.console_write(self.domain, f"d{self.domain.domid}v{vcpu}: {exit_}\n".encode())
        self.xen.shutdown(self.domain, abi.ShutdownReason.CRASH)

    def failed(self, error: BaseException) -> None:
        """What runs a processor raised: the end of this domain, and nothing else's."""
        if self.error is None:
            self.error = error
        self.xen.shutdown(self.domain, abi.ShutdownReason.CRASH)

    def _kick(self) -> None:
        for thread in self.threads:
            thread.kick()

    def stop(self) -> None:
        """Stop running it, from any thread but its own, and wait."""
        self._stopping = True
        self.control.end()
        with self._gate:
            self._gate.notify_all()
        self._kick()
        for thread in self.threads:
            thread.join()

    def close(self) -> None:
        """Stop, and give back the machine and the pages that were added."""
        self.stop()
        self._timers.close()
        if self._site is not None:
            self.xen.events.remove(self._site)
        self.machine.close()
        self.domain.shared_info = memoryview(bytearray(PAGE))
        for vcpu in self.domain.vcpus:
            vcpu.info = memoryview(bytearray(abi.SHARED_VCPU_INFO_SIZE))
        self.domain.physmap.close()


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
