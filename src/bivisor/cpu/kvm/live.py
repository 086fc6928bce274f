"""The registers of a processor where the kernel leaves them at each exit: in kvm_run, without a call (KVM API 5).

`KVM_CAP_SYNC_REGS`: what `kvm_valid_regs` names stands there after each exit, and what `kvm_dirty_regs` names is taken
from there at the next entry.
"""

from __future__ import annotations

from collections.abc import Iterable

from bivisor.abi import linux_kvm as abi
from bivisor.abi.linux_kvm import Run

_COUNT = 18
_INJECTED, _VECTOR = Run.SYNC_EVENTS + 8, Run.SYNC_EVENTS + 9  # of `interrupt` in struct kvm_vcpu_events
_READY, _IF = Run.READY_FOR_INTERRUPT_INJECTION, Run.IF_FLAG
_DIRTY = Run.DIRTY_REGS // 8


class LiveRegisters:
    """`words` is struct kvm_regs: RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15, RIP, RFLAGS."""

    def __init__(self, bytes_: memoryview, quads: memoryview) -> None:
        self._bytes, self._quads = bytes_, quads
        self.words = quads[Run.SYNC_REGS // 8 : Run.SYNC_REGS // 8 + _COUNT]
        quads[Run.VALID_REGS // 8] = abi.SYNC_X86_REGS | abi.SYNC_X86_EVENTS

    def load(self, values: Iterable[int]) -> None:
        """The processor has been given these registers, and not run since."""
        for at, value in enumerate(values):
            self.words[at] = value

    def changed(self) -> None:
        """The processor gets what is in `words`."""
        self._quads[_DIRTY] |= abi.SYNC_X86_REGS

    def interrupt(self, vector: int) -> bool:
        """Deliver an external interrupt at the next entry, as KVM_INTERRUPT does with a call. False where the processor
        could not take one at the last exit."""
        data = self._bytes
        if not (data[_READY] and data[_IF]):
            return False
        data[_INJECTED], data[_VECTOR] = 1, vector
        self._quads[_DIRTY] |= abi.SYNC_X86_EVENTS
        return True

    def close(self) -> None:
        """Let go of kvm_run."""
        self.words.release()
