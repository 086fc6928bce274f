"""Kernels that an HVM domain has loaded by itself, on a KVM which does not let their VMCALL and VMMCALL out.

Nobody sees such a kernel arrive: a boot loader reads it, and it unpacks and moves itself. But a 64-bit kernel turns on
SYSCALL before it does anything else that matters (EFER.SCE; firmware and boot loaders have no use for it), and runs in
its own code by then. There its hypercalls are replaced, as those of a PVH domain's kernel are when it is loaded.
"""

from __future__ import annotations

from typing import Final

from bivisor.abi.x86 import Cr0, Efer, Msr
from bivisor.cpu.contract import Vcpu
from bivisor.errors import EngineError
from bivisor.memory import GuestMemory
from bivisor.xen.hypercall_entry import replace_hypercalls

EFER: Final[int] = Msr.IA32_EFER
REACH: Final = 32 << 20
"""How far from the instruction that sets EFER.SCE the kernel's hypercalls are looked for, either way, in bytes."""
_STEP: Final = 2 << 20
"""A kernel lies at a multiple of it, in one piece."""


def read_efer(vcpu: Vcpu) -> int:
    """What RDMSR says of EFER."""
    return vcpu.get_msrs([EFER])[EFER]


def write_efer(vcpu: Vcpu, value: int) -> bool:
    """WRMSR of EFER; False for #GP: bits that the processor does not have, or EFER.LME while there is paging (SDM 3A
    2.2.1, AMD APM 2 3.1.7)."""
    if (value ^ read_efer(vcpu)) & Efer.LME and vcpu.get_sregs().cr0 & Cr0.PG:
        return False
    try:
        vcpu.set_msrs({EFER: value})
    except EngineError:
        return False
    return True


def is_kernel_start(before: int, after: int) -> bool:
    """Whether this change of EFER is a 64-bit kernel's."""
    return bool(before & Efer.LMA and after & ~before & Efer.SCE)


def replace_around(memory: GuestMemory, gpa: int, instruction: bytes) -> int:
    """Put `instruction` in place of the hypercalls of the kernel that runs at `gpa`; how many there were."""
    middle = gpa - gpa % _STEP
    return sum(
        replace_hypercalls(memory, at, _STEP, instruction)
        for at in range(max(0, middle - REACH), middle + REACH, _STEP)
        if memory.contains(at, _STEP)
    )
