"""What the guest's CPUID says: the engine's features, and which processor of how many this one is.

Intel SDM volume 2 "CPUID" (leaves 1, 4, 0xB, 0x1F); Linux's Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from dataclasses import replace

from bivisor.cpu.contract import Engine, Vcpu
from bivisor.cpu.registers import CpuidEntry

_HYPERVISOR = 1 << 31
_TSC_DEADLINE = 1 << 24
_X2APIC = 1 << 21
_HTT = 1 << 28
_SMT, _CORE = 1, 2


def guest_cpuid(engine: Engine, index: int, cpus: int, vcpu: Vcpu) -> tuple[CpuidEntry, ...]:
    """The entries for processor `index` of `cpus`, each a core of one package."""
    if engine.name == "soft":
        return vcpu.get_cpuid()
    return tuple(_for_processor(entry, index, cpus) for entry in engine.supported_cpuid())


def _for_processor(entry: CpuidEntry, index: int, cpus: int) -> CpuidEntry:
    match entry.leaf:
        case 1:
            ebx = entry.ebx & 0x0000_FFFF | cpus << 16 | index << 24
            edx = entry.edx | _HTT if cpus > 1 else entry.edx & ~_HTT
            return replace(entry, ebx=ebx, ecx=entry.ecx | _HYPERVISOR | _TSC_DEADLINE | _X2APIC, edx=edx)
        case 4:
            return replace(entry, eax=entry.eax & 0x03FF_FFFF & ~(0xFFF << 14) | cpus - 1 << 26)
        case 0xB | 0x1F:
            shift = (cpus - 1).bit_length()
            level = entry.subleaf or 0
            shape = {0: (0, 1, _SMT), 1: (shift, cpus, _CORE)}.get(level, (0, 0, 0))
            return replace(entry, eax=shape[0], ebx=shape[1], ecx=level | shape[2] << 8, edx=index)
        case 0x8000_0008:
            return replace(entry, ecx=entry.ecx & ~0xF0FF | cpus - 1)
        case 0x8000_001E:
            return replace(entry, eax=index, ebx=entry.ebx & ~0xFF | index, ecx=0)
        case _:
            return entry
