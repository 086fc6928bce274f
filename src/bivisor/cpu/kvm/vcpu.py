"""A virtual processor of /dev/kvm: a file descriptor, and a `struct kvm_run` that it maps (KVM API 4.10 on, and 5)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bivisor.abi import linux_kvm as abi
from bivisor.abi.linux_kvm import ExitReason, Ioctl, MpState, Run
from bivisor.cpu.contract import ExitHandler
from bivisor.cpu.exits import Exit, InternalError, Interrupted
from bivisor.cpu.kvm import state
from bivisor.cpu.kvm.calls import call, failure
from bivisor.cpu.kvm.decode import MMIO_KEY, RunArea
from bivisor.cpu.kvm.enter import EnterThunk
from bivisor.cpu.kvm.kick import accept_kicks, kick_thread
from bivisor.cpu.kvm.live import LiveRegisters
from bivisor.cpu.kvm.stats import Statistics
from bivisor.cpu.registers import CpuidEntry, Events, Fpu, GuestDebug, Regs, Sregs
from bivisor.errors import EngineError

_INTERRUPTED = Interrupted()
_EXIT_REASONS = 256  # more than the kernel has
_CLASS_NAMES: dict[int, str] = {
    ExitReason.IO: "PortIo",
    ExitReason.MMIO: "Mmio",
    ExitReason.HLT: "Hlt",
    ExitReason.X86_RDMSR: "RdMsr",
    ExitReason.X86_WRMSR: "WrMsr",
    ExitReason.HYPERCALL: "Hypercall",
    ExitReason.XEN: "Hypercall",
    ExitReason.IRQ_WINDOW_OPEN: "InterruptWindow",
    ExitReason.DEBUG: "Debug",
    ExitReason.SHUTDOWN: "Shutdown",
    ExitReason.FAIL_ENTRY: "FailEntry",
    ExitReason.INTERNAL_ERROR: "InternalError",
    ExitReason.SYSTEM_EVENT: "SystemEvent",
    ExitReason.INTR: "Interrupted",
}


@dataclass(frozen=True, slots=True)
class KernelView:
    """What kvm_run says of the last VM exit, beyond the exit itself: all that the kernel tells of root and non-root
    mode. `reason` is KVM_EXIT_*, `if_flag` the guest's RFLAGS.IF, `flags` KVM_RUN_X86_*."""

    reason: int
    if_flag: bool
    ready_for_interrupt_injection: bool
    flags: int
    cr8: int
    apic_base: int


class KvmVcpu:
    """See `contract.Vcpu`. `on_close` is told when the processor is gone."""

    def __init__(
        self, fd: int, index: int, run_size: int, cpuid: bytearray, on_close: Callable[[KvmVcpu], None] | None = None
    ) -> None:
        self._fd = fd
        self._index = index
        self._on_close = on_close
        self._statistics: Statistics | None = None
        self._outs: frozenset[int] = frozenset()
        self.on_signal: Callable[[], None] | None = None
        """Called, by the processor's thread, when a signal that was no kick has taken it out of the guest: an alarm."""
        self._counts = [0] * _EXIT_REASONS
        self._process = os.getpid()
        self._thread = self._home = 0  # the thread that is in run(), and the one that was last
        self._cpuid = state.unpack_cpuid(cpuid)
        call(fd, Ioctl.SET_CPUID2, cpuid)
        self._area = RunArea(fd, run_size)
        self._thunk = EnterThunk(fd)

    @property
    def index(self) -> int:
        """Its number, which is its APIC id."""
        return self._index

    def hypercalls_by_port(self, port: int | None) -> None:
        """See `KvmMachine.hypercalls_by_port`."""
        if port is not None:
            self._area.take_hypercalls(port)

    def door(self, port: int, exit_: Exit) -> None:
        """Have a write of one byte to `port` come as `exit_`: for code of the hypervisor's inside the guest."""
        self._area.door(port, exit_)

    def live(self) -> LiveRegisters:
        """The general registers, without a call for each look, from the next exit on (KVM_CAP_SYNC_REGS)."""
        return self._area.live()

    # ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, handler: ExitHandler | None = None) -> Exit:
        """See `contract.Vcpu.run`. Where KVM_RUN itself fails, as when the host cannot back a page of the guest, an
        `InternalError` comes back whose `data` is the errno."""
        if self._outs:
            return self._run_with_outs(handler)
        area, enter, counts = self._area, self._thunk.enter, self._counts
        words, quads, decode = area.words, area.quads, area.decode
        ports, mmios = area.ports, area.mmios
        self._thread = self._home = accept_kicks(self._home)
        try:
            while True:
                failed = enter()
                if failed:
                    if failed == -4 and self.on_signal is not None and not area.bytes[1]:  # EINTR, Run.IMMEDIATE_EXIT
                        self.on_signal()
                        continue
                    ended = self._after_failure(-failed)
                    if ended is None:
                        continue
                    return ended
                reason = words[2]  # literal numbers here: a look-up of a name costs as much as all the rest of a line
                counts[reason] += 1
                if reason == 2:  # ExitReason.IO, keyed by the first 8 bytes at Run.EXIT
                    exit_: Exit | None = ports.get(quads[4])
                elif reason == 6:  # ExitReason.MMIO
                    exit_ = mmios.get((quads[4], quads[6] & MMIO_KEY))
                else:
                    exit_ = None
                if exit_ is None:
                    exit_ = decode()
                if handler is None or not handler(exit_):
                    return exit_
        finally:
            self._thread = 0

    def _run_with_outs(self, handler: ExitHandler | None) -> Exit:
        from bivisor.cpu.kvm import outs

        wanted, self._outs = self._outs, frozenset()
        try:
            return outs.run(self, handler, wanted)
        finally:
            self._outs = wanted

    def complete(self) -> None:
        """Have the kernel finish the instruction of the last exit, and run no other: KVM API 5, `immediate_exit`. The
        next `run()` may come back at once with `Interrupted`."""
        self._area.bytes[Run.IMMEDIATE_EXIT] = 1
        self._thunk.enter()

    def _after_failure(self, error: int) -> Exit | None:
        """KVM_RUN failed with errno `error`: the exit that this is, or None to enter again."""
        match error:
            case errno.EINTR:
                if not self._area.bytes[Run.IMMEDIATE_EXIT]:
                    return None  # some other signal; its handler has run by now
                self._area.bytes[Run.IMMEDIATE_EXIT] = 0
                self._counts[ExitReason.INTR] += 1
                return _INTERRUPTED
            case errno.EAGAIN:
                return None  # a processor that waited for INIT or SIPI was woken
            case errno.EBADF:
                raise failure(Ioctl.RUN, error)
        # Such as a page of guest memory that the host cannot back: the end of this guest, and of nothing else.
        self._counts[ExitReason.INTERNAL_ERROR] += 1
        return InternalError(0, (error,), str(failure(Ioctl.RUN, error)))

    def kick(self) -> None:
        """See `contract.Vcpu.kick`."""
        try:
            self._area.bytes[Run.IMMEDIATE_EXIT] = 1
        except ValueError:
            return  # closed meanwhile
        # In this order: who is not seen running here sees the flag when it enters.
        thread = self._thread
        if thread:
            kick_thread(self._process, thread)

    @property
    def kernel_view(self) -> KernelView:
        """What the kernel tells of the last exit."""
        run = self._area.bytes
        return KernelView(
            reason=self._area.words[Run.EXIT_REASON // 4],
            if_flag=bool(run[Run.IF_FLAG]),
            ready_for_interrupt_injection=bool(run[Run.READY_FOR_INTERRUPT_INJECTION]),
            flags=int.from_bytes(run[Run.FLAGS : Run.FLAGS + 2], "little"),
            cr8=self._area.quads[Run.CR8 // 8],
            apic_base=self._area.quads[Run.APIC_BASE // 8],
        )

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def get_regs(self) -> Regs:
        """KVM API 4.11 KVM_GET_REGS."""
        return state.unpack_regs(self._get(Ioctl.GET_REGS, abi.REGS.size))

    def set_regs(self, regs: Regs) -> None:
        """KVM API 4.12 KVM_SET_REGS."""
        call(self._fd, Ioctl.SET_REGS, state.pack_regs(regs))

    def get_sregs(self) -> Sregs:
        """KVM API 4.13 KVM_GET_SREGS."""
        return state.unpack_sregs(self._get(Ioctl.GET_SREGS, abi.SREGS.size))

    def set_sregs(self, sregs: Sregs) -> None:
        """KVM API 4.14 KVM_SET_SREGS."""
        call(self._fd, Ioctl.SET_SREGS, state.pack_sregs(sregs))

    # The FPU goes by KVM_GET_XSAVE: struct kvm_fpu has a field for MXCSR that no kernel reads or fills in.

    def get_fpu(self) -> Fpu:
        """KVM API 4.42 KVM_GET_XSAVE, of which the x87 and SSE parts."""
        return state.unpack_fpu(self._get(Ioctl.GET_XSAVE, abi.XSAVE_SIZE))

    def set_fpu(self, fpu: Fpu) -> None:
        """KVM API 4.43 KVM_SET_XSAVE; the parts that `Fpu` does not have stay as they are."""
        xsave = self._get(Ioctl.GET_XSAVE, abi.XSAVE_SIZE)
        state.put_fpu(xsave, fpu)
        call(self._fd, Ioctl.SET_XSAVE, xsave)

    def set_xcr0(self, value: int) -> None:
        """KVM API 4.45 KVM_SET_XCRS: the parts of the FPU's state that programs may use."""
        call(self._fd, Ioctl.SET_XCRS, abi.XCRS.pack(1, 0, 0, 0, value).ljust(abi.XCRS_SIZE, b"\0"))

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM API 4.18 KVM_GET_MSRS. EngineError names the first MSR that does not exist."""
        return self._msrs(Ioctl.GET_MSRS, [(index, 0) for index in indices])

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """KVM API 4.19 KVM_SET_MSRS. EngineError names the first MSR that was refused."""
        self._msrs(Ioctl.SET_MSRS, list(values.items()))

    def _msrs(self, request: Ioctl, entries: list[tuple[int, int]]) -> dict[int, int]:
        found: dict[int, int] = {}
        for start in range(0, len(entries), abi.MAX_MSR_ENTRIES):
            part = entries[start : start + abi.MAX_MSR_ENTRIES]
            data = bytearray(abi.MSRS.pack(len(part)) + b"".join(abi.MSR_ENTRY.pack(*entry) for entry in part))
            done = call(self._fd, request, data)
            if done < len(part):
                verb = "read" if request is Ioctl.GET_MSRS else "set"
                raise EngineError(f"MSR {part[done][0]:#x} cannot be {verb}: it does not exist or refuses the value")
            found.update(abi.MSR_ENTRY.iter_unpack(data[abi.MSRS.size :]))
        return found

    def get_events(self) -> Events:
        """KVM API 4.31 KVM_GET_VCPU_EVENTS."""
        return state.unpack_events(self._get(Ioctl.GET_VCPU_EVENTS, abi.VCPU_EVENTS.size))

    def set_events(self, events: Events) -> None:
        """KVM API 4.32 KVM_SET_VCPU_EVENTS."""
        call(self._fd, Ioctl.SET_VCPU_EVENTS, state.pack_events(events))

    def set_cpuid(self, entries: Iterable[CpuidEntry]) -> None:
        """KVM API 4.20 KVM_SET_CPUID2. EngineError after the first `run()`."""
        entries = tuple(entries)
        call(self._fd, Ioctl.SET_CPUID2, state.pack_cpuid(entries))
        self._cpuid = entries

    def get_cpuid(self) -> tuple[CpuidEntry, ...]:
        """See `contract.Vcpu.get_cpuid`."""
        return self._cpuid

    @property
    def mp_state(self) -> MpState:
        """KVM API 4.38 KVM_GET_MP_STATE: whether it runs, halts or waits for INIT and SIPI."""
        return MpState(abi.MP_STATE.unpack(self._get(Ioctl.GET_MP_STATE, abi.MP_STATE.size))[0])

    @mp_state.setter
    def mp_state(self, value: MpState) -> None:
        call(self._fd, Ioctl.SET_MP_STATE, abi.MP_STATE.pack(value))

    @property
    def is_down(self) -> bool:
        """See `contract.Vcpu.is_down`: with local APICs, the kernel keeps what halts."""
        match self.mp_state:
            case MpState.HALTED:
                return not self._area.bytes[Run.IF_FLAG]
            case MpState.UNINITIALIZED:
                return True
        return False

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def interrupt(self, vector: int) -> None:
        """KVM API 4.16 KVM_INTERRUPT."""
        call(self._fd, Ioctl.INTERRUPT, abi.INTERRUPT.pack(vector))

    def request_interrupt_window(self, wanted: bool = True) -> None:
        """See `contract.Vcpu.request_interrupt_window`."""
        self._area.bytes[Run.REQUEST_INTERRUPT_WINDOW] = wanted

    @property
    def ready_for_interrupt(self) -> bool:
        """Whether the guest could take an external interrupt, as of the last exit."""
        return bool(self._area.bytes[Run.READY_FOR_INTERRUPT_INJECTION])

    def nmi(self) -> None:
        """KVM API 4.64 KVM_NMI."""
        call(self._fd, Ioctl.NMI)

    def set_debug(self, debug: GuestDebug) -> None:
        """KVM API 4.87 KVM_SET_GUEST_DEBUG."""
        self._outs = debug.outs
        call(self._fd, Ioctl.SET_GUEST_DEBUG, state.pack_debug(debug))

    def translate(self, linear: int) -> int | None:
        """KVM API 4.15 KVM_TRANSLATE."""
        data = bytearray(abi.TRANSLATION.pack(linear, 0, 0, 0, 0))
        call(self._fd, Ioctl.TRANSLATE, data)
        _, physical, valid, _, _ = abi.TRANSLATION.unpack(data)
        return int(physical) if valid else None

    def tsc_khz(self) -> int:
        """KVM API 4.57 KVM_GET_TSC_KHZ."""
        return call(self._fd, Ioctl.GET_TSC_KHZ)

    # ── accounts ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def counters(self) -> Mapping[str, int]:
        """Exits so far by the name of their class; one that has no class of its own as `UnknownExit`."""
        found: dict[str, int] = {}
        for reason, count in enumerate(self._counts):
            if count:
                name = _CLASS_NAMES.get(reason, "UnknownExit")
                found[name] = found.get(name, 0) + count
        return found

    def statistics(self) -> dict[str, int]:
        """The kernel's counters of this processor (KVM API 4.133). EngineError where the kernel has none."""
        if self._statistics is None:
            self._statistics = Statistics(self._fd)
        return self._statistics.read()

    def close(self) -> None:
        """Give back the processor: its mapping, its code page and its descriptors. A second call does nothing."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        if self._statistics is not None:
            self._statistics.close()
        self._thunk.close()
        try:
            self._area.close()
        finally:
            os.close(fd)
            if self._on_close is not None:
                self._on_close(self)

    def _get(self, request: Ioctl, size: int) -> bytearray:
        data = bytearray(size)
        call(self._fd, request, data)
        return data
