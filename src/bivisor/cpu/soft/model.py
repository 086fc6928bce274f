"""What a soft processor says of itself: CPUID leaves with only those features that TCG carries out.

Intel SDM volume 2 "CPUID", AMD APM volume 3 appendix E; the hypervisor leaves are those of Linux's
Documentation/virt/kvm/x86/cpuid.rst and, for the frequencies in leaf 0x40000010, the convention that VMware began.
"""

from __future__ import annotations

import struct

from bivisor.abi.x86 import FEATURES
from bivisor.cpu.registers import CpuidEntry
from bivisor.cpu.soft.lapic import TIMER_HZ

KVM_FEATURE_NOP_IO_DELAY = 1 << 1
KVM_FEATURE_CLOCKSOURCE2 = 1 << 3
KVM_FEATURE_CLOCKSOURCE_STABLE = 1 << 24

PHYSICAL_BITS = 40

_ARAT = 1 << 2  # the local APIC's timer runs always (SDM volume 2, CPUID leaf 6)

# Left out although TCG has them: SMAP ends a block at each STAC and CLAC, ERMS makes Linux copy bytewise, SEP and XSAVE
# are not whole in this library, MCE and MCA would only be probed for.
_FEATURES = """
    fpu de pse tsc msr pae cx8 apic mtrr pge cmov pat pse36 clflush mmx fxsr sse sse2
    sse3 pclmulqdq ssse3 cx16 sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline aes rdrand hypervisor
    fsgsbase tsc_adjust bmi1 smep bmi2 adx
    syscall nx pdpe1gb rdtscp lm lahf_lm abm invariant_tsc
""".split()
_VENDOR = b"AuthenticAMD"
_BRAND = b"Bivisor soft processor (TCG)".ljust(48, b"\0")
_SIGNATURE = 0x0006_0FB1  # family 15, model 107, stepping 1: what QEMU's own TCG model says, so kernels know its quirks


def _words(text: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(text) // 4}I", text)


def _bits(leaf: int, register: str) -> int:
    value = 0
    for name in _FEATURES:
        at = FEATURES[name]
        if (at.leaf, at.register) == (leaf, register):
            value |= 1 << at.bit
    return value


def cpuid_model(tsc_khz: int, apic_id: int = 0) -> tuple[CpuidEntry, ...]:
    """The CPUID leaves of a soft processor whose time-stamp counter runs at `tsc_khz`."""
    b, d, c = _words(_VENDOR)
    brand = _words(_BRAND)
    kvm = _words(b"KVMKVMKVM\0\0\0")
    features = KVM_FEATURE_NOP_IO_DELAY | KVM_FEATURE_CLOCKSOURCE2 | KVM_FEATURE_CLOCKSOURCE_STABLE
    mhz = tsc_khz // 1000
    return (
        CpuidEntry(0, None, 0x16, b, c, d),
        CpuidEntry(1, None, _SIGNATURE, apic_id << 24 | 1 << 16 | 8 << 8, _bits(1, "ecx"), _bits(1, "edx")),
        CpuidEntry(6, None, _ARAT, 0, 0, 0),
        CpuidEntry(7, 0, 0, _bits(7, "ebx"), _bits(7, "ecx"), 0),
        CpuidEntry(0x15, None, 1, 1, tsc_khz * 1000 & 0xFFFF_FFFF, 0),
        CpuidEntry(0x16, None, mhz, mhz, 100, 0),
        CpuidEntry(0x4000_0000, None, 0x4000_0010, *kvm),
        CpuidEntry(0x4000_0001, None, features, 0, 0, 0),
        CpuidEntry(0x4000_0010, None, tsc_khz, TIMER_HZ // 1000, 0, 0),
        CpuidEntry(0x8000_0000, None, 0x8000_0008, b, c, d),
        CpuidEntry(0x8000_0001, None, _SIGNATURE, 0, _bits(0x8000_0001, "ecx"), _bits(0x8000_0001, "edx")),
        *(CpuidEntry(0x8000_0002 + i, None, *brand[4 * i : 4 * i + 4]) for i in range(3)),
        CpuidEntry(0x8000_0005, None, 0x01FF_01FF, 0x01FF_01FF, 0x4002_0140, 0x4002_0140),
        CpuidEntry(0x8000_0006, None, 0, 0x4200_4200, 0x0200_8140, 0),
        CpuidEntry(0x8000_0007, None, 0, 0, 0, _bits(0x8000_0007, "edx")),
        CpuidEntry(0x8000_0008, None, PHYSICAL_BITS | 48 << 8, 0, 0, 0),
    )


class CpuidTable:
    """Answers CPUID from entries, with the rules for leaves that are not there."""

    def __init__(self, entries: tuple[CpuidEntry, ...]) -> None:
        self.entries = entries
        self._exact = {(e.leaf, e.subleaf): (e.eax, e.ebx, e.ecx, e.edx) for e in entries}

    def look_up(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX: zeros for a leaf that is not there, as AMD's processors answer."""
        exact = self._exact
        found = exact.get((leaf, None))
        if found is None:
            found = exact.get((leaf, subleaf))
        return found or (0, 0, 0, 0)
