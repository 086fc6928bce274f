"""Page types: what keeps a PV guest from writing page tables and descriptors itself.

Each frame of the domain is at any time of one type at most (page table of level 1 to 4, descriptors, writable), as long
as something uses it as such. A writable mapping makes it "writable"; an entry of a page table of level n makes what it
points to a page table of level n - 1, whose entries are checked before. So there is no writable mapping of a page table
or of a descriptor table, and no table has an entry that was not checked. (Xen: arch/x86/mm.c, "A description of the x86
page table API".) Errors are Xen's: EINVAL, and EBUSY for a writable mapping of what is of another type.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from bivisor.abi.x86 import Pte
from bivisor.abi.xen import pv as abi
from bivisor.abi.xen.errno import Errno
from bivisor.memory import PAGE
from bivisor.xen.errors import XenError
from bivisor.xen.pv.descriptors import checked_descriptor

NONE, L1, L2, L3, L4, DESCRIPTORS, WRITABLE, GONE = range(8)
"""Types of frames; GONE are those that the domain gave up, so that fast.S need not look elsewhere."""

_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_P, _RW, _PRESENT_WRITABLE = 1, 2, 3
_HIGH: Final = 0x7FF << 52
_L1_FORBIDDEN: Final = 1 << 62 | int(Pte.PWT | Pte.PCD | Pte.PS)
_UPPER_FORBIDDEN: Final = _HIGH | int(Pte.PWT | Pte.PCD | Pte.PS | Pte.G)
_NO_FRAME: Final = (1 << 40) - 1
_USER: Final = int(Pte.US)
_L1_PLAIN: Final = int(Pte.A | Pte.D | Pte.G | Pte.US | Pte.XD) | 0xE00
_L1_COUNTED: Final = ~_L1_PLAIN
_UPPER_PLAIN: Final = int(Pte.A | Pte.D | Pte.US | Pte.RW | Pte.XD) | 0xE00
_AD: Final = int(Pte.A | Pte.D)
_SLOT = struct.Struct("<512Q")
_ZERO = bytes(PAGE)
_BEYOND: Final = 1 << 38
_CANONICAL = (0, 0x1FFFF)
_KERNEL_SLOTS = range(abi.HYPERVISOR_SLOTS.stop, 512)


class Pages:
    """The frames of one domain. `words` is its memory as 64-bit numbers, `extra(mfn)` says whether the guest may map a
    frame that is no RAM (shared_info, grant frames), `absent` are frames that it gave up; `slots` are the entries of
    the hypervisor in each level-4 table, and `flush` makes the processors forget what page tables said."""

    def __init__(
        self,
        words: memoryview,
        absent: set[int],
        extra: Callable[[int], bool],
        slots: tuple[int, ...],
        flush: Callable[[], None],
    ) -> None:
        self.words = words
        self.frames = len(words) // 512
        self.kind: bytearray | memoryview = bytearray(self.frames)
        self.count = memoryview(bytearray(4 * self.frames)).cast("I")
        self.pinned: set[int] = set()
        self._held: dict[int, int] = {}
        self._absent = absent
        self._extra = extra
        self._slots = slots
        self._flush = flush
        for mfn in absent:
            if mfn < self.frames:
                self.kind[mfn] = GONE

    # ---------------------------------------------------------------- types

    def has(self, mfn: int) -> bool:
        """Whether it is RAM of the domain."""
        return mfn < self.frames and mfn not in self._absent

    def get(self, mfn: int, kind: int) -> None:
        """Use `mfn` as `kind`, once more. XenError(EINVAL) where it is another's, or of another type."""
        if self._take(mfn, kind):
            self._flush()  # a processor may still know a writable mapping of it

    def _take(self, mfn: int, kind: int) -> bool:
        """`get`; whether translations have to be forgotten, once for all that was taken."""
        if not self.has(mfn):
            raise XenError(Errno.EINVAL)
        if self.count[mfn]:
            if self.kind[mfn] != kind:
                raise XenError(Errno.EINVAL)
            self.count[mfn] += 1
            return False
        if kind != WRITABLE and mfn in self._held:
            raise XenError(Errno.EINVAL)
        self.kind[mfn] = kind
        self.count[mfn] = 1
        if kind == WRITABLE:
            return False
        try:
            self._validate(mfn, kind)
        except XenError:
            self.kind[mfn], self.count[mfn] = NONE, 0
            raise
        return True

    def put(self, mfn: int) -> None:
        """Use it once less."""
        left = self.count[mfn] - 1
        if left:
            self.count[mfn] = left
            return
        kind = self.kind[mfn]
        if L1 <= kind <= L4:
            self._devalidate(mfn, kind, 512)
        self.kind[mfn], self.count[mfn] = NONE, 0

    def hold(self, mfn: int) -> None:
        """Somebody else than the guest may write the frame until `let_go`: it is no table that long. XenError(EINVAL)
        where it is one. Not counted as a type, which a guest's processors change without the hypervisor's lock."""
        if mfn < self.frames and self.kind[mfn] not in (NONE, WRITABLE):
            raise XenError(Errno.EINVAL)
        self._held[mfn] = self._held.get(mfn, 0) + 1

    def let_go(self, mfn: int) -> None:
        """See `hold`."""
        self._held[mfn] -= 1
        if not self._held[mfn]:
            del self._held[mfn]

    def pin(self, mfn: int, level: int) -> None:
        """MMUEXT_PIN_Ln_TABLE. XenError(EINVAL)."""
        self.get(mfn, level)
        if mfn in self.pinned:
            self.put(mfn)
            raise XenError(Errno.EINVAL)
        self.pinned.add(mfn)

    def unpin(self, mfn: int) -> None:
        """MMUEXT_UNPIN_TABLE. XenError(EINVAL) where it is not pinned."""
        if mfn not in self.pinned:
            raise XenError(Errno.EINVAL)
        self.pinned.remove(mfn)
        self.put(mfn)

    def _entries(self, mfn: int) -> list[int] | None:
        """The entries of a table; None where all are zero."""
        page = self.words[mfn << 9 : (mfn + 1) << 9]
        raw = page.tobytes()
        return None if raw == _ZERO else list(_SLOT.unpack(raw))

    def _validate(self, mfn: int, kind: int) -> None:
        if kind == DESCRIPTORS:
            base = mfn << 9
            for index, descriptor in enumerate(self.words[base : base + 512].tolist()):
                if descriptor:
                    self.words[base + index] = checked_descriptor(descriptor)
            return
        entries = self._entries(mfn)
        if entries is not None:
            done = 0
            try:
                for entry in entries:
                    if entry & _P:
                        if kind == L1:
                            self._get_l1(entry)
                        elif not (kind == L4 and done in abi.HYPERVISOR_SLOTS):
                            self._get_upper(entry, kind)
                    done += 1
            except XenError:
                self._devalidate(mfn, kind, done)
                raise
        if kind == L4:
            base = mfn << 9
            for slot in abi.HYPERVISOR_SLOTS:
                at = slot - abi.HYPERVISOR_SLOTS.start
                self.words[base + slot] = self._slots[at] if at < len(self._slots) else 0
            for slot in _KERNEL_SLOTS:
                if entry := self.words[base + slot]:
                    self.words[base + slot] = entry & ~_USER

    def _devalidate(self, mfn: int, kind: int, end: int) -> None:
        entries = self._entries(mfn)
        if entries is None:
            return
        if kind == L1:
            for entry in entries[:end]:
                if entry & _PRESENT_WRITABLE == _PRESENT_WRITABLE:
                    self._put_l1(entry)
        else:
            for index, entry in enumerate(entries[:end]):
                if entry & _P and not (kind == L4 and index in abi.HYPERVISOR_SLOTS):
                    self.put((entry & _ADDRESS) >> 12)

    # ---------------------------------------------------------------- entries

    def _get_l1(self, entry: int) -> None:
        if entry & _L1_FORBIDDEN:
            raise XenError(Errno.EINVAL)
        mfn = (entry & _ADDRESS) >> 12
        if mfn >= self.frames or mfn in self._absent:
            if not self._extra(mfn):  # what is no memory could be a device's
                if mfn == _NO_FRAME:
                    raise XenError(Errno.EINVAL)
                raise XenError(Errno.EBUSY if mfn < self.frames else Errno.EPERM)
        elif entry & _RW:
            if self.kind[mfn] == WRITABLE:
                self.count[mfn] += 1
            elif self.count[mfn]:
                raise XenError(Errno.EBUSY)
            else:
                self.kind[mfn] = WRITABLE
                self.count[mfn] = 1

    def _put_l1(self, entry: int) -> None:
        """A present and writable entry goes."""
        mfn = (entry & _ADDRESS) >> 12
        if mfn < self.frames and self.kind[mfn] == WRITABLE:
            left = self.count[mfn] - 1
            self.count[mfn] = left
            if not left:
                self.kind[mfn] = NONE

    def _get_upper(self, entry: int, kind: int) -> bool:
        if entry & _UPPER_FORBIDDEN:
            raise XenError(Errno.EINVAL)
        return self._take((entry & _ADDRESS) >> 12, kind - 1)

    def set_l1(self, index: int, new: int) -> None:
        """Change a level-1 entry; `index` counts 64-bit words of memory. XenError: EINVAL, EBUSY."""
        words = self.words
        old = words[index]
        if new & _P:
            # the same frame with the same rights needs no new reference
            if not ((old ^ new) & _L1_COUNTED or new & _L1_FORBIDDEN):
                words[index] = new
                return
            mfn = (new & _ADDRESS) >> 12
            if new & _RW and mfn < self.frames and self.kind[mfn] == WRITABLE and not new & _L1_FORBIDDEN:
                self.count[mfn] += 1
            else:
                self._get_l1(new)
        words[index] = new
        if old & _PRESENT_WRITABLE == _PRESENT_WRITABLE:
            self._put_l1(old)

    def put_foreign(self, index: int, entry: int) -> None:
        """A level-1 entry with a frame that the guest cannot name: what `xen/pv/grants.py` puts there."""
        old = self.words[index]
        self.store(index, entry)
        if old & _PRESENT_WRITABLE == _PRESENT_WRITABLE:
            self._put_l1(old)

    def store(self, index: int, entry: int) -> None:
        """A level-1 entry whose frame the caller accounts for."""
        self.words[index] = entry

    def _set_upper(self, index: int, new: int, kind: int) -> None:
        slot = index & 511
        if kind == L4:
            if slot in abi.HYPERVISOR_SLOTS:
                raise XenError(Errno.EINVAL)
            if slot >= abi.HYPERVISOR_SLOTS.stop:
                new &= ~_USER  # programs have nothing in the kernel's half, whatever the tables below it say
        old = self.words[index]
        fresh = False
        if new & _P:
            if (old ^ new) & ~_UPPER_PLAIN or new & _UPPER_FORBIDDEN:
                fresh = self._get_upper(new, kind)
            else:
                self.words[index] = new
                return
        self.words[index] = new
        if old & _P:
            self.put((old & _ADDRESS) >> 12)
        if old & _P or fresh:
            self._flush()

    def update(self, address: int, value: int, preserve: bool) -> None:
        """MMU_NORMAL_PT_UPDATE and MMU_PT_UPDATE_PRESERVE_AD. XenError: EINVAL, EBUSY, EPERM for a frame of no memory,
        ENOSYS for an address that names no such command."""
        mfn = address >> 12
        if address & 7:
            raise XenError(Errno.ENOSYS)
        if mfn >= self.frames:
            raise XenError(Errno.EINVAL)
        index = address >> 3
        if preserve:
            value |= self.words[index] & _AD
        kind = self.kind[mfn]
        if kind == L1:
            self.set_l1(index, value)
        elif L2 <= kind <= L4:
            self._set_upper(index, value, kind)
        elif kind == DESCRIPTORS or mfn in self._absent:
            raise XenError(Errno.EINVAL)
        else:
            self.words[index] = value

    def update_descriptor(self, address: int, value: int) -> None:
        """HYPERVISOR_update_descriptor. XenError(EINVAL)."""
        mfn = address >> 12
        if address & 7 or not self.has(mfn):
            raise XenError(Errno.EINVAL)
        value = checked_descriptor(value)
        if self.kind[mfn] not in (NONE, DESCRIPTORS, WRITABLE):
            raise XenError(Errno.EINVAL)
        self.words[address >> 3] = value

    # ---------------------------------------------------------------- walking

    def l1_index(self, root: int, va: int) -> int | None:
        """Where the level-1 entry of `va` is under the table `root`, as an index of words; None where there is none."""
        if va >> 47 not in _CANONICAL:
            return None
        words = self.words
        entry = words[root << 9 | va >> 39 & 511]
        if not entry & _P or entry & _ADDRESS >= _BEYOND:  # the hypervisor's own part lies beyond all memory
            return None
        entry = words[(entry & _ADDRESS) >> 3 | va >> 30 & 511]
        if not entry & _P:
            return None
        entry = words[(entry & _ADDRESS) >> 3 | va >> 21 & 511]
        if not entry & _P:
            return None
        return (entry & _ADDRESS) >> 3 | va >> 12 & 511

    def translate(self, root: int, va: int) -> int | None:
        """The machine address of `va`, in the guest's own part of the address space."""
        index = self.l1_index(root, va)
        if index is None:
            return None
        entry = self.words[index]
        return entry & _ADDRESS | va & PAGE - 1 if entry & _P else None
