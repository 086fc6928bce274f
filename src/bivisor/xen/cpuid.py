"""What CPUID says in a Xen domain: the processor's own leaves, and Xen's at 0x40000000 (arch-x86/cpuid.h).

An engine's own hypervisor leaves are taken away: a guest that finds two hypervisors may talk to the wrong one.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from bivisor.abi.x86 import FEATURES
from bivisor.abi.xen import xen as abi
from bivisor.cpu.contract import Engine, Vcpu
from bivisor.cpu.registers import CpuidEntry
from bivisor.cpu.topology import guest_cpuid
from bivisor.xen.clock import tsc_scale

_SIGNATURE = struct.unpack("<3I", b"XenVMMXenVMM")
_HYPERVISOR_LEAVES = range(0x4000_0000, 0x4001_0000)
_TSC_NATIVE = 0  # XEN_CPUID_TSC_MODE_*: the guest reads the counter itself
_HVM_VCPU_ID, _HVM_DOMID, _HVM_UPCALL_VECTOR = 1 << 3, 1 << 4, 1 << 6  # XEN_HVM_CPUID_*_PRESENT
_TSC_DEADLINE = 1 << FEATURES["tsc_deadline"].bit


def domain_cpuid(engine: Engine, vcpu: Vcpu, cpus: int, domid: int) -> tuple[CpuidEntry, ...]:
    """The leaves of processor `vcpu`, one of `cpus` of domain `domid`."""
    khz = engine.tsc_khz()
    multiplier, shift = tsc_scale(khz)
    base = abi.CPUID_BASE
    own = (
        _without_deadline_timer(entry)
        for entry in guest_cpuid(engine, vcpu.index, cpus, vcpu)
        if entry.leaf not in _HYPERVISOR_LEAVES
    )
    return (
        *own,
        CpuidEntry(base, None, base + 5, *_SIGNATURE),
        CpuidEntry(base + 1, None, abi.XEN_VERSION, 0, 0, 0),
        CpuidEntry(base + 2, None, 1, abi.HYPERCALL_PAGE_MSR, 0, 0),
        CpuidEntry(base + 3, 0, 0, _TSC_NATIVE, khz, 0),
        CpuidEntry(base + 3, 1, 0, 0, multiplier, shift & 0xFFFF_FFFF),
        CpuidEntry(base + 3, 2, khz, 0, 0, 0),
        CpuidEntry(base + 4, None, _HVM_VCPU_ID | _HVM_DOMID | _HVM_UPCALL_VECTOR, vcpu.index, domid, 0),
    )


def _without_deadline_timer(entry: CpuidEntry) -> CpuidEntry:
    """Xen 4.17 does not offer the local APIC's TSC deadline to a guest."""
    return replace(entry, ecx=entry.ecx & ~_TSC_DEADLINE) if entry.leaf == 1 else entry
