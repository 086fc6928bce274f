"""The registers of a processor where the kernel leaves them at each exit: in kvm_run, without a call (KVM API 5).

`KVM_CAP_SYNC_REGS`: what `kvm_valid_regs` names stands there after each exit, and what `kvm_dirty_regs` names is taken
from there at the next entry.
"""

from __future__ import annotations

from bivisor.abi import linux_kvm as abi
from bivisor.abi.linux_kvm import Run

_COUNT = 18


class LiveRegisters:
    """`words` is struct kvm_regs: RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15, RIP, RFLAGS."""

    def __init__(self, quads: memoryview) -> None:
        self._quads = quads
        self.words = quads[Run.SYNC_REGS // 8 : Run.SYNC_REGS // 8 + _COUNT]
        quads[Run.VALID_REGS // 8] = abi.SYNC_X86_REGS

    def changed(self) -> None:
        """The processor gets what is in `words`."""
        self._quads[Run.DIRTY_REGS // 8] = abi.SYNC_X86_REGS

    def close(self) -> None:
        """Let go of kvm_run."""
        self.words.release()
