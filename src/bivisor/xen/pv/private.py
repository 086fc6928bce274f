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
_LDT: Final = 16
"""Where, in pages from its GDT on, a processor has the windows of its local descriptor table."""
_LDT_PAGES: Final = abi.MAX_LDT_ENTRIES // abi.GDT_PAGE_ENTRIES
GDT_LIMIT: Final = (abi.FIRST_RESERVED_GDT_PAGE + 1) * PAGE - 1

_IDT, _CODE, _DATA, _TSS, _STACK, _INFO = 0, 1, 5, 6, 8, 10  # pages of a processor's part
_CODE_PAGES: Final = 2
_SHARED_PAGES: Final = _CODE_PAGES + 6
_CPU_PAGES: Final = 6
_CPU_SPAN: Final = 4 << 20
TSS_LIMIT: Final = 0x67

KERNEL_CS, TASK = 0xE008, 0xE040
UPCALL_VECTOR: Final = 0xF0
_RSP0, _IST1 = 4, 0x24
_PORTS = 0x60  # where its last 16 bits say where the map of ports is: behind the limit, so that a program has none
_TRAPS, _FLAGS, _INFO_AT, _EVENT, _SYSCALL, _SYSCALL32 = 0, 2048, 2304, 2312, 2320, 2328
_MASK, _MASK32, _IOPL = 2336, 2337, 2344
_LARGE: Final = 2 << 20
_TABLE = int(Pte.P | Pte.RW | Pte.A)
_RO = int(Pte.P | Pte.A | Pte.D)
_RW = _RO | int(Pte.RW)
_CODE64, _CODE64_USER, _CODE32_USER = 0x00AF_9B00_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_FB00_0000_FFFF
_DATA_KERNEL, _DATA_USER = 0x00CF_9300_0000_FFFF, 0x00CF_F300_0000_FFFF
_CALLBACKS: Final = {
    abi.CallbackType.EVENT: (_EVENT, None),
    abi.CallbackType.SYSCALL: (_SYSCALL, _MASK),
    abi.CallbackType.SYSCALL32: (_SYSCALL32, _MASK32),
}


class Private:
    """These pages, for a domain of `frames` machine frames and `vcpus` processors: `cpus` has what is of each."""

    def __init__(self, frames: int, vcpus: int = 1) -> None:
        m2p = -(-8 * frames // _LARGE) * _LARGE
        self._next = m2p
        self.region = MemoryRegion(m2p + (_SHARED_PAGES + vcpus * _CPU_PAGES) * PAGE, "bivisor-xen-private")
        self.slot = Slot(GPA, self.region.size, self.region)
        self.view = self.region.view
        self.m2p = self.view[: 8 * frames].cast("Q")
        first = struct.pack(f"<{frames}Q", *range(frames))
        self.view[: 8 * frames] = first
        self.view[8 * frames : m2p] = b"\xff" * (m2p - 8 * frames)
        self.m2p_start, self.m2p_end = M2P, M2P + m2p
        self.code = [self.page() for _ in range(_CODE_PAGES)]
        self.view[self.code[0] : self.code[0] + len(CODE)] = CODE
        self.reserved, self.zero = self.page(), self.page()
        """The page of the descriptor tables that is Xen's, and one for what a guest's table has not."""
        own = (0, _CODE64, _DATA_KERNEL, 0, _CODE32_USER, _DATA_USER, _CODE64_USER)
        struct.pack_into("<7Q", self.view, self.reserved, *own)
        level3, self._level2 = self.page(), self.page()
        self.put(level3, GPA + self._level2 | _TABLE)
        self.slots = (self._map_m2p(m2p), GPA + level3 | _TABLE)
        """What entries 256 and 257 of each level-4 table are."""
        self.cpus = tuple(PrivateCpu(self, index) for index in range(vcpus))

    def page(self) -> int:
        """A page that is nobody's yet, as an offset in `view`."""
        at = self._next
        self._next += PAGE
        return at

    def put(self, at: int, value: int) -> None:
        """Write 64 bits."""
        self.view[at : at + 8] = value.to_bytes(8, "little")  # at once: `struct` writes zeroes first

    def _map_m2p(self, size: int) -> int:
        level3, level2 = self.page(), self.page()
        user = int(Pte.US)
        self.put(level3, GPA + level2 | _TABLE | user)
        for piece in range(size // _LARGE):
            self.put(level2 + 8 * piece, GPA + piece * _LARGE | _RO | user | int(Pte.PS))
        return GPA + level3 | _TABLE | user

    def map_cpu(self, index: int, pages: int, gdt: int) -> None:
        """Put the tables of a processor where it looks for them."""
        self.put(self._level2 + 16 * index, GPA + pages | _TABLE)
        self.put(self._level2 + 16 * index + 8, GPA + gdt | _TABLE)

    def close(self) -> None:
        """Give the memory back."""
        self.m2p.release()
        self.region.close()


class PrivateCpu:
    """What is of processor `index`: descriptor tables, task state, the stub and its data, and where they are."""

    def __init__(self, private: Private, index: int) -> None:
        base = HIDDEN + index * _CPU_SPAN
        self.idt, self.stub, self.tss = (base + page * PAGE for page in (_IDT, _CODE, _TSS))
        self.gdt = base + _LARGE
        self.ldt = self.gdt + _LDT * PAGE
        self._info = base + _INFO * PAGE
        self._private = private
        self._view, self._put = private.view, private.put
        self._pages, self._gdt_pages, self._idt_at, self._data, self._tss_at, stack = (private.page() for _ in range(6))
        own = {_IDT: self._idt_at, _DATA: self._data, _TSS: self._tss_at, _STACK: stack}
        own |= {_CODE + number: at for number, at in enumerate(private.code)}
        for place, at in own.items():
            self._put(self._pages + 8 * place, GPA + at | (_RO if place < _DATA else _RW))
        private.map_cpu(index, self._pages, self._gdt_pages)
        self._put(self._tss_at + _RSP0, 0)
        self._put(self._tss_at + _IST1, base + (_STACK + 1) * PAGE)
        self._put(self._tss_at + _PORTS, (TSS_LIMIT + 1) << 48)
        for vector in range(256):
            self.set_gate(vector, 0)
        self._gate(8, self.stub + ENTRIES.double_fault, 0, 1)
        self._gate(UPCALL_VECTOR, self.stub + ENTRIES.upcall, 0)
        self.set_gdt(())

    # ---------------------------------------------------------------- what hypercalls set

    def _gate(self, vector: int, target: int, dpl: int, ist: int = 0) -> None:
        struct.pack_into(
            "<HHBBHII",
            self._view,
            self._idt_at + 16 * vector,
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
            self._gate(vector, self.stub + 16 * vector, dpl)

    def set_trap(self, vector: int, address: int, flags: int) -> None:
        """The guest's handler of `vector`; `flags` as in `struct trap_info`. Address 0: none."""
        self._put(self._data + _TRAPS + 8 * vector, address)
        self._view[self._data + _FLAGS + vector] = flags & abi.TRAP_MASKS_EVENTS
        self.set_gate(vector, 3 if flags & abi.TRAP_DPL == 3 else 0)

    def set_callback(self, kind: int, address: int, *, masks_events: bool) -> None:
        """A callback; one that this processor never calls (failsafe, SYSENTER) is taken and forgotten."""
        place = _CALLBACKS.get(kind)  # type: ignore[call-overload]
        if place is not None:
            at, mask = place
            self._put(self._data + at, address)
            if mask is not None:
                self._view[self._data + mask] = masks_events

    def set_stack(self, rsp: int) -> None:
        """Where the kernel's stack begins when a program is left."""
        self._put(self._tss_at + _RSP0, rsp & -16)

    def set_iopl(self, iopl: int) -> None:
        """What programs have in RFLAGS.IOPL."""
        self._put(self._data + _IOPL, iopl << 12)

    def set_info(self, gpa: int) -> None:
        """`struct vcpu_info` is at `gpa`."""
        self._put(self._pages + 8 * _INFO, gpa & -PAGE | _RW)
        self._put(self._data + _INFO_AT, self._info + (gpa & PAGE - 1))

    def set_gdt(self, mfns: tuple[int, ...]) -> None:
        """The pages of the guest's descriptor table."""
        for index in range(abi.FIRST_RESERVED_GDT_PAGE):
            gpa = mfns[index] * PAGE if index < len(mfns) else GPA + self._private.zero
            self._put(self._gdt_pages + 8 * index, gpa | _RO)
        self._put(self._gdt_pages + 8 * abi.FIRST_RESERVED_GDT_PAGE, GPA + self._private.reserved | _RO)

    def set_ldt(self, mfns: tuple[int | None, ...]) -> None:
        """The pages of the guest's local descriptor table; None where it has none that could be one."""
        for index in range(_LDT_PAGES):
            mfn = mfns[index] if index < len(mfns) else None
            gpa = GPA + self._private.zero if mfn is None else mfn * PAGE
            self._put(self._gdt_pages + 8 * (_LDT + index), gpa | _RO)
