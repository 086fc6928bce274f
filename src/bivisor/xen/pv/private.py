"""The hypervisor's own part of a PV domain's machine: memory that the guest's page tables reach only where Xen says.

Level-4 slot 256 has the machine-to-physical table, which the guest may read. Slot 257 has the descriptor tables, the
task state, the code that makes bounce frames (stub.S) and its data. The frames lie beyond all that is the domain's, so
that no number that a guest may name is one of them.
"""

from __future__ import annotations

import struct
from typing import Final

from bivisor.abi.x86 import Pte
from bivisor.abi.xen import pv as abi
from bivisor.memory import PAGE, MemoryRegion, Slot
from bivisor.xen.pv.stub import CODE, ENTRIES

GPA: Final = 1 << 38
M2P: Final = abi.HYPERVISOR_VIRT_START
HIDDEN: Final = M2P + (1 << 39)
GDT: Final = HIDDEN + (2 << 20)
GDT_LIMIT: Final = (abi.FIRST_RESERVED_GDT_PAGE + 1) * PAGE - 1

_IDT, _CODE, _DATA, _TSS, _STACK, _INFO = 0, 1, 5, 6, 8, 10  # pages of HIDDEN
IDT: Final = HIDDEN + _IDT * PAGE
STUB: Final = HIDDEN + _CODE * PAGE
TSS: Final = HIDDEN + _TSS * PAGE
TSS_LIMIT: Final = 0x67
INFO: Final = HIDDEN + _INFO * PAGE

KERNEL_CS, TASK = 0xE008, 0xE040
UPCALL_VECTOR: Final = 0xF0
_RSP0, _IST1 = 4, 0x24
_TRAPS, _FLAGS, _INFO_AT, _EVENT, _SYSCALL, _SYSCALL32 = 0, 2048, 2304, 2312, 2320, 2328
_MASK, _MASK32, _IOPL = 2336, 2337, 2344
_LARGE: Final = 2 << 20
_TABLE = int(Pte.P | Pte.RW | Pte.A)
_RO = int(Pte.P | Pte.A | Pte.D)
_RW = _RO | int(Pte.RW)
_CODE64, _CODE64_USER, _CODE32_USER = 0x00AF_9B00_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_FB00_0000_FFFF
_DATA_KERNEL, _DATA_USER = 0x00CF_9300_0000_FFFF, 0x00CF_F300_0000_FFFF
_Q = struct.Struct("<Q")
_CALLBACKS: Final = {
    abi.CallbackType.EVENT: (_EVENT, None),
    abi.CallbackType.SYSCALL: (_SYSCALL, _MASK),
    abi.CallbackType.SYSCALL32: (_SYSCALL32, _MASK32),
}


class Private:
    """These pages, for a domain of `frames` machine frames."""

    def __init__(self, frames: int) -> None:
        m2p = -(-8 * frames // _LARGE) * _LARGE
        self._frames = frames
        self._next = m2p
        self.region = MemoryRegion(m2p + 64 * PAGE, "bivisor-xen-private")
        self.slot = Slot(GPA, self.region.size, self.region)
        self._view = self.region.view
        self.m2p = self._view[: 8 * frames].cast("Q")
        first = struct.pack(f"<{frames}Q", *range(frames))
        self._view[: 8 * frames] = first
        self._view[8 * frames : m2p] = b"\xff" * (m2p - 8 * frames)
        self.m2p_end = M2P + m2p
        self.slots = (self._map_m2p(m2p), self._map_hidden())
        """What entries 256 and 257 of each level-4 table are."""

    def _page(self) -> int:
        at = self._next
        self._next += PAGE
        return at

    def _put(self, at: int, value: int) -> None:
        _Q.pack_into(self._view, at, value)

    def _map_m2p(self, size: int) -> int:
        level3, level2 = self._page(), self._page()
        user = int(Pte.US)
        self._put(level3, GPA + level2 | _TABLE | user)
        for piece in range(size // _LARGE):
            self._put(level2 + 8 * piece, GPA + piece * _LARGE | _RO | user | int(Pte.PS))
        return GPA + level3 | _TABLE | user

    def _map_hidden(self) -> int:
        level3, level2, self._pages, self._gdt_pages = (self._page() for _ in range(4))
        self._put(level3, GPA + level2 | _TABLE)
        self._put(level2, GPA + self._pages | _TABLE)
        self._put(level2 + 8, GPA + self._gdt_pages | _TABLE)
        places = [self._page() for _ in range(_INFO)]
        for index, at in enumerate(places):
            self._put(self._pages + 8 * index, GPA + at | (_RO if index < _DATA else _RW))
        self._data, self._tss = places[_DATA], places[_TSS]
        code = places[_CODE]
        self._view[code : code + len(CODE)] = CODE
        self._put(self._tss + _RSP0, 0)
        self._put(self._tss + _IST1, HIDDEN + _INFO * PAGE)
        self._idt = places[_IDT]
        for vector in range(256):
            self.set_gate(vector, 0)
        self._gate(8, STUB + ENTRIES.double_fault, 0, 1)
        self._gate(UPCALL_VECTOR, STUB + ENTRIES.upcall, 0)
        self._reserved, self._zero = self._page(), self._page()
        own = (0, _CODE64, _DATA_KERNEL, 0, _CODE32_USER, _DATA_USER, _CODE64_USER)
        struct.pack_into("<7Q", self._view, self._reserved, *own)
        self.set_gdt(())
        return GPA + level3 | _TABLE

    # ---------------------------------------------------------------- what hypercalls set

    def _gate(self, vector: int, target: int, dpl: int, ist: int = 0) -> None:
        struct.pack_into(
            "<HHBBHII",
            self._view,
            self._idt + 16 * vector,
            target & 0xFFFF,
            KERNEL_CS,
            ist,
            0x8E | dpl << 5,
            target >> 16 & 0xFFFF,
            target >> 32,
            0,
        )

    def set_gate(self, vector: int, dpl: int) -> None:
        """Who may raise `vector` by INT: programs (3) or the kernel alone (0)."""
        if vector not in (8, UPCALL_VECTOR):
            self._gate(vector, STUB + 16 * vector, dpl)

    def set_trap(self, vector: int, address: int, flags: int) -> None:
        """The guest's handler of `vector`; `flags` as in `struct trap_info`. Address 0: none."""
        self._put(self._data + _TRAPS + 8 * vector, address)
        self._view[self._data + _FLAGS + vector] = flags & abi.TRAP_MASKS_EVENTS
        self.set_gate(vector, 3 if flags & abi.TRAP_DPL == 3 else 0)

    def set_callback(self, kind: int, address: int, *, masks_events: bool) -> None:
        """A callback; one that this processor never calls (failsafe, NMI, SYSENTER) is taken and forgotten."""
        place = _CALLBACKS.get(kind)  # type: ignore[call-overload]
        if place is not None:
            at, mask = place
            self._put(self._data + at, address)
            if mask is not None:
                self._view[self._data + mask] = masks_events

    def set_stack(self, rsp: int) -> None:
        """Where the kernel's stack begins when a program is left."""
        self._put(self._tss + _RSP0, rsp & -16)

    def set_iopl(self, iopl: int) -> None:
        """What programs have in RFLAGS.IOPL."""
        self._put(self._data + _IOPL, iopl << 12)

    def set_info(self, gpa: int) -> None:
        """`struct vcpu_info` is at `gpa`."""
        self._put(self._pages + 8 * _INFO, gpa & -PAGE | _RW)
        self._put(self._data + _INFO_AT, INFO + (gpa & PAGE - 1))

    def set_gdt(self, mfns: tuple[int, ...]) -> None:
        """The pages of the guest's descriptor table."""
        for index in range(abi.FIRST_RESERVED_GDT_PAGE):
            gpa = mfns[index] * PAGE if index < len(mfns) else GPA + self._zero
            self._put(self._gdt_pages + 8 * index, gpa | _RO)
        self._put(self._gdt_pages + 8 * abi.FIRST_RESERVED_GDT_PAGE, GPA + self._reserved | _RO)

    def close(self) -> None:
        """Give the memory back."""
        self.m2p.release()
        self.region.close()
