"""A soft machine: guest-physical memory in Unicorn's address space, interrupt routing, and its one processor.

Every guest-physical address that is not memory is mapped as MMIO, so no access of a guest ever finds "nothing" there;
the library's own answer to that is to stop.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Iterable
from functools import partial

from bivisor.cpu.contract import IrqChip
from bivisor.cpu.soft import private as p
from bivisor.cpu.soft.clock import TscFrequency
from bivisor.cpu.soft.eventfds import IrqfdThread, Signals
from bivisor.cpu.soft.turns import Turns
from bivisor.cpu.soft.vcpu import SoftVcpu
from bivisor.errors import EngineError, GuestAddressError
from bivisor.memory import PAGE, Slot
from bivisor.memory.atomics import address_of

_ADDRESS_SPACE = 1 << 52
_FINE_BELOW = 1 << 33
_PIECE = 256 << 20
_MSI_BASE = 0xFEE
_PROT_ALL = 7
_HOOK_INTR = 1 << 0
_HOOK_CODE = 1 << 2
_HOOK_MEM_FETCH_PROT = 1 << 9
_HOOK_MEM_WRITE = 1 << 11


class _DirtyLog:
    """One byte for each page of a slot, set by native code at each store."""

    def __init__(self, slot: Slot) -> None:
        pages = slot.size // PAGE
        self.map = (C.c_uint8 * pages)()
        self.record = (C.c_uint64 * 3)(slot.gpa, pages, C.addressof(self.map))
        self.hook = C.c_size_t()


class _Mapped:
    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.start, self.size = slot.gpa, slot.size
        self.view = slot.region.view[slot.offset : slot.offset + slot.size]
        self.log: _DirtyLog | None = None


class SoftMachine:
    """See `bivisor.cpu.contract.Machine`. `hypercall_abi` says in which registers hypercalls pass their arguments."""

    def __init__(self, library: p.Library, frequency: TscFrequency) -> None:
        self._library = library
        self._frequency = frequency
        self.context = p.Context()
        self.hypercall_abi = "kvm"
        self.irqchip = "none"
        self._chip: IrqChip | None = None
        self.on_interrupt: Callable[[str, int, bool], None] | None = None
        self._mapped: dict[int, _Mapped] = {}
        self._holes: list[tuple[int, int]] = []
        self._vcpu: SoftVcpu | None = None
        self._peers: list[SoftMachine] = []
        self.turns: Turns | None = None
        """Set where there are several processors, each of which has such an object of its own."""
        self._filters: tuple[tuple[int, int], ...] = ()
        self.port_signals, self.mmio_signals = Signals(), Signals()
        self._irqfd_thread: IrqfdThread | None = None
        binding = library.binding
        from unicorn import x86_const

        self.constants = x86_const
        self.uc = binding.Uc(binding.uc.UC_ARCH_X86, binding.uc.UC_MODE_64)
        self.uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_SKYLAKE_CLIENT)
        self._handle = C.cast(self.uc._uch, C.c_void_p).value or 0
        self.uc.ctl_exits_enabled(True)
        self._filled = False
        self._breakpoints: list[C.c_size_t] = []
        self._fed: memoryview | None = None
        self._fed_from = 0
        self._ram: list[tuple[int, int, int, int]] = []
        self._code_map: C.Array[C.c_uint8] = (C.c_uint8 * 1)()
        self._code_bit = 1
        self.context.code_bit = 1

    # ---------------------------------------------------------------- processor

    @property
    def vcpus(self) -> tuple[SoftVcpu, ...]:
        """See `Machine.vcpus`."""
        own = () if self._vcpu is None else (self._vcpu,)
        return (*own, *(vcpu for peer in self._peers for vcpu in peer.vcpus))

    def _check_open(self) -> None:
        if not self._handle:
            raise EngineError("the machine is closed")

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
        if peer.ram_places != self.ram_places:
            raise EngineError("the library has the memory of two processors in different places")
        self.turns.join(peer)
        peer.turns = self.turns
        return peer._vcpu

    @property
    def handle(self) -> int:
        """The library's `uc_struct`."""
        return self._handle

    @property
    def ram_places(self) -> list[tuple[int, int, int]]:
        """(guest-physical address, size, the library's own address) of all RAM."""
        return [(gpa, size, ram) for gpa, size, ram, _ in self._ram]

    @property
    def ram_end(self) -> int:
        """Where RAM ends in the library's own addresses."""
        return max((ram + size for _, size, ram, _ in self._ram), default=0)

    @property
    def translated(self) -> tuple[C.Array[C.c_uint8], int]:
        """The map of pages with code, and its length."""
        return self._code_map, len(self._code_map)

    def share_code_map(self, code_map: C.Array[C.c_uint8], bit: int) -> None:
        """Use a map of pages with code that is not this processor's alone."""
        self._code_map, self._code_bit = code_map, bit
        self.context.code_map, self.context.code_pages = C.addressof(code_map), len(code_map)
        self.context.code_bit = bit

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

    def _hook(self, kind: int, function: int, data: int, begin: int, end: int) -> C.c_size_t:
        hook = C.c_size_t()
        add = self._library.lib.uc_hook_add
        signature = C.CFUNCTYPE(
            C.c_int, C.c_void_p, C.c_void_p, C.c_int, C.c_void_p, C.c_void_p, C.c_uint64, C.c_uint64
        )
        error = signature(C.cast(add, C.c_void_p).value or 0)(
            self._handle, C.addressof(hook), kind, function, data, begin, end
        )
        if error:
            raise EngineError(f"uc_hook_add: Unicorn error {error}")
        return hook

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

    def _map_hole(self, start: int, end: int) -> None:
        entries = self._library.entries
        signature = C.CFUNCTYPE(
            C.c_int, C.c_void_p, C.c_uint64, C.c_size_t, C.c_void_p, C.c_void_p, C.c_void_p, C.c_void_p
        )
        call = signature(C.cast(self._library.lib.uc_mmio_map, C.c_void_p).value or 0)
        error = call(
            self._handle, start, end - start, entries["mmio_read"], start or None, entries["mmio_write"], start or None
        )
        if error:
            raise EngineError(f"uc_mmio_map {start:#x} to {end:#x}: Unicorn error {error}")
        self._holes.append((start, end))

    def fill_holes(self) -> None:
        """Map what is not memory, once the slots of the start are known.

        In pieces, because the library takes a piece away page by page when a slot comes later.
        """
        if self._filled:
            return
        self._filled = True
        start = 0
        for slot in sorted((m.slot for m in self._mapped.values() if not m.slot.readonly), key=lambda slot: slot.gpa):
            self._fill(start, slot.gpa)
            start = slot.gpa + slot.size
        self._fill(start, _ADDRESS_SPACE)
        self._tell_ram()

    def _fill(self, start: int, end: int) -> None:
        while start < end:
            size = _PIECE if start < _FINE_BELOW else start
            stop = min(end, start + size & ~(_PIECE - 1) or end)
            self._map_hole(start, stop)
            start = stop

    def _tell_ram(self) -> None:
        """Give native code the RAM, so that a slow access does not search for it, and the map of pages with code."""
        writable = sorted((m.slot for m in self._mapped.values() if not m.slot.readonly), key=lambda slot: -slot.size)
        self._ram = []
        for slot in writable:
            region = self._library.find_mapping(self._handle, slot.gpa)
            self._ram.append((slot.gpa, slot.size, self._library.ram_address(region), region))
        ranges = [value for gpa, size, _, region in self._ram[:2] for value in (gpa, size, region)]
        pages = max((ram + size for _, size, ram, _ in self._ram), default=0) // PAGE
        if pages > len(self._code_map) and self.turns is None:
            self._code_map = (C.c_uint8 * pages).from_buffer_copy(bytes(self._code_map).ljust(pages, b"\0"))
            self.context.code_map = C.addressof(self._code_map)
            self.context.code_pages = pages
        self.context.ram = (C.c_uint64 * 6)(*ranges)

    def _unmap_hole(self, start: int, end: int) -> None:
        if not self._filled:
            return
        self.context.ram = (C.c_uint64 * 6)()
        for hole in [hole for hole in self._holes if hole[0] < end and start < hole[1]]:
            self._holes.remove(hole)
            self._take_away(hole[0], hole[1] - hole[0])
            if hole[0] < start:
                self._map_hole(hole[0], start)
            if end < hole[1]:
                self._map_hole(end, hole[1])

    def map(self, slot: Slot, *, log_dirty: bool = False) -> None:
        """See `Machine.map`. A read-only slot is read by exit-free MMIO and cannot be executed from."""
        self._check_open()
        if slot.gpa % PAGE or slot.size % PAGE or slot.size <= 0:
            raise EngineError(f"KVM_SET_USER_MEMORY_REGION: {slot.gpa:#x}+{slot.size:#x} is not made of whole pages")
        for other in self._mapped.values():
            if slot.gpa < other.slot.gpa + other.slot.size and other.slot.gpa < slot.gpa + slot.size:
                raise EngineError(f"KVM_SET_USER_MEMORY_REGION: {slot.gpa:#x} overlaps the slot at {other.slot.gpa:#x}")
        mapped = _Mapped(slot)
        if not slot.readonly:
            self._unmap_hole(slot.gpa, slot.gpa + slot.size)
            self.uc.mem_map_ptr(slot.gpa, slot.size, _PROT_ALL, slot.host_address)
        for peer in self._peers:
            peer.map(slot)
        if log_dirty:
            log = mapped.log = _DirtyLog(slot)
            log.hook = self._hook(_HOOK_MEM_WRITE, self._library.entries["stored"], C.addressof(log.record), 1, 0)
            self._forget_translations()
        self._mapped[slot.gpa] = mapped
        if self._filled:
            self._tell_ram()

    def _take_away(self, start: int, size: int) -> None:
        """uc_mem_unmap. To forget code it looks `start` up in the guest's page tables; the fault that it may get is
        nobody's, and must not stay behind for the guest."""
        cpu = None if self._vcpu is None else self._vcpu.cpu
        if cpu is None:
            self.uc.mem_unmap(start, size)
            return
        fields = (cpu.exception_index, cpu.error_code, cpu.is_int, cpu.old_exception)
        before, cr2 = [field.value for field in fields], cpu.cr[2]
        self.uc.mem_unmap(start, size)
        for field, value in zip(fields, before, strict=True):
            field.value = value
        cpu.cr[2] = cr2

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

    def unmap(self, slot: Slot) -> None:
        """See `Machine.unmap`."""
        mapped = self._mapped.pop(slot.gpa, None)
        if mapped is None:
            raise EngineError(f"KVM_SET_USER_MEMORY_REGION: there is no slot at {slot.gpa:#x}")
        for peer in self._peers:
            peer.unmap(slot)
        if mapped.log is not None:
            self._library.lib.uc_hook_del(C.c_void_p(self._handle), mapped.log.hook)
        mapped.view.release()
        self.context.ram = (C.c_uint64 * 6)()
        if not slot.readonly:
            self._take_away(slot.gpa, slot.size)
            if self._filled:
                self._map_hole(slot.gpa, slot.gpa + slot.size)
        if self._filled:
            self._tell_ram()
        self._forget_translations()

    def _forget_translations(self) -> None:
        if self._vcpu is not None:
            self._library.tb_flush(self._vcpu.cpu.cpu)
            self._library.tlb_flush(self._vcpu.cpu.cpu)

    def dirty_pages(self, slot: Slot) -> list[int]:
        """See `Machine.dirty_pages`."""
        mapped = self._mapped.get(slot.gpa)
        if mapped is None or mapped.log is None:
            raise EngineError(f"KVM_GET_DIRTY_LOG: the slot at {slot.gpa:#x} has no dirty log")
        map_ = mapped.log.map
        found = [slot.gpa + PAGE * i for i, dirty in enumerate(bytes(map_)) if dirty]
        C.memset(map_, 0, len(map_))
        return found

    def view(self, gpa: int, length: int) -> memoryview:
        """The bytes of a mapped slot. GuestAddressError where there is none."""
        for mapped in self._mapped.values():
            start = gpa - mapped.start
            if start >= 0 and start + length <= mapped.size:
                return mapped.view[start : start + length]
        raise GuestAddressError(gpa, length)

    def read_number(self, gpa: int, size: int) -> int:
        """The little-endian number of `size` bytes at `gpa`."""
        return int.from_bytes(self.view(gpa, size), "little")

    def write_guest(self, gpa: int, data: bytes) -> bool:
        """Write guest memory on the processor's own behalf; False where there is none."""
        try:
            self.view(gpa, len(data))[:] = data
        except GuestAddressError:
            return False
        return True

    def rom(self, gpa: int, size: int) -> int | None:
        """What a read-only slot has at `gpa`; None where there is no such slot."""
        for mapped in self._mapped.values():
            slot = mapped.slot
            if slot.readonly and slot.gpa <= gpa and gpa + size <= slot.gpa + slot.size:
                start = gpa - slot.gpa
                return int.from_bytes(mapped.view[start : start + size], "little")
        return None

    def invalidate(self, gpa: int, length: int) -> None:
        """See `Machine.invalidate`."""
        vcpu = self._vcpu
        if vcpu is None or length <= 0:
            return
        for peer in self._peers:
            peer.invalidate(gpa, length)
        for start, size, ram, _ in self._ram:
            first = ram + max(gpa, start) - start
            end = ram + min(gpa + length, start + size) - start
            # most pages hold no code, and a look at the map is all that a transfer to them costs
            if first < end and any(self._code_map[first // PAGE : (end - 1) // PAGE + 1]):
                vcpu.post(partial(self._forget_code, first, end))

    def _forget_code(self, first: int, end: int) -> None:
        start = first & ~(PAGE - 1)
        end = -(-end // PAGE) * PAGE
        self._library.invalidate(self._handle, start, end)
        for page in range(start // PAGE, end // PAGE):
            self._code_map[page] &= ~self._code_bit

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
        for mapped in self._mapped.values():
            mapped.view.release()
        self._mapped.clear()
        self._chip = None
        self._handle = 0
        self.uc._uc_finalizer() if hasattr(self.uc, "_uc_finalizer") else None
        del self.uc

    def __enter__(self) -> SoftMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
