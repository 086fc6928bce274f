"""The machine that a PV kernel sees: page tables, descriptors, traps, control registers, and what it may ask of them.

The kernel runs at CPL 0 of an engine's machine which holds its domain alone (`cpu.supervisor`): nothing that it does
there reaches further than its own memory. What Xen promises it about page tables and descriptors, `pages.py` keeps.
"""

from __future__ import annotations

from typing import Final

from bivisor.abi.x86 import Cr0, Cr4, Vector
from bivisor.abi.xen.errno import Errno
from bivisor.cpu.registers import CpuidEntry
from bivisor.cpu.soft.model import CpuidTable
from bivisor.cpu.supervisor import LocalTables, Supervised
from bivisor.memory import PAGE
from bivisor.xen.errors import XenError
from bivisor.xen.pv import emulate
from bivisor.xen.pv.fast import ROOT, USER_ROOT, FastState
from bivisor.xen.pv.frames import Frames
from bivisor.xen.pv.pages import DESCRIPTORS, L1, L4, WRITABLE
from bivisor.xen.pv.private import UPCALL_VECTOR

_FORCED_CPUID: Final = b"\x0f\x0bxen\x0f\xa2"
_PRESENT: Final = 1
_PRESENT_WRITABLE: Final = 3
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_LONGEST = 15
_DESCRIPTOR: Final = 8
CR0: Final = int(Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.PG)
CR4: Final = int(Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT)


class PvMachine:
    """Processor `index` of the domain whose frames these are. `cpu` is set when its engine has it."""

    cpu: Supervised

    def __init__(self, frames: Frames, index: int, cpuid: tuple[CpuidEntry, ...]) -> None:
        self.frames, self.index = frames, index
        self.domain, self.pages = frames.domain, frames.pages
        self.private = frames.private.cpus[index]
        self.gdt: tuple[int, ...] = ()
        self.ldt: tuple[int | None, ...] = ()
        self.debug = [0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400]
        self.cr4 = CR4
        self.task_switched = False
        self._cpuid = CpuidTable(cpuid)
        self.fast = self._fast_state()
        self._state = self.fast.values
        frames.machines.append(self)

    def _fast_state(self) -> FastState:
        return FastState(self.pages)

    @property
    def root(self) -> int:
        """The level-4 table in use."""
        return self._state[ROOT]

    @root.setter
    def root(self, mfn: int) -> None:
        self._state[ROOT] = mfn

    @property
    def user_root(self) -> int:
        """The one that the kernel names for its programs, 0 for none."""
        return self._state[USER_ROOT]

    @user_root.setter
    def user_root(self, mfn: int) -> None:
        self._state[USER_ROOT] = mfn

    # ---------------------------------------------------------------- memory

    def translate(self, linear: int) -> int | None:
        """The machine address of `linear`, for guest handles; None where the guest has nothing of its own."""
        return self.pages.translate(self.root, linear)

    def may_write(self, linear: int) -> bool:
        """Whether the guest has a writable page at `linear`."""
        index = self.pages.l1_index(self.root, linear)
        return index is not None and self.pages.words[index] & _PRESENT_WRITABLE == _PRESENT_WRITABLE

    def start(self, root: int) -> None:
        """The builder's page tables are `root`. XenError where they are not what a guest may have."""
        self.pages.pin(root, L4)
        self.pages.get(root, L4)
        self.root = root

    def new_root(self, mfn: int) -> None:
        """MMUEXT_NEW_BASEPTR. XenError(EINVAL)."""
        old = self.root
        if mfn != old:
            self.pages.get(mfn, L4)
            self.root = mfn
            self.cpu.load_cr3(mfn << 12)
            self.pages.put(old)
        else:
            self.cpu.flush_tlb()

    def new_user_root(self, mfn: int) -> None:
        """MMUEXT_NEW_USER_BASEPTR: the tables that programs would have if they had their own. 0: none. EINVAL."""
        old = self.user_root
        if mfn == old:
            return
        if mfn:
            self.pages.get(mfn, L4)
        self.user_root = mfn
        if old:
            self.pages.put(old)

    def set_gdt(self, mfns: tuple[int, ...]) -> None:
        """HYPERVISOR_set_gdt. XenError(EINVAL)."""
        taken: list[int] = []
        try:
            for mfn in mfns:
                self.pages.get(mfn, DESCRIPTORS)
                taken.append(mfn)
        except XenError:
            for mfn in taken:
                self.pages.put(mfn)
            raise
        old, self.gdt = self.gdt, mfns
        self.private.set_gdt(mfns)
        for mfn in old:
            self.pages.put(mfn)
        self.cpu.flush_tlb()

    def set_ldt(self, address: int, entries: int) -> None:
        """MMUEXT_SET_LDT: the table of `entries` at `address`, whose pages stay descriptors until there is another. One
        that the guest can write has none in it. XenError(EINVAL) where the engine knows no such tables."""
        if not entries and not self.ldt:
            return
        if not isinstance(self.cpu, LocalTables):
            raise XenError(Errno.EINVAL)
        pages = range(address, address + entries * _DESCRIPTOR, PAGE)
        old, self.ldt = self.ldt, tuple(self._descriptors_at(page) for page in pages)
        self.private.set_ldt(self.ldt)
        self.cpu.load_ldt(self.private.ldt, entries * _DESCRIPTOR)
        for mfn in old:
            if mfn is not None:
                self.pages.put(mfn)
        self.cpu.flush_tlb()

    def _descriptors_at(self, address: int) -> int | None:
        at = self.translate(address)
        if at is None:
            return None
        try:
            self.pages.get(at >> 12, DESCRIPTORS)
        except XenError:
            return None
        return at >> 12

    def set_info(self, mfn: int, offset: int) -> None:
        """`struct vcpu_info` is there from now on."""
        if self.pages.has(mfn):
            self.pages.get(mfn, WRITABLE)
        self.private.set_info(mfn * PAGE + offset)
        self.fast.set_info(self.domain.vcpus[self.index].info)
        self.cpu.flush_tlb()

    # ---------------------------------------------------------------- Supervisor, but for `call`

    def read_cr(self, number: int) -> int:
        """See `Supervisor.read_cr`."""
        match number:
            case 0:
                return CR0 | (Cr0.TS if self.task_switched else 0)
            case 3:
                return self.root << 12
            case 4:
                return self.cr4
            case _:
                return 0

    def write_cr(self, number: int, value: int) -> bool:
        """See `Supervisor.write_cr`."""
        match number:
            case 0:
                if (value ^ CR0) & ~int(Cr0.TS):
                    return False
                self.set_task_switched(bool(value & Cr0.TS))
            case 2:
                pass
            case 3:
                try:
                    self.new_root(value >> 12)
                except XenError:
                    return False
            case 4:
                self.cr4 = value  # what the guest may have on is on
            case _:
                return False
        return True

    def set_task_switched(self, wanted: bool) -> None:
        """HYPERVISOR_fpu_taskswitch."""
        self.task_switched = wanted
        self.cpu.set_task_switched(wanted)

    def trap(self, vector: int, error: int) -> bool:
        """See `Supervisor.trap`."""
        if vector == Vector.UD:
            return self.forced_cpuid()
        return self.store_to_table(self.cpu.fault_address)

    def _code(self, length: int) -> bytes:
        found = b""
        at = self.cpu.rip
        while length:
            gpa = self.translate(at)
            part = min(length, PAGE - (at & PAGE - 1))
            if gpa is None or not self.pages.has(gpa >> 12):
                return found
            found += bytes(self.domain.memory.view(gpa, part))
            at, length = at + part, length - part
        return found

    def forced_cpuid(self) -> bool:
        """XEN_EMULATE_PREFIX and CPUID (arch-x86/xen.h)."""
        if self._code(len(_FORCED_CPUID)) != _FORCED_CPUID:
            return False
        regs = self.cpu.registers
        answer = self._cpuid.look_up(regs[0] & 0xFFFF_FFFF, regs[1] & 0xFFFF_FFFF)
        regs[0], regs[3], regs[1], regs[2] = answer
        self.cpu.rip += len(_FORCED_CPUID)
        return True

    def store_to_table(self, va: int) -> bool:
        """A store of the kernel's to a page that it has mapped read-only: if it is a level-1 table, do it for it."""
        pages = self.pages
        index = pages.l1_index(self.root, va)
        if index is None:
            return False
        entry = pages.words[index]
        mfn = (entry & _ADDRESS) >> 12
        if not entry & _PRESENT or mfn >= pages.frames or pages.kind[mfn] != L1:
            return False
        store = emulate.decode(self._code(_LONGEST))
        if store is None or (va & 7) + store.size > 8:
            return False
        return self._carry_out(store, mfn << 9 | (va & PAGE - 1) >> 3, 8 * (va & 7))

    def _carry_out(self, store: emulate.Store, word: int, shift: int) -> bool:
        cpu, pages = self.cpu, self.pages
        mask = (1 << 8 * store.size) - 1
        whole = pages.words[word]
        new, register, flags = emulate.carry_out(store, whole >> shift & mask, cpu.registers, lambda: cpu.flags)
        try:
            pages.set_l1(word, whole & ~(mask << shift) | new << shift)
        except XenError:
            return False
        if register is not None:
            number = store.register if store.operation == "xchg" else 0
            assert number is not None
            cpu.registers[number] = emulate.merged(store, cpu.registers[number], register)
        if flags is not None:
            cpu.flags = flags
        cpu.rip += store.length
        return True

    def interrupt(self) -> None:
        """An event waits: have the stub make an upcall of it."""
        self.cpu.interrupt(UPCALL_VECTOR)
