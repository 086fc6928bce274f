"""The hypervisor's own part of the machine of a PV domain whose kernel runs at CPL 3: memory that no guest frame is.

Level-4 slots 256 and 258 have the machine-to-physical table, which the guest may read, and one page that it may
execute, where SYSCALL comes in on a processor that leaves it at CPL 3. Slot 257 is for CPL 0 alone: the code (stub.S,
near.S), the interrupt descriptor table, a block of 2 MiB for each virtual processor, a window on the domain's memory
through which the stub stores to page tables, and the types of its frames. The frames lie beyond all that is the
domain's.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from bivisor.abi.x86 import Pte, Vector
from bivisor.abi.xen import pv as abi
from bivisor.memory import PAGE, MemoryRegion, Slot
from bivisor.xen.pv.ring3 import near
from bivisor.xen.pv.ring3.stub import CODE, ENTRIES, ENTRY_SIZE, SECOND_STACK

if TYPE_CHECKING:
    from bivisor.xen.pv.ring3.block import Block

GPA: Final = 1 << 38
_SLOT: Final = 1 << 39
M2P: Final = abi.HYPERVISOR_VIRT_START + 2 * _SLOT
"""Not where real Xen has it, and the guest asks for it: a KVM that runs CPL 3 alone may keep slot 256 for itself."""
GATE: Final = M2P + (1 << 30)
"""The page that the guest may execute: INT3, and at `NO_HANDLER` an instruction that no program may have."""
NO_HANDLER: Final = GATE + 16
PROBE: Final = GATE + 32
PROBED: Final = GATE + 48

HIDDEN: Final = abi.HYPERVISOR_VIRT_START + _SLOT
STUB: Final = HIDDEN
NEAR: Final = HIDDEN + 2 * PAGE
IDT: Final = HIDDEN + 8 * PAGE
BLOCKS: Final = HIDDEN + (2 << 20)
BLOCK: Final = 2 << 20
WINDOW: Final = HIDDEN + (1 << 30)
TYPES: Final = HIDDEN + (511 << 30)
"""A byte for each frame of the domain (`Pages.kind`) and, at `COUNTS` from there, 32 bits (`Pages.count`)."""
COUNTS: Final = 1 << 29

GDT_LIMIT: Final = (abi.FIRST_RESERVED_GDT_PAGE + 1) * PAGE - 1
CODE_SELECTOR, TASK = 0xE008, 0xE040
TSS_LIMIT: Final = 0x67
# pages of a block
OWN_GDT, NATIVE, STACK, TOP, HANDLERS, STORES, TSS, INFO, TABLE = 14, 16, 17, 18, 19, 20, 36, 37, 38
_OWN: Final = range(OWN_GDT, INFO)
SECOND: Final = 2048
"""From the top of the stack to that of the second one: see stub.S."""

_LARGE: Final = 2 << 20
_TABLE: Final = int(Pte.P | Pte.RW | Pte.A)
_USER: Final = int(Pte.US)
_NX: Final = int(Pte.XD)
_RO: Final = int(Pte.P | Pte.A | Pte.D)
_RW: Final = _RO | int(Pte.RW)
_PS: Final = int(Pte.PS)
_CODE64, _CODE64_USER, _CODE32_USER = 0x00AF_9B00_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_FB00_0000_FFFF
_DATA_KERNEL, _DATA_USER = 0x00CF_9300_0000_FFFF, 0x00CF_F300_0000_FFFF
_GATE_CODE: Final = {
    0: b"\xcc",
    NO_HANDLER - GATE: b"\xf4",
    PROBE - GATE: b"\x0f\x05",
    PROBED - GATE: b"\xe6\xe8",
}
_RSP0, _IST1 = 4, 0x24
_PORTS: Final = 0x60  # where its last 16 bits say where the map of ports is: behind the limit, so that none is allowed
_Q: Final = struct.Struct("<Q")


class Hidden:
    """This memory, for a domain of `frames` machine frames and `vcpus` processors. `block(n)` is what one has."""

    def __init__(self, frames: int, vcpus: int) -> None:
        m2p = -(-8 * frames // _LARGE) * _LARGE
        kinds, counts = (-(-size // _LARGE) * _LARGE for size in (frames, 4 * frames))
        self._next = types = m2p + kinds + counts
        blocks = vcpus * (len(_OWN) + 1)
        windows = -(-frames * PAGE // (1 << 30))
        self.region = MemoryRegion(types + (34 + blocks + windows) * PAGE, "bivisor-xen-private")
        self.slot = Slot(GPA, self.region.size, self.region)
        self.view = self.region.view
        self.m2p = self.view[: 8 * frames].cast("Q")
        self.view[: 8 * frames] = struct.pack(f"<{frames}Q", *range(frames))
        self.view[8 * frames : m2p] = b"\xff" * (m2p - 8 * frames)
        self.m2p_start, self.m2p_end = M2P, M2P + m2p
        self.kind = self.view[m2p : m2p + frames]
        self.count = self.view[m2p + kinds : m2p + kinds + 4 * frames].cast("I")
        self.zero = self._page()
        slot = self._map_m2p(m2p)
        self.cpus: list[Block] = []
        self.pages: list[int] = []
        """Of each processor: where its table of level 1 is in `view`."""
        self.own: list[int] = []
        """Of each processor: where its page `OWN_GDT` is in `view`; those up to `INFO` follow."""
        level3 = self._map_hidden(vcpus, windows)
        self._map_types(level3, m2p, m2p + kinds, types)
        self.slots: tuple[int, ...] = (slot, GPA + level3 | _TABLE, slot)
        """What entries 256 to 258 of each level-4 table are."""

    def _page(self, count: int = 1) -> int:
        at = self._next
        self._next += count * PAGE
        return at

    def put(self, at: int, value: int) -> None:
        """Store 64 bits."""
        self.view[at : at + 8] = value.to_bytes(8, "little")  # at once: `struct` writes zeroes first

    def _map_m2p(self, size: int) -> int:
        level3, level2, gate2, gate1, gate = (self._page() for _ in range(5))
        self.put(level3, GPA + level2 | _TABLE | _USER)
        for piece in range(size // _LARGE):
            self.put(level2 + 8 * piece, GPA + piece * _LARGE | _RO | _USER | _PS | _NX)
        self.put(level3 + 8, GPA + gate2 | _TABLE | _USER)
        self.put(gate2, GPA + gate1 | _TABLE | _USER)
        self.put(gate1, GPA + gate | _RO | _USER)
        for offset, code in _GATE_CODE.items():
            self.view[gate + offset : gate + offset + len(code)] = code
        return GPA + level3 | _TABLE | _USER

    def _map_hidden(self, vcpus: int, windows: int) -> int:
        level3, level2, level1 = (self._page() for _ in range(3))
        self.put(level3, GPA + level2 | _TABLE)
        self.put(level2, GPA + level1 | _TABLE)
        code, idt = self._page(3), self._page()
        for page in range(3):
            self.put(level1 + 8 * page, GPA + code + page * PAGE | _RO)
        own = near.code(STUB)
        self.view[code + NEAR - STUB : code + NEAR - STUB + len(own)] = own
        self.put(level1 + 8 * ((IDT - HIDDEN) // PAGE), GPA + idt | _RO | _NX)
        self.view[code : code + len(CODE)] = CODE
        self._idt = idt
        for vector in range(256):
            self._gate(vector, STUB + ENTRY_SIZE * vector)
        for vcpu in range(vcpus):
            self._map_block(level2 + 8 * (1 + vcpu), BLOCKS + vcpu * BLOCK)
        for gib in range(windows):
            window = self._page()
            self.put(level3 + 8 * (1 + gib), GPA + window | _TABLE)
            for piece in range(512):
                self.put(window + 8 * piece, gib << 30 | piece * _LARGE | _RW | _PS | _NX)
        return level3

    def _map_types(self, level3: int, kinds: int, counts: int, end: int) -> None:
        level2 = self._page()
        self.put(level3 + 8 * ((TYPES - HIDDEN) >> 30), GPA + level2 | _TABLE)
        for linear, first, behind in ((0, kinds, counts), (COUNTS, counts, end)):
            for at in range(0, behind - first, _LARGE):
                self.put(level2 + 8 * ((linear + at) // _LARGE), GPA + first + at | _RW | _PS | _NX)

    def use_near(self) -> None:
        """CPL 0 runs at the processor's speed."""
        self._gate(Vector.GP, NEAR + near.PROTECTION)

    def _gate(self, vector: int, target: int) -> None:
        stack = 2 if vector in SECOND_STACK else 1
        dpl = 3 if vector in (3, 4) else 0
        low, middle, high = target & 0xFFFF, target >> 16 & 0xFFFF, target >> 32
        at = self._idt + 16 * vector
        struct.pack_into("<HHBBHII", self.view, at, low, CODE_SELECTOR, stack, 0x8E | dpl << 5, middle, high, 0)

    def _map_block(self, entry: int, linear: int) -> None:
        table, own = self._page(), self._page(len(_OWN))
        self.put(entry, GPA + table | _TABLE)
        for page in range(OWN_GDT):
            self.put(table + 8 * page, GPA + self.zero | _RO | _NX)
        for index, page in enumerate(_OWN):
            self.put(table + 8 * page, GPA + own + index * PAGE | (_RO if page == NATIVE else _RW | _NX))
        self.put(table + 8 * TABLE, GPA + table | _RW | _NX)
        selectors = (0, _CODE64, _DATA_KERNEL, 0, _CODE32_USER, _DATA_USER, _CODE64_USER)
        struct.pack_into("<7Q", self.view, own, *selectors)
        top = linear + TOP * PAGE
        task = own + (TSS - OWN_GDT) * PAGE
        self.put(task + _RSP0, top)
        self.put(task + _IST1, top)
        self.put(task + _IST1 + 8, top + SECOND)
        self.put(task + _PORTS, (TSS_LIMIT + 1) << 48)
        native = own + (NATIVE - OWN_GDT) * PAGE
        jump = CODE[ENTRIES.native : ENTRIES.native_end] + _Q.pack(NEAR + near.SYSTEM_CALL)
        self.view[native : native + len(jump)] = jump
        self.pages.append(table)
        self.own.append(own)

    def close(self) -> None:
        """Give the memory back."""
        for view in (self.m2p, self.kind, self.count):
            view.release()
        self.region.close()
