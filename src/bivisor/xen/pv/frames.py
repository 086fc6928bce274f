"""The frames of a PV domain: their types, those that the hypervisor shares with it, and those that come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from bivisor.abi.xen.pv import INVALID_M2P_ENTRY
from bivisor.cpu.registers import Regs
from bivisor.xen.domain import Domain
from bivisor.xen.pv.pages import GONE, NONE, Pages
from bivisor.xen.pv.private import Private

if TYPE_CHECKING:
    from bivisor.xen.pv.machine import PvMachine
    from bivisor.xen.pv.vcpus import Context

_STATUS_FRAMES: Final = 100
"""Of each kind of grant frame, at most."""
_GRANTS_AFTER: Final = 512
"""From its shared_info on, where grants of others begin."""
MAX_MAPPED: Final = 14 * 512
"""Grants of others that it can have mapped at a time: the windows of `xen/physmap.py` have no more."""


class Processors(Protocol):
    """What runs the processors. All with the hypervisor's lock held, by a processor's thread."""

    initialised: set[int]
    """Those that know where to begin."""

    def enter(self, index: int, regs: Regs) -> None:
        """Processor `index` is about to run the kernel with `regs`, on the page tables that it has."""

    def initialise(self, index: int, context: Context) -> None:
        """VCPUOP_initialise. XenError: EEXIST, EINVAL."""

    def up(self, index: int) -> None:
        """VCPUOP_up, of one that is initialised."""

    def down(self, index: int) -> None:
        """VCPUOP_down: it goes on where it is when it comes up."""


class Frames:
    """What the processors of `domain` have in common. `shared` is its shared_info, `machines` are its processors."""

    pages_type: type[Pages] = Pages

    def __init__(self, domain: Domain, private: Private, shared: int, processors: Processors) -> None:
        self.domain = domain
        self.processors = processors
        self.private = private
        self.shared = shared
        self.extra: set[int] = {shared}
        """Frames of the hypervisor's that it shares with the guest: shared_info, grant tables."""
        self.machines: list[PvMachine] = []
        self._numbers: list[int] = []
        self._next_number = shared + _GRANTS_AFTER
        self.devices = range(0)
        """Frames of the machine that are no memory, though the domain's could be there."""
        self.by_entry: dict[int, bool] = {}
        """Where a grant is mapped: whether an entry was named for it, and not an address."""
        words = domain.memory.ram.view.cast("Q")
        self.pages = self.pages_type(words, domain.absent, self.extra.__contains__, private.slots, self.flush)
        domain.hold, domain.let_go = self.pages.hold, self.pages.let_go

    def flush(self) -> None:
        """Every processor forgets what page tables said."""
        for machine in self.machines:
            machine.cpu.flush_tlb()

    def flush_page(self, linear: int) -> None:
        """Every processor forgets it for one address."""
        for machine in self.machines:
            machine.cpu.flush_page(linear)

    def decrease(self, mfn: int) -> bool:
        """XENMEM_decrease_reservation of one frame. False where it is not the guest's, or it still uses it: Xen would
        wait with the frame until it does not."""
        pages = self.pages
        if not pages.has(mfn) or pages.kind[mfn] != NONE:
            return False
        if not self.domain.release(mfn, 1):
            return False
        self.lost(mfn)
        return True

    def lost(self, mfn: int) -> None:
        """The frame is not the domain's any more."""
        self.pages.kind[mfn] = GONE
        self.private.m2p[mfn] = INVALID_M2P_ENTRY

    def populate(self, pfn: int) -> int | None:
        """XENMEM_populate_physmap of one frame: its number, or None where there is none."""
        mfn = next((mfn for mfn in self.domain.absent if mfn not in self.devices), None)
        if mfn is None or not self.domain.populate(mfn, 1):
            return None
        self.pages.kind[mfn] = NONE
        self.private.m2p[mfn] = pfn
        return mfn

    def take_number(self) -> int | None:
        """A frame number at which a grant can appear; None where there are too many."""
        if self._numbers:
            return self._numbers.pop()
        if self._next_number >= self.shared + _GRANTS_AFTER + MAX_MAPPED:
            return None
        self._next_number += 1
        return self._next_number - 1

    def give_number_back(self, mfn: int) -> None:
        """Nothing is there any more."""
        self.by_entry.pop(mfn, None)
        self._numbers.append(mfn)

    def share_grants(self, count: int, *, status: bool) -> None:
        """Give the first `count` frames of the grant table, or of its status, numbers that the guest can map."""
        grants = self.domain.grants
        first = self.shared + 1 + (_STATUS_FRAMES if status else 0)
        for index in range(min(count, _STATUS_FRAMES)):
            mfn = first + index
            if mfn not in self.extra:
                page = self.domain.frame_for(mfn)
                (grants.move_status_frame if status else grants.move_frame)(index, page, mfn)
                self.extra.add(mfn)

    def close(self) -> None:
        """Let go of the domain's memory."""
        for machine in self.machines:
            machine.fast.forget()
        self.pages.words.release()
