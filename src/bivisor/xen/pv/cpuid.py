"""What CPUID says in a PV domain: the features that a kernel without privilege can use, and Xen's leaves."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

from bivisor.abi.x86 import FEATURES
from bivisor.abi.xen import xen as abi
from bivisor.cpu.contract import Engine, Vcpu
from bivisor.cpu.registers import CpuidEntry
from bivisor.xen.clock import tsc_scale
from bivisor.xen.cpuid import domain_cpuid

_HIDDEN: Final = """
    vme pse mce mtrr pge mca pse36 monitor vmx pcid x2apic tsc_deadline xsave osxsave fsgsbase smep smap
    pdpe1gb rdtscp tsc_adjust invpcid umip pku la57 svm
""".split()
_SIGNATURE = struct.unpack("<3I", b"XenVMMXenVMM")
_PRESERVE_AD = 1  # XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD
_TSC_NATIVE = 0
_HYPERVISOR = range(abi.CPUID_BASE, abi.CPUID_BASE + 0x100)


def _masks() -> dict[tuple[int, str], int]:
    masks: dict[tuple[int, str], int] = {}
    for name in _HIDDEN:
        bit = FEATURES.get(name)
        if bit is not None:
            key = (bit.leaf, bit.register)
            masks[key] = masks.get(key, 0) | 1 << bit.bit
    return masks


def pv_cpuid(engine: Engine, vcpu: Vcpu, vcpus: int, domid: int, address_bits: int) -> tuple[CpuidEntry, ...]:
    """The leaves of a processor of domain `domid`, which has `vcpus`, and machine addresses of `address_bits`."""
    khz = engine.tsc_khz()
    multiplier, shift = tsc_scale(khz)
    masks = _masks()
    own = []
    for entry in domain_cpuid(engine, vcpu, vcpus, domid):
        if entry.leaf in _HYPERVISOR:
            continue
        for register in ("ebx", "ecx", "edx"):
            mask = masks.get((entry.leaf, register), 0)
            if mask:
                entry = replace(entry, **{register: getattr(entry, register) & ~mask})
        own.append(entry)
    base = abi.CPUID_BASE
    return (
        *own,
        CpuidEntry(base, None, base + 5, *_SIGNATURE),
        CpuidEntry(base + 1, None, abi.XEN_VERSION, 0, 0, 0),
        CpuidEntry(base + 2, None, 1, abi.HYPERCALL_PAGE_MSR, _PRESERVE_AD, 0),
        CpuidEntry(base + 3, 0, 0, _TSC_NATIVE, khz, 0),
        CpuidEntry(base + 3, 1, 0, 0, multiplier, shift & 0xFFFF_FFFF),
        CpuidEntry(base + 3, 2, khz, 0, 0, 0),
        CpuidEntry(base + 5, None, address_bits, 0, 0, 0),
    )
