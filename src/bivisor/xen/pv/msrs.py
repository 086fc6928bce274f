"""What a PV guest finds in MSRs that it reads as if it had the machine, and which of them it may write to no effect."""

from __future__ import annotations

from typing import Final

from bivisor.abi.x86 import Msr

_PAT: Final = 0x0005_0100_0704_0106  # what Xen has there (arch-x86/xen.h, "PAT")
READABLE: Final[dict[int, int]] = {
    Msr.IA32_EFER: 0xD01,
    Msr.IA32_PAT: _PAT,
    Msr.IA32_APIC_BASE: 0xFEE0_0900,
    Msr.IA32_MTRRCAP: 0,
    Msr.IA32_BIOS_SIGN_ID: 0,
    Msr.IA32_PLATFORM_ID: 0,
    Msr.MISC_FEATURES_ENABLES: 0,
    Msr.IA32_MISC_ENABLE: 0,
    Msr.AMD_HWCR: 0,
    0xC001_1029: 0,
    0xC001_0055: 0,
    0xC001_001F: 0,
}
IGNORED: Final = frozenset({Msr.IA32_PAT, Msr.IA32_EFER, Msr.IA32_BIOS_SIGN_ID, Msr.AMD_HWCR, 0xC001_1029})
