"""A soft machine: its processors, the ways of interrupts to them, and their exits. Its memory is in `maps.py`."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Iterable

from bivisor.cpu.contract import IrqChip
from bivisor.cpu.soft import private as p
from bivisor.cpu.soft.clock import TscFrequency
from bivisor.cpu.soft.eventfds import IrqfdThread, Signals
from bivisor.cpu.soft.library import Library
from bivisor.cpu.soft.maps import MemoryMap
from bivisor.cpu.soft.turns import Turns
from bivisor.cpu.soft.vcpu import SoftVcpu
from bivisor.errors import EngineError
from bivisor.memory import Slot
from bivisor.memory.atomics import address_of

_MSI_BASE = 0xFEE
_HOOK_INTR = 1 << 0
_HOOK_CODE = 1 << 2
_HOOK_MEM_FETCH_PROT = 1 << 9


class SoftMachine(MemoryMap):
    """See `bivisor.cpu.contract.Machine`. `hypercall_abi` says in which registers hypercalls pass their arguments."""

    def __init__(self, library: Library, frequency: TscFrequency) -> None:
        super().__init__(library)
        self._frequency = frequency
        self.hypercall_abi = "kvm"
        self.irqchip = "none"
        self._chip: IrqChip | None = None
        self.on_interrupt: Callable[[str, int, bool], None] | None = None
        self._peers: list[SoftMachine] = []
        self.turns: Turns | None = None
        """Set where there are several processors, each of which has such an object of its own."""
        self._filters: tuple[tuple[int, int], ...] = ()
        self.port_signals, self.mmio_signals = Signals(), Signals()
        self._irqfd_thread: IrqfdThread | None = None
        self._breakpoints: list[C.c_size_t] = []
        self._fed: memoryview | None = None
        self._fed_from = 0

    # ---------------------------------------------------------------- processor

    @property
    def vcpus(self) -> tuple[SoftVcpu, ...]:
        """See `Machine.vcpus`."""
        own = () if self._vcpu is None else (self._vcpu,)
        return (*own, *(vcpu for peer in self._peers for vcpu in peer.vcpus))

    def create_vcpu(self, index: int = 0) -> SoftVcpu:
        """See `Machine.create_vcpu`. TCG as a library has one processor, so each further one is a library of its own
        that takes turns with the first. They have no local APICs that know of each other."""
        self._check_open()
        if self.irqchip != "none" and index:
            raise EngineError("the engine `soft` has one processor for each machine with interrupt controllers")
        if index != len(self.vcpus):
            raise EngineError(f"processor {index}: there is one, or those before it are not there")
        if not index:
            self._vcpu = SoftVcpu(self, index)
            return self._vcpu
        return self._create_peer(index)

    def _create_peer(self, index: int) -> SoftVcpu:
        peer = SoftMachine(self._library, self._frequency)
        self._peers.append(peer)
        for mapped in self._mapped.values():
            peer.map(mapped.slot)
        peer.filter_msrs((first, end - first) for first, end in self._filters)
        peer._vcpu = SoftVcpu(peer, index)
        for each in (self, peer):
            each.fill_holes()
        if self.turns is None:
            self.turns = Turns(self)
            self._shares_code_map = True
        if peer.ram_places != self.ram_places:
            raise EngineError("the library has the memory of two processors in different places")
        self.turns.join(peer)
        peer.turns = self.turns
        return peer._vcpu

    def open_cpu(self) -> p.Cpu:
        """The private face of the processor, for `SoftVcpu`."""
        if not self._mapped:
            self.fill_holes()  # the library makes its processor when it first hears of memory
        else:
            self.uc.mem_regions()
        cpu = p.Cpu(self._library, self._handle, self.context)
        self._hook(_HOOK_INTR, self._library.entries["exception"], 0, 1, 0)
        self._hook(_HOOK_MEM_FETCH_PROT, self._library.entries["fetch"], 0, 1, 0)
        return cpu

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Call the context's `break_` before each instruction at one of the linear `addresses`."""
        for hook in self._breakpoints:
            self._library.lib.uc_hook_del(C.c_void_p(self._handle), hook)
        self._breakpoints = [
            self._hook(_HOOK_CODE, self._library.entries["code"], 0, address, address) for address in addresses
        ]
        self._forget_translations()

    def close_cpu(self) -> None:
        """The processor is closed."""
        self._vcpu = None

    def tsc_khz(self) -> int:
        """The frequency of the guest's counter."""
        return self._frequency.khz()

    def tsc(self) -> int:
        """The guest's counter now."""
        return self._vcpu.tsc() if self._vcpu is not None else self._library.rdtsc()

    # ---------------------------------------------------------------- memory

    def map(self, slot: Slot, *, log_dirty: bool = False) -> None:
        """See `Machine.map`. A read-only slot is read by exit-free MMIO and cannot be executed from."""
        super().map(slot, log_dirty=log_dirty)
        for peer in self._peers:
            peer.map(slot)

    def unmap(self, slot: Slot) -> None:
        """See `Machine.unmap`."""
        super().unmap(slot)
        for peer in self._peers:
            peer.unmap(slot)

    def invalidate(self, gpa: int, length: int) -> None:
        """See `Machine.invalidate`."""
        super().invalidate(gpa, length)
        for peer in self._peers:
            peer.invalidate(gpa, length)

    def between_blocks(self, work: Callable[[], None]) -> None:
        """See `Machine.between_blocks`."""
        vcpu = self._vcpu
        if vcpu is not None and vcpu.is_running:
            vcpu.later(work)
        else:
            work()

    def feed_port(self, port: int, data: memoryview | None) -> None:
        """See `Machine.feed_port`."""
        context = self.context
        self._fed, self._fed_from = data, 0
        if data is None:
            context.fast_port = 0
            return
        context.fast_at = self._fed_from = address_of(data)
        context.fast_end = self._fed_from + len(data)
        context.fast_port = port

    def taken_from_port(self) -> int:
        """See `Machine.taken_from_port`."""
        return int(self.context.fast_at) - self._fed_from if self._fed_from else 0

    def gather_strings(self) -> None:
        """See `Machine.gather_strings`."""
        if self._vcpu is not None:
            self._vcpu.callbacks.gathers_strings = True

    def set_a20(self, enabled: bool) -> None:
        """See `Machine.set_a20`."""
        vcpu = self._vcpu
        if vcpu is not None:
            self.between_blocks(lambda: self._library.set_a20(vcpu.cpu.cpu, int(enabled)))

    # ---------------------------------------------------------------- interrupts

    @property
    def halts_inside(self) -> bool:
        """See `Machine.halts_inside`: a HLT that nothing can end comes out."""
        return False

    def create_irqchip(self) -> None:
        """See `Machine.create_irqchip`: the local APIC is ours, the rest is the platform's."""
        if self._vcpu is not None:
            raise EngineError("KVM_CREATE_IRQCHIP: it has to come before the first processor")
        self.irqchip = "user"

    def create_local_apics(self) -> None:
        """See `Machine.create_local_apics`."""
        self.create_irqchip()

    def connect_irqchip(self, chip: IrqChip) -> None:
        """See `Machine.connect_irqchip`."""
        if self.irqchip != "user":
            raise EngineError("connect_irqchip: create_irqchip has to come first")
        self._chip = chip

    def set_irq(self, gsi: int, level: bool) -> None:
        """See `Machine.set_irq`."""
        if self._chip is None:
            raise EngineError("KVM_IRQ_LINE: this machine has no interrupt controller")
        if self.on_interrupt is not None:
            self.on_interrupt("line", gsi, level)
        self._chip.set_irq(gsi, level)

    def _pulse(self, gsi: int) -> None:
        self.set_irq(gsi, True)
        self.set_irq(gsi, False)

    def set_intr(self, level: bool) -> None:
        """See `Machine.set_intr`."""
        vcpu = self._vcpu
        if vcpu is None or vcpu.apic.intr == level:
            return
        vcpu.apic.intr = level
        if level:
            vcpu.post(vcpu.interrupts.apic_changed)

    def acknowledge(self) -> int:
        """The INTA cycle."""
        return -1 if self._chip is None else self._chip.acknowledge()

    def end_of_interrupt(self, vector: int) -> None:
        """A level-triggered interrupt has ended."""
        if self._chip is not None:
            self._chip.end_of_interrupt(vector)

    def signal_msi(self, address: int, data: int) -> bool:
        """See `Machine.signal_msi`. SDM volume 3, 11.11 "Message Signalled Interrupts"."""
        vcpu = self._vcpu
        if vcpu is None or self.irqchip == "none":
            raise EngineError("KVM_SIGNAL_MSI: this machine has no local APIC")
        if self.on_interrupt is not None:
            self.on_interrupt("msi", data, True)
        if address >> 20 != _MSI_BASE:
            return False  # not an interrupt message; a bus would write it to memory that is not there
        if not vcpu.apic.matches(address >> 12 & 0xFF, bool(address & 4)):
            return False
        mode, vector, level = data >> 8 & 7, data & 0xFF, bool(data & 0x8000)
        vcpu.post(lambda: vcpu.apic.deliver(mode, vector, level))
        return vcpu.apic.enabled

    # ---------------------------------------------------------------- eventfds

    def ioeventfd(self, fd: int, address: int, length: int, *, pio: bool = False, datamatch: int | None = None) -> None:
        """See `Machine.ioeventfd`."""
        (self.port_signals if pio else self.mmio_signals).add(fd, address, length, datamatch)

    def remove_ioeventfd(
        self, fd: int, address: int, length: int, *, pio: bool = False, datamatch: int | None = None
    ) -> None:
        """See `Machine.remove_ioeventfd`."""
        (self.port_signals if pio else self.mmio_signals).remove(fd, address, length, datamatch)

    def irqfd(self, fd: int, gsi: int) -> None:
        """See `Machine.irqfd`: a thread watches the descriptors, started by the first."""
        if self._chip is None:
            raise EngineError("KVM_IRQFD: this machine has no interrupt controller")
        if self._irqfd_thread is None:
            self._irqfd_thread = IrqfdThread(self._pulse)
        self._irqfd_thread.add(fd, gsi)

    def remove_irqfd(self, fd: int, gsi: int) -> None:
        """See `Machine.remove_irqfd`."""
        if self._irqfd_thread is None or not self._irqfd_thread.remove(fd, gsi):
            raise EngineError(f"KVM_IRQFD: line {gsi} has no such eventfd")

    # ---------------------------------------------------------------- exits

    def filter_msrs(self, ranges: Iterable[tuple[int, int]]) -> None:
        """See `Machine.filter_msrs`."""
        self._filters = tuple((first, first + count) for first, count in ranges)
        for peer in self._peers:
            peer._filters = self._filters

    def filtered(self, index: int) -> bool:
        """Whether accesses to this MSR go to the hypervisor above."""
        return any(first <= index < end for first, end in self._filters) if self._filters else False

    def exit_on_cpuid(self, wanted: bool = True) -> None:
        """See `Machine.exit_on_cpuid`."""
        for vcpu in self.vcpus:
            vcpu.callbacks.exit_on_cpuid = wanted

    def take_xen_hypercalls(self, msr: int) -> bytes:
        """See `Machine.take_xen_hypercalls`. VMCALL does as well as VMMCALL."""
        self.hypercall_abi = "xen"
        self.filter_msrs([(msr, 1)])
        return b"\x0f\x01\xd9"

    def statistics(self) -> dict[str, int]:
        """See `Machine.statistics`."""
        return dict(self._vcpu.counters) if self._vcpu is not None else {}

    def close(self) -> None:
        """See `Machine.close`."""
        if self._handle == 0:
            return
        if self._irqfd_thread is not None:
            self._irqfd_thread.close()
        for vcpu in self.vcpus:
            vcpu.close()
        while self._peers:
            self._peers.pop().close()
        self._chip = None
        self._forget_memory()

    def __enter__(self) -> SoftMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
