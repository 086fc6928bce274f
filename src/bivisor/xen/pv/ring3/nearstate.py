"""What near.S knows of one processor: its page tables, the types of the domain's frames, and what it has done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bivisor.abi.x86 import Pte
from bivisor.abi.xen.xen import XEN_VERSION, Hypercall
from bivisor.xen.pv import fast
from bivisor.xen.pv.fast import COUNT, EXTRA, FRAMES, INFO, KIND, SWITCHES, UPDATES, WORDS
from bivisor.xen.pv.ring3 import hidden as h

if TYPE_CHECKING:
    from bivisor.xen.pv.ring3.block import Block

_VCPUS, _VERSION, _DONE = 10, 11, 12
_COUNTED: Final = {
    UPDATES: Hypercall.MMU_UPDATE,
    SWITCHES: Hypercall.MMUEXT_OP,
    _DONE: Hypercall.SET_SEGMENT_BASE,
    _DONE + 1: Hypercall.STACK_SWITCH,
    _DONE + 2: Hypercall.XEN_VERSION,
    _DONE + 3: Hypercall.VCPU_OP,
}


class NearState(fast.FastState):
    """That of one processor, in its block, with addresses as the guest's machine has them. Off until `set`."""

    def __init__(self, block: Block, frames: int, vcpus: int) -> None:
        self._block = block
        self._frames = frames if vcpus == 1 else 0  # nothing keeps two processors from counting at a time
        self.values = block.near
        self.values[WORDS] = h.WINDOW
        self.values[KIND], self.values[COUNT] = h.TYPES, h.TYPES + h.COUNTS
        self.values[EXTRA] = int(Pte.US)
        self.values[_VCPUS], self.values[_VERSION] = vcpus, XEN_VERSION

    def set_info(self, info: memoryview) -> None:
        """See `FastState.set_info`."""
        self.values[INFO] = self._block.info

    def set(self, wanted: bool) -> None:
        """Whether hypercalls may be carried out inside the machine."""
        self.values[FRAMES] = self._frames if wanted else 0
        self._block.set_near(wanted)

    def done(self) -> dict[int, int]:
        """How often each hypercall was."""
        return {number: self.values[index] for index, number in _COUNTED.items()}

    def forget(self) -> None:
        """The machine's memory goes: keep what it says."""
        self.values = memoryview(bytearray(self.values)).cast("Q")
