"""A virtual machine of /dev/kvm: memory slots, interrupt controllers in the kernel, processors (KVM API 4.2 on)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterable

from bivisor.abi import linux_kvm as abi
from bivisor.abi.linux_kvm import Cap, Ioctl, IoeventfdFlag, MemoryFlag
from bivisor.cpu.contract import IrqChip
from bivisor.cpu.kvm import state
from bivisor.cpu.kvm.calls import call
from bivisor.cpu.kvm.stats import Statistics
from bivisor.cpu.kvm.vcpu import KvmVcpu
from bivisor.errors import EngineError, UsageError
from bivisor.memory import PAGE, Slot

IDENTITY_MAP = 0xFEFF_C000
"""Where KVM keeps the page table for real mode on Intel processors without unrestricted guests: one page."""

TSS = 0xFEFF_D000
"""Where it keeps the task state for the same purpose: three pages. A memory map should keep these four free."""

XEN_HYPERCALL_PORT = 0xE6
"""A port that no PC has a device at, for guests of Xen whose VMCALL the kernel would answer."""

_VMCALL, _VMMCALL = b"\x0f\x01\xc1", b"\x0f\x01\xd9"
_OUT_IMM8_EAX, _NOP = 0xE7, 0x90
_GENUINE_INTEL_EBX = int.from_bytes(b"Genu", "little")

CpuidModel = Callable[[int, bool], bytearray]
"""The kvm_cpuid2 of processor `index`, with a local APIC or without."""


class KvmMachine:
    """See `contract.Machine`. `fd` is the VM's descriptor, which the machine owns from now on."""

    def __init__(self, fd: int, caps: dict[Cap, int], run_size: int, cpuid: CpuidModel) -> None:
        self._fd = fd
        self._caps = caps
        self._run_size = run_size
        self._cpuid = cpuid
        self._slots: dict[Slot, tuple[int, MemoryFlag]] = {}
        self._free: list[int] = []
        self._vcpus: dict[int, KvmVcpu] = {}
        self._irqchip = "none"
        self.on_interrupt: Callable[[str, int, bool], None] | None = None
        self._hypercall_port: int | None = None
        self._statistics: Statistics | None = None
        if caps[Cap.SET_IDENTITY_MAP_ADDR]:
            call(fd, Ioctl.SET_IDENTITY_MAP_ADDR, struct.pack("<Q", IDENTITY_MAP))
        if caps[Cap.SET_TSS_ADDR]:
            call(fd, Ioctl.SET_TSS_ADDR, TSS)
        wanted = abi.MSR_EXIT_REASON_UNKNOWN | abi.MSR_EXIT_REASON_FILTER
        call(fd, Ioctl.ENABLE_CAP, abi.ENABLE_CAP.pack(Cap.X86_USER_SPACE_MSR, 0, wanted, 0, 0, 0))

    @property
    def vcpus(self) -> tuple[KvmVcpu, ...]:
        """The processors created so far."""
        return tuple(self._vcpus.values())

    @property
    def irqchip(self) -> str:
        """ "none", "kernel", or "user" after `create_local_apics`."""
        return self._irqchip

    @property
    def halts_inside(self) -> bool:
        """With local APICs: the kernel keeps what halts."""
        return self._irqchip != "none"

    def create_irqchip(self) -> None:
        """KVM API 4.24 KVM_CREATE_IRQCHIP and 4.71 KVM_CREATE_PIT2, the speaker port (0x61) with it."""
        call(self._fd, Ioctl.CREATE_IRQCHIP)
        call(self._fd, Ioctl.CREATE_PIT2, abi.PIT_CONFIG.pack(abi.PIT_SPEAKER_DUMMY))
        self._irqchip = "kernel"

    def create_local_apics(self) -> None:
        """KVM API 7.5 KVM_CAP_SPLIT_IRQCHIP: local APICs in the kernel, and neither 8259 nor I/O APIC nor 8254."""
        call(self._fd, Ioctl.ENABLE_CAP, abi.ENABLE_CAP.pack(Cap.SPLIT_IRQCHIP, 0, 0, 0, 0, 0))
        self._irqchip = "user"

    def connect_irqchip(self, chip: IrqChip) -> None:
        """EngineError: the interrupt controllers are in the kernel."""
        raise EngineError("kvm has the 8259 and the I/O APIC in the kernel: there is nothing to connect")

    def set_intr(self, level: bool) -> None:
        """EngineError: the interrupt controllers are in the kernel."""
        raise EngineError("kvm has the 8259 in the kernel: its INTR line is not reachable")

    def create_vcpu(self, index: int = 0) -> KvmVcpu:
        """KVM API 4.7 KVM_CREATE_VCPU. Its CPUID is what the host supports until `set_cpuid`. With interrupt
        controllers, processor 0 runs from the start and every other waits in `run()` for INIT and SIPI."""
        fd = call(self._fd, Ioctl.CREATE_VCPU, index)
        try:
            model = self._cpuid(index, self._irqchip != "none")
            vcpu = KvmVcpu(fd, index, self._run_size, model, self._forget)
            vcpu.hypercalls_by_port(self._hypercall_port)
        except BaseException:
            os.close(fd)
            raise
        self._vcpus[index] = vcpu
        return vcpu

    def _forget(self, vcpu: KvmVcpu) -> None:
        self._vcpus.pop(vcpu.index, None)

    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def between_blocks(self, work: Callable[[], None]) -> None:
        """See `Machine.between_blocks`: the kernel changes memory slots at any time."""
        work()

    def feed_port(self, port: int, data: memoryview | None) -> None:
        """See `Machine.feed_port`: a string instruction is one exit here, so there is nothing to gain."""

    def taken_from_port(self) -> int:
        """See `Machine.taken_from_port`."""
        return 0

    def gather_strings(self) -> None:
        """See `Machine.gather_strings`: they always do here."""

    def set_a20(self, enabled: bool) -> None:
        """See `Machine.set_a20`: KVM has no such gate."""

    def map(self, slot: Slot, *, log_dirty: bool = False) -> None:
        """KVM API 4.35 KVM_SET_USER_MEMORY_REGION."""
        if slot in self._slots:
            raise UsageError(f"memory slot {slot.gpa:#x}+{slot.size:#x} is mapped already")
        number = self._free[-1] if self._free else len(self._slots)
        flags = MemoryFlag(0)
        if log_dirty:
            flags |= MemoryFlag.LOG_DIRTY_PAGES
        if slot.readonly:
            flags |= MemoryFlag.READONLY
        self._set_region(number, flags, slot.gpa, slot.size, slot.host_address)
        self._slots[slot] = (number, flags)
        if self._free:
            self._free.pop()

    def unmap(self, slot: Slot) -> None:
        """See `contract.Machine.unmap`. UsageError where it is not mapped."""
        number, _ = self._number(slot)
        self._set_region(number, MemoryFlag(0), slot.gpa, 0, 0)
        del self._slots[slot]
        self._free.append(number)

    def _number(self, slot: Slot) -> tuple[int, MemoryFlag]:
        try:
            return self._slots[slot]
        except KeyError:
            raise UsageError(f"memory slot {slot.gpa:#x}+{slot.size:#x} is not mapped") from None

    def _set_region(self, number: int, flags: MemoryFlag, gpa: int, size: int, address: int) -> None:
        region = abi.USERSPACE_MEMORY_REGION.pack(number, flags, gpa, size, address)
        call(self._fd, Ioctl.SET_USER_MEMORY_REGION, region)

    def dirty_pages(self, slot: Slot) -> list[int]:
        """KVM API 4.8 KVM_GET_DIRTY_LOG. UsageError where the slot was mapped without `log_dirty`."""
        number, flags = self._number(slot)
        if MemoryFlag.LOG_DIRTY_PAGES not in flags:
            raise UsageError(f"memory slot {slot.gpa:#x}+{slot.size:#x} was mapped without log_dirty")
        bitmap = (ctypes.c_uint64 * -(-(slot.size // PAGE) // 64))()
        call(self._fd, Ioctl.GET_DIRTY_LOG, abi.DIRTY_LOG.pack(number, ctypes.addressof(bitmap)))
        found = []
        for position, word in enumerate(bitmap):
            while word:
                lowest = word & -word
                found.append(slot.gpa + (position * 64 + lowest.bit_length() - 1) * PAGE)
                word ^= lowest
        return found

    def invalidate(self, gpa: int, length: int) -> None:
        """Nothing to do: the processor sees what the host writes."""

    # ── interrupts and notifications ────────────────────────────────────────────────────────────────────────────────

    def set_irq(self, gsi: int, level: bool) -> None:
        """KVM API 4.25 KVM_IRQ_LINE. EngineError without `create_irqchip`."""
        if self.on_interrupt is not None:
            self.on_interrupt("line", gsi, level)
        call(self._fd, Ioctl.IRQ_LINE, abi.IRQ_LEVEL.pack(gsi, level))

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM API 4.70 KVM_SIGNAL_MSI. False where no local APIC took it."""
        if self.on_interrupt is not None:
            self.on_interrupt("msi", data, True)
        message = bytearray(abi.MSI.pack(address & 0xFFFF_FFFF, address >> 32, data, 0))
        return call(self._fd, Ioctl.SIGNAL_MSI, message) > 0

    def ioeventfd(self, fd: int, address: int, length: int, *, pio: bool = False, datamatch: int | None = None) -> None:
        """KVM API 4.59 KVM_IOEVENTFD."""
        self._ioeventfd(fd, address, length, pio, datamatch, IoeventfdFlag(0))

    def remove_ioeventfd(
        self, fd: int, address: int, length: int, *, pio: bool = False, datamatch: int | None = None
    ) -> None:
        """Undo `ioeventfd`. EngineError where there is none."""
        self._ioeventfd(fd, address, length, pio, datamatch, IoeventfdFlag.DEASSIGN)

    def _ioeventfd(
        self, fd: int, address: int, length: int, pio: bool, datamatch: int | None, flags: IoeventfdFlag
    ) -> None:
        if pio:
            flags |= IoeventfdFlag.PIO
        if datamatch is not None:
            flags |= IoeventfdFlag.DATAMATCH
        call(self._fd, Ioctl.IOEVENTFD, abi.IOEVENTFD.pack(datamatch or 0, address, length, fd, flags))

    def irqfd(self, fd: int, gsi: int) -> None:
        """KVM API 4.75 KVM_IRQFD. EngineError without `create_irqchip`."""
        call(self._fd, Ioctl.IRQFD, abi.IRQFD.pack(fd, gsi, 0, 0))

    def remove_irqfd(self, fd: int, gsi: int) -> None:
        """Undo `irqfd`."""
        call(self._fd, Ioctl.IRQFD, abi.IRQFD.pack(fd, gsi, abi.IRQFD_FLAG_DEASSIGN, 0))

    # ── what comes out ──────────────────────────────────────────────────────────────────────────────────────────────

    def filter_msrs(self, ranges: Iterable[tuple[int, int]]) -> None:
        """KVM API 4.97 KVM_X86_SET_MSR_FILTER. Replaces the ranges that were set before; UsageError for more than 16
        (one counts for each 12,288 MSRs). The x2APIC's registers, 0x800 to 0x8ff, cannot be filtered."""
        step = abi.MSR_FILTER_MAX_BITMAP_SIZE * 8
        parts = [
            (first + done, min(step, count - done)) for first, count in ranges for done in range(0, count, step)
        ]  # fmt: skip
        if len(parts) > abi.MSR_FILTER_MAX_RANGES:
            raise UsageError(f"{len(parts)} ranges of MSRs: KVM filters at most {abi.MSR_FILTER_MAX_RANGES}")
        denied = (ctypes.c_uint8 * abi.MSR_FILTER_MAX_BITMAP_SIZE)()  # all zero: none of them is left to the kernel
        both = abi.MSR_FILTER_READ | abi.MSR_FILTER_WRITE
        data = abi.MSR_FILTER.pack(abi.MSR_FILTER_DEFAULT_ALLOW)
        data += b"".join(
            abi.MSR_FILTER_RANGE.pack(both, count, first, ctypes.addressof(denied)) for first, count in parts
        )
        full = abi.MSR_FILTER.size + abi.MSR_FILTER_MAX_RANGES * abi.MSR_FILTER_RANGE.size
        call(self._fd, Ioctl.X86_SET_MSR_FILTER, data.ljust(full, b"\0"))

    def exit_on_cpuid(self, wanted: bool = True) -> None:
        """EngineError: the kernel answers CPUID itself."""
        if wanted:
            raise EngineError("kvm answers CPUID in the kernel: set what it says with set_cpuid")

    def intercept_xen_hypercalls(self, msr: int) -> None:
        """KVM API 4.66 KVM_XEN_HVM_CONFIG: VMCALL and VMMCALL come as `Hypercall` exits of abi "xen", and a write
        to `msr` as a `WrMsr` exit. EngineError where KVM_CAP_XEN_HVM is missing."""
        config = abi.XEN_HVM_CONFIG.pack(abi.XEN_HVM_CONFIG_INTERCEPT_HCALL, msr, 0, 0, 0, 0)
        call(self._fd, Ioctl.XEN_HVM_CONFIG, config)

    def take_xen_hypercalls(self, msr: int) -> bytes:
        """See `Machine.take_xen_hypercalls`: VMCALL or VMMCALL where KVM_CAP_XEN_HVM intercepts them, else an OUT."""
        self.filter_msrs([(msr, 1)])
        if self._caps[Cap.XEN_HVM] & abi.XEN_HVM_CONFIG_INTERCEPT_HCALL:
            self.intercept_xen_hypercalls(msr)
            vendor = next(entry for entry in state.unpack_cpuid(self._cpuid(0, True)) if entry.leaf == 0)
            return _VMCALL if vendor.ebx == _GENUINE_INTEL_EBX else _VMMCALL
        self.hypercalls_by_port(XEN_HYPERCALL_PORT)
        return bytes((_OUT_IMM8_EAX, XEN_HYPERCALL_PORT, _NOP))

    def hypercalls_by_port(self, port: int) -> None:
        """Let a write of 4 bytes to `port` come as a `Hypercall` exit of abi "xen", with its number in EAX: for where
        VMCALL does not come out. Call it before the first processor. EngineError without KVM_CAP_SYNC_REGS."""
        wanted = abi.SYNC_X86_REGS | abi.SYNC_X86_SREGS
        if call(self._fd, Ioctl.CHECK_EXTENSION, Cap.SYNC_REGS) & wanted != wanted:
            raise EngineError("this kernel's KVM lacks KVM_CAP_SYNC_REGS (Linux 4.17 or later has it)")
        self._hypercall_port = port

    def statistics(self) -> dict[str, int]:
        """The kernel's counters: of the VM under `vm.`, of each processor under `vcpu0.` and so on (KVM API 4.133).
        EngineError where the kernel has none. The first call waits for processors that run: KVM_GET_STATS_FD does."""
        if self._statistics is None:
            self._statistics = Statistics(self._fd)
        found = {f"vm.{name}": value for name, value in self._statistics.read().items()}
        for vcpu in self.vcpus:
            found.update({f"vcpu{vcpu.index}.{name}": value for name, value in vcpu.statistics().items()})
        return found

    def close(self) -> None:
        """See `contract.Machine.close`. A second call does nothing."""
        if self._fd < 0:
            return
        for vcpu in self.vcpus:
            vcpu.close()
        if self._statistics is not None:
            self._statistics.close()
        self._slots.clear()
        fd, self._fd = self._fd, -1
        os.close(fd)

    def __enter__(self) -> KvmMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
