"""Page types where the kernel runs at CPL 3: all that is the guest's is the user's, and stores are repeated.

Xen gives each entry of a 64-bit guest the user bit, as its kernel has no more privilege than its programs; here too.
The kernel is apart from programs because these have page tables of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bivisor.abi.x86 import Pte
from bivisor.abi.xen import pv as abi
from bivisor.xen.pv.pages import L1, L4, Pages
from bivisor.xen.pv.ring3.hidden import WINDOW

_P: Final = int(Pte.P)
_US: Final = int(Pte.US)


class Ring3Pages(Pages):
    """See `Pages`. What changes in page tables that a processor may know is noted in `stores`, by where the stub has
    it: a processor whose page tables are shadowed sees only what is stored at CPL 0 (see stub.S, WORK). `retired` are
    frames that are no page tables any more: until the engine knows, it emulates the guest's stores there."""

    def __init__(
        self,
        words: memoryview,
        absent: set[int],
        extra: Callable[[int], bool],
        slots: tuple[int, ...],
        flush: Callable[[], None],
    ) -> None:
        super().__init__(words, absent, extra, slots, flush)
        self.stores: dict[int, int] = {}
        self.retired: set[int] = set()

    def move(self, kind: memoryview, count: memoryview) -> None:
        """Have the types of frames there from now on, where near.S finds them."""
        kind[:], count[:] = self.kind, self.count
        self.kind, self.count = kind, count

    def set_l1(self, index: int, new: int) -> None:
        """See `Pages.set_l1`."""
        if new & _P:
            new |= _US
        super().set_l1(index, new)
        self.stores[WINDOW + 8 * index] = new

    def store(self, index: int, entry: int) -> None:
        """See `Pages.store`."""
        super().store(index, entry)
        self.stores[WINDOW + 8 * index] = entry

    def _set_upper(self, index: int, new: int, kind: int) -> None:
        super()._set_upper(index, new, kind)
        value = self.words[index]
        if value & _P:
            value |= _US
            self.words[index] = value
        self.stores[WINDOW + 8 * index] = value

    def update(self, address: int, value: int, preserve: bool) -> None:
        """See `Pages.update`."""
        super().update(address, value, preserve)
        index = address >> 3
        self.stores[WINDOW + 8 * index] = self.words[index]

    def _devalidate(self, mfn: int, kind: int, end: int) -> None:
        super()._devalidate(mfn, kind, end)
        self.retired.add(mfn)

    def _validate(self, mfn: int, kind: int) -> None:
        super()._validate(mfn, kind)
        if not L1 <= kind <= L4:
            return
        base = mfn << 9
        words = self.words
        for index, entry in enumerate(words[base : base + 512].tolist()):
            if entry & (_P | _US) == _P and not (kind == L4 and index in abi.HYPERVISOR_SLOTS):
                words[base + index] = entry | _US
