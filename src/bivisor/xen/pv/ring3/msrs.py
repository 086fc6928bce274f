"""The MSRs of a PV domain's processor on engine `kvm`, as far as its kernel may ask for them, and XCR0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bivisor.abi.x86 import Msr
from bivisor.cpu.contract import Vcpu
from bivisor.errors import EngineError
from bivisor.xen.pv.msrs import IGNORED, READABLE

_BASES: Final = (Msr.IA32_FS_BASE, Msr.IA32_GS_BASE, Msr.IA32_KERNEL_GS_BASE)


class Msrs:
    """Those of `vcpu`, whose counter is `tsc()`. For its own thread."""

    def __init__(self, vcpu: Vcpu, tsc: Callable[[], int]) -> None:
        self._vcpu = vcpu
        self._tsc = tsc

    def read(self, index: int) -> int | None:
        """RDMSR. None for one that is not there."""
        if index == Msr.IA32_TIME_STAMP_COUNTER:
            return self._tsc()
        if index in _BASES:
            return self._vcpu.get_msrs([index])[index]
        return READABLE.get(index)

    def write(self, index: int, value: int) -> bool:
        """WRMSR. False for one that is not there, or a value that it cannot have."""
        if index in _BASES and value >> 47 in (0, 0x1FFFF):
            self._vcpu.set_msrs({index: value})
            return True
        return index in IGNORED

    def set_xcr0(self, value: int) -> bool:
        """XSETBV, by which the kernel says what it saves. False where the processor has not all of it."""
        try:
            self._vcpu.set_xcr0(value)  # type: ignore[attr-defined]
        except EngineError:
            return False
        return True
