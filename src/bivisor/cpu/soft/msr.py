"""RDMSR and WRMSR of a soft processor: two tables, index to function.

What the library keeps itself (SYSCALL, segment bases, PAT, MTRRs) stays there; time, APIC and KVM's clock are ours; the
rest is for the hypervisor above, by exit. Intel SDM volume 4; AMD APM volume 2 appendix A.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from bivisor.abi.x86 import APIC_BASE_BSP, APIC_BASE_ENABLE, APIC_BASE_EXTD, Cr0, Efer, Msr
from bivisor.cpu.soft import clock, x2apic
from bivisor.cpu.soft.lapic import LocalApic
from bivisor.cpu.soft.model import PHYSICAL_BITS
from bivisor.cpu.soft.private import Cpu

LIBRARY_OWNED = frozenset(
    {
        Msr.IA32_SYSENTER_CS,
        Msr.IA32_SYSENTER_ESP,
        Msr.IA32_SYSENTER_EIP,
        Msr.IA32_MISC_ENABLE,
        Msr.IA32_MTRRCAP,
        Msr.IA32_PAT,
        Msr.IA32_MTRR_DEF_TYPE,
        *range(Msr.IA32_MTRR_PHYSBASE0, Msr.IA32_MTRR_PHYSBASE0 + 16),
        Msr.IA32_MTRR_FIX64K_00000,
        Msr.IA32_MTRR_FIX16K_80000,
        Msr.IA32_MTRR_FIX16K_A0000,
        *range(Msr.IA32_MTRR_FIX4K_C0000, Msr.IA32_MTRR_FIX4K_F8000 + 1),
        Msr.IA32_STAR,
        Msr.IA32_LSTAR,
        Msr.IA32_CSTAR,
        Msr.IA32_FMASK,
        Msr.IA32_FS_BASE,
        Msr.IA32_GS_BASE,
        Msr.IA32_KERNEL_GS_BASE,
        Msr.IA32_TSC_AUX,
    }
)
_CANONICAL = frozenset({Msr.IA32_LSTAR, Msr.IA32_CSTAR, Msr.IA32_SYSENTER_ESP, Msr.IA32_SYSENTER_EIP})
_EFER_WRITABLE = int(Efer.SCE | Efer.LME | Efer.LMA | Efer.NX)  # a flag's complement stops at its highest member
# Registers that kernels for this CPUID signature use without asking first; KVM answers the same ones with zero.
_IGNORED = frozenset(
    {
        Msr.IA32_PLATFORM_ID,
        Msr.IA32_BIOS_SIGN_ID,
        Msr.MISC_FEATURES_ENABLES,
        Msr.AMD_HWCR,
        0xC001_001F,  # NB_CFG
        0xC001_0010,  # SYSCFG
        0xC001_0055,  # interrupt pending message
        0xC001_0140,  # OSVW
        0xC001_0141,
        0xC001_1022,  # DC_CFG
        0xC001_1029,  # DE_CFG
        0xC001_102A,  # BU_CFG2
    }
)

USE_LIBRARY = 1
HANDLED = 0


class MsrFault(Exception):
    """The access is answered with #GP."""


class Host(Protocol):
    """What MSRs reach outside the processor."""

    def tsc(self) -> int:
        """The guest's counter."""

    def write_guest(self, gpa: int, data: bytes) -> bool:
        """Write guest memory; False where there is none."""


def canonical(address: int) -> bool:
    """Whether bits 63 to 47 are all the same (48-bit linear addresses)."""
    return (address >> 47) in (0, 0x1_FFFF)


class Msrs:
    """The MSRs of one processor. `read` and `write` return None for one that nobody here knows."""

    def __init__(self, cpu: Cpu, apic: LocalApic, host: Host, khz: Callable[[], int]) -> None:
        self._cpu = cpu
        self._apic = apic
        self._host = host
        self._khz = khz
        self._tsc_adjust = 0
        self._system_time = 0
        self._wall_clock = 0
        self._boot_ticks = self._ticks()
        self.readers: dict[int, Callable[[], int]] = {
            Msr.IA32_TIME_STAMP_COUNTER: host.tsc,
            Msr.IA32_APIC_BASE: lambda: apic.base,
            Msr.IA32_TSC_ADJUST: lambda: self._tsc_adjust,
            Msr.IA32_TSC_DEADLINE: lambda: apic.tsc_deadline,
            Msr.IA32_EFER: lambda: cpu.efer.value,
            clock.MSR_KVM_SYSTEM_TIME: lambda: self._system_time,
            clock.MSR_KVM_SYSTEM_TIME_NEW: lambda: self._system_time,
            clock.MSR_KVM_WALL_CLOCK: lambda: self._wall_clock,
            clock.MSR_KVM_WALL_CLOCK_NEW: lambda: self._wall_clock,
            **dict.fromkeys(_IGNORED, lambda: 0),
        }
        self.writers: dict[int, Callable[[int], None]] = {
            Msr.IA32_TIME_STAMP_COUNTER: self._write_tsc,
            Msr.IA32_APIC_BASE: self._write_apic_base,
            Msr.IA32_TSC_ADJUST: self._write_tsc_adjust,
            Msr.IA32_TSC_DEADLINE: apic.set_tsc_deadline,
            Msr.IA32_EFER: self._write_efer,
            clock.MSR_KVM_SYSTEM_TIME: self._write_system_time,
            clock.MSR_KVM_SYSTEM_TIME_NEW: self._write_system_time,
            clock.MSR_KVM_WALL_CLOCK: self._write_wall_clock,
            clock.MSR_KVM_WALL_CLOCK_NEW: self._write_wall_clock,
            **dict.fromkeys(_IGNORED, lambda _: None),
        }
        for index in range(0x800, 0x840):
            self.readers[index] = self._x2apic_reader(index)
            self.writers[index] = self._x2apic_writer(index)

    def _x2apic_reader(self, index: int) -> Callable[[], int]:
        def read() -> int:
            try:
                return x2apic.read_msr(self._apic, index)
            except x2apic.ApicError:
                raise MsrFault from None

        return read

    def _x2apic_writer(self, index: int) -> Callable[[int], None]:
        def write(value: int) -> None:
            try:
                x2apic.write_msr(self._apic, index, value)
            except x2apic.ApicError:
                raise MsrFault from None

        return write

    @staticmethod
    def check_library_write(index: int, value: int) -> None:
        """The checks of the SDM that the library leaves out."""
        if index in _CANONICAL and not canonical(value):
            raise MsrFault
        if index == Msr.IA32_PAT and any(value >> 8 * i & 0xFF in (2, 3) or value >> 8 * i & 0xF8 for i in range(8)):
            raise MsrFault

    def _ticks(self) -> int:
        """The host's counter, which the guest cannot set."""
        return self._host.tsc() - self._cpu.tsc_offset.value & (1 << 64) - 1

    def _uptime(self) -> int:
        """Nanoseconds since the processor was made."""
        return max(0, self._ticks() - self._boot_ticks) * 1_000_000 // self._khz()

    def _write_tsc(self, value: int) -> None:
        delta = value - self._host.tsc()
        self._tsc_adjust = self._tsc_adjust + delta & (1 << 64) - 1
        self._cpu.tsc_offset.value += delta

    def _write_tsc_adjust(self, value: int) -> None:
        self._cpu.tsc_offset.value += value - self._tsc_adjust
        self._tsc_adjust = value

    def _write_apic_base(self, value: int) -> None:
        if value >> PHYSICAL_BITS or value & 0x2FF & ~APIC_BASE_BSP:
            raise MsrFault
        enabled, extended = value & APIC_BASE_ENABLE, value & APIC_BASE_EXTD
        was_enabled, was_extended = self._apic.base & APIC_BASE_ENABLE, self._apic.base & APIC_BASE_EXTD
        if (extended and not enabled) or (was_extended and enabled and not extended) or (extended and not was_enabled):
            raise MsrFault  # SDM 11.12.5: these transitions are not allowed
        if not extended and was_extended:
            self._apic.reset()
        self._apic.base = value

    def _write_efer(self, value: int) -> None:
        cpu = self._cpu
        if value & ~_EFER_WRITABLE:
            raise MsrFault
        old = cpu.efer.value
        if (value ^ old) & Efer.LME and cpu.cr[0] & Cr0.PG:
            raise MsrFault
        cpu.efer.value = value & ~Efer.LMA | old & Efer.LMA
        if (value ^ old) & Efer.NX:
            cpu.library.tlb_flush(cpu.cpu)

    def _write_system_time(self, value: int) -> None:
        self._system_time = value
        if value & 1:
            self._host.write_guest(value & ~1, clock.time_info(self._khz(), self._host.tsc(), self._uptime()))

    def _write_wall_clock(self, value: int) -> None:
        self._wall_clock = value
        self._host.write_guest(value, clock.wall_clock(time.time_ns() - self._uptime()))
