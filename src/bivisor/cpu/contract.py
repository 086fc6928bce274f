"""The contract of a processor: `Engine` → `Machine` → `Vcpu` → `run()` → `Exit`.

An engine knows no device and no hypervisor. The names follow the KVM API (Documentation/virt/kvm/api.rst); an engine
without a kernel under it keeps the same promises, and one conformance suite (`tests/conformance`) holds both to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable

from bivisor.cpu.exits import Exit
from bivisor.cpu.registers import CpuidEntry, Events, Fpu, GuestDebug, Regs, Sregs
from bivisor.memory import Slot

ExitHandler = Callable[[Exit], bool]
"""Handles an exit in place. True: the guest goes on. False: `run()` returns the exit to its caller."""


@runtime_checkable
class IrqChip(Protocol):
    """Interrupt controllers in user space: the 8259 pair and the I/O APIC of a machine whose engine has only the local
    APICs. The engine calls these with its own lock not held."""

    def set_irq(self, gsi: int, level: bool) -> None:
        """Set the level of interrupt line `gsi` (0 to 23)."""

    def acknowledge(self) -> int:
        """The INTA cycle: the vector of the 8259's highest pending request, which is now in service."""

    def end_of_interrupt(self, vector: int) -> None:
        """A local APIC broadcast the EOI of a level-triggered `vector`."""


class Vcpu(Protocol):
    """One virtual processor. Every method but `kick()` is for the thread that runs it, or while it does not run."""

    @property
    def index(self) -> int:
        """Its number, which is its APIC id."""

    def run(self, handler: ExitHandler | None = None) -> Exit:
        """Enter the guest (KVM API 4.10 KVM_RUN) and come back with the exit that ended it.

        `handler` is called with each exit in place; as long as it returns True the guest goes on without coming back,
        which is the fast way on both engines. `Interrupted` always comes back: the handler is not asked. An exception
        in it leaves `run()` with the guest in a state that can be closed. Exits that need an answer are answered
        through their views before the next entry.

        An instruction that came out for a port, an address or an MSR is finished by the next entry; until then RIP may
        be before or after it, and registers that are set may be overwritten. `kick()` and then `run()` finish it and
        run no further.

        Python's own signal handlers belong to the main thread and may have to wait for an exit there: a program that
        lives on signals runs its processors in other threads and kicks them.
        """

    def kick(self) -> None:
        """Make a running or the next `run()` return `Interrupted`, from any thread or signal handler; never lost."""

    def get_regs(self) -> Regs:
        """KVM API 4.11 KVM_GET_REGS."""

    def set_regs(self, regs: Regs) -> None:
        """KVM API 4.12 KVM_SET_REGS."""

    def get_sregs(self) -> Sregs:
        """KVM API 4.13 KVM_GET_SREGS."""

    def set_sregs(self, sregs: Sregs) -> None:
        """KVM API 4.14 KVM_SET_SREGS."""

    def get_fpu(self) -> Fpu:
        """KVM API 4.22 KVM_GET_FPU."""

    def set_fpu(self, fpu: Fpu) -> None:
        """KVM API 4.23 KVM_SET_FPU."""

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM API 4.18 KVM_GET_MSRS. EngineError names the first MSR that does not exist."""

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """KVM API 4.19 KVM_SET_MSRS. EngineError names the first MSR that was refused."""

    def get_events(self) -> Events:
        """KVM API 4.31 KVM_GET_VCPU_EVENTS."""

    def set_events(self, events: Events) -> None:
        """KVM API 4.32 KVM_SET_VCPU_EVENTS: also the way to inject an exception."""

    def set_cpuid(self, entries: Iterable[CpuidEntry]) -> None:
        """KVM API 4.20 KVM_SET_CPUID2: what the guest's CPUID says. Before the first `run()`."""

    def get_cpuid(self) -> tuple[CpuidEntry, ...]:
        """What `set_cpuid` set, or the engine's own model."""

    def interrupt(self, vector: int) -> None:
        """KVM API 4.16 KVM_INTERRUPT: deliver external interrupt `vector` at the next entry. Only on a machine without
        an interrupt controller in the engine, and only while the guest can take it (see `request_interrupt_window`)."""

    def request_interrupt_window(self, wanted: bool = True) -> None:
        """Exit with `InterruptWindow` as soon as the guest can take an interrupt (`request_interrupt_window`)."""

    @property
    def ready_for_interrupt(self) -> bool:
        """Whether the guest could take an external interrupt at the next entry."""

    @property
    def is_down(self) -> bool:
        """After `Interrupted`: whether it halts with interrupts off, or waits to be started, in the engine, so that
        nothing but another processor or an NMI makes it go on. False where `Hlt` comes out for that."""

    def nmi(self) -> None:
        """KVM API 4.64 KVM_NMI."""

    def set_debug(self, debug: GuestDebug) -> None:
        """KVM API 4.87 KVM_SET_GUEST_DEBUG."""

    def translate(self, linear: int) -> int | None:
        """KVM API 4.15 KVM_TRANSLATE: the guest-physical address of `linear`, or None where it is not mapped."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Exits so far by the name of their class, and whatever finer counts the engine has."""

    def close(self) -> None:
        """Give back the processor."""


class Machine(Protocol):
    """Memory slots, interrupt lines and processors that belong together (a VM's file descriptor in KVM)."""

    on_interrupt: Callable[[str, int, bool], None] | None
    """Somebody listens: called with each line that is set ("line", its number, its level) and each message ("msi", its
    data, True) from outside of the engine."""

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        """The processors created so far."""

    @property
    def irqchip(self) -> str:
        """Where the interrupt controllers are: "none", "kernel" (8259, I/O APIC, 8254 and local APICs are the engine's)
        or "user" (local APICs are the engine's; the platform connects an `IrqChip` and brings an 8254)."""

    @property
    def halts_inside(self) -> bool:
        """Whether a processor that halts stays inside `run()` whatever its interrupt flag is: see `Vcpu.is_down`."""

    def create_irqchip(self) -> None:
        """KVM API 4.24 KVM_CREATE_IRQCHIP, before the first processor. Sets `irqchip` to "kernel" or "user"."""

    def create_local_apics(self) -> None:
        """As `create_irqchip`, but local APICs alone: messages interrupt the processors, and there are no lines.
        `irqchip` is "user" then, and nothing has to be connected to it."""

    def connect_irqchip(self, chip: IrqChip) -> None:
        """Only where `irqchip` is "user": route lines and EOIs to `chip`."""

    def set_intr(self, level: bool) -> None:
        """Only where `irqchip` is "user": the INTR output of the 8259 pair, wired to LINT0 of processor 0."""

    def create_vcpu(self, index: int = 0) -> Vcpu:
        """KVM API 4.7 KVM_CREATE_VCPU."""

    def map(self, slot: Slot, *, log_dirty: bool = False) -> None:
        """KVM API 4.35 KVM_SET_USER_MEMORY_REGION."""

    def unmap(self, slot: Slot) -> None:
        """Take the slot away; an access there is an `Mmio` exit from then on."""

    def between_blocks(self, work: Callable[[], None]) -> None:
        """Do `work`, which maps or unmaps, at a moment when the guest's code is not being executed: at once or soon."""

    def feed_port(self, port: int, data: memoryview | None) -> None:
        """Let reads of `port` take `data` (writable, not empty, held until the next call) without an exit each, where
        the engine can; the read that does not fit into what is left exits as ever. None: no more."""

    def taken_from_port(self) -> int:
        """How many bytes of what `feed_port` got have been read."""

    def gather_strings(self) -> None:
        """Let the items of an INS with a repeat prefix come in one `PortIo` exit as far as that can be, where they
        would come one by one. Not together with `feed_port`. After the first processor."""

    def set_a20(self, enabled: bool) -> None:
        """Gate address line 20, where the engine can: with it off, each second MiB is the one before it once more."""

    def dirty_pages(self, slot: Slot) -> list[int]:
        """KVM API 4.8 KVM_GET_DIRTY_LOG: the guest-physical addresses of the pages written since the last call."""

    def invalidate(self, gpa: int, length: int) -> None:
        """The host wrote guest memory there: forget code translated from it. Does nothing on `kvm`."""

    def set_irq(self, gsi: int, level: bool) -> None:
        """KVM API 4.25 KVM_IRQ_LINE. From any thread."""

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM API 4.70 KVM_SIGNAL_MSI. From any thread. False where no local APIC took it, as one that is turned off
        does not; the message is lost then, as on a bus."""

    def ioeventfd(self, fd: int, address: int, length: int, *, pio: bool = False, datamatch: int | None = None) -> None:
        """KVM API 4.59 KVM_IOEVENTFD: a write of `length` bytes (0: any) there signals eventfd `fd`, with no exit."""

    def remove_ioeventfd(
        self, fd: int, address: int, length: int, *, pio: bool = False, datamatch: int | None = None
    ) -> None:
        """Undo `ioeventfd`."""

    def irqfd(self, fd: int, gsi: int) -> None:
        """KVM API 4.75 KVM_IRQFD: signalling eventfd `fd` pulses line `gsi`. EngineError where there is none."""

    def remove_irqfd(self, fd: int, gsi: int) -> None:
        """Undo `irqfd`."""

    def filter_msrs(self, ranges: Iterable[tuple[int, int]]) -> None:
        """KVM API 4.97, KVM_CAP_X86_USER_SPACE_MSR: exit on reads and writes of each (first index, count)."""

    def exit_on_cpuid(self, wanted: bool = True) -> None:
        """Exit with `Cpuid` on each CPUID instruction. EngineError on an engine that cannot (kvm cannot)."""

    def take_xen_hypercalls(self, msr: int) -> bytes:
        """Let hypercalls in Xen's convention come out as `Hypercall` exits of abi "xen", and writes to `msr`, by which
        a guest asks for its hypercall page, as `WrMsr`. Before the first processor.

        Gives the three bytes of the instruction that makes them on this machine. Where it is an OUT, neither VMCALL nor
        VMMCALL comes out, and what a kernel has of them has to be replaced."""

    def statistics(self) -> dict[str, int]:
        """What the engine counts itself (KVM API 4.133 binary statistics on `kvm`). While no processor runs."""

    def close(self) -> None:
        """Close every processor and give back what the machine holds. The memory stays its owner's."""

    def __enter__(self) -> Machine: ...

    def __exit__(self, *_: object) -> None: ...


class Engine(Protocol):
    """A way of running guest code on this host."""

    @property
    def name(self) -> str:
        """ "kvm" or "soft"."""

    @property
    def max_vcpus(self) -> int:
        """How many processors a machine can have."""

    def supported_cpuid(self) -> tuple[CpuidEntry, ...]:
        """KVM API 4.46 KVM_GET_SUPPORTED_CPUID: the features that a guest can be told of."""

    def tsc_khz(self) -> int:
        """The frequency of the guest's time-stamp counter in kHz."""

    def create_machine(self) -> Machine:
        """KVM API 4.2 KVM_CREATE_VM."""

    def close(self) -> None:
        """Give back what the engine holds (the /dev/kvm descriptor)."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...
