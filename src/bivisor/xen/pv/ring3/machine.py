"""The machine that a PV kernel at CPL 3 sees: as `xen.pv.machine`, with page tables of its own for programs."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from dataclasses import replace
from typing import Final

from bivisor.abi.x86 import Msr
from bivisor.cpu.contract import Vcpu
from bivisor.cpu.kvm.live import LiveRegisters
from bivisor.cpu.registers import CpuidEntry
from bivisor.cpu.soft.model import CpuidTable
from bivisor.xen.domain import Domain
from bivisor.xen.pv.frames import Frames, Processors
from bivisor.xen.pv.machine import PvMachine
from bivisor.xen.pv.ring3.block import Block
from bivisor.xen.pv.ring3.hidden import Hidden
from bivisor.xen.pv.ring3.nearstate import NearState
from bivisor.xen.pv.ring3.pages import Ring3Pages
from bivisor.xen.pv.ring3.privileged import Privileged, decode

_XSTATE, _LEGACY_SIZE = 0xD, 576
_LONGEST: Final = 15
_INT: Final = 0xCD
INT_SIZE: Final = 2
"""Of the instruction INT n."""
_PIT_COUNTER_2: Final = 0x42
_MASK32: Final = (1 << 32) - 1
_HIGH32: Final = _MASK32 << 32
_CC_FLAGS: Final = 0x8D5
_ORDER: Final = (0, 2, 3, 1, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15)
"""Where struct kvm_regs has the registers, in the order of their encoding."""
_RCX, _RSP, _R11 = 1, 4, 11
_FRAME_RIP, _FRAME_RFLAGS, _FRAME_RSP = 3, 5, 6
_BASES: Final = {"fs": Msr.IA32_FS_BASE, "gs": Msr.IA32_GS_BASE, "kernel_gs": Msr.IA32_KERNEL_GS_BASE}


class TrapRegisters(MutableSequence[int]):
    """The registers of the guest while the stub has its exception: three of them are in the frame."""

    def __init__(self, live: LiveRegisters, block: Block) -> None:
        self._live, self._frame = live, block.frame
        self.has_error = True
        """Whether the frame has an error code, below which RCX and R11 are."""

    def _place(self, number: int) -> int | None:
        match number:
            case 1:
                return 0 if self.has_error else 1
            case 11:
                return 1 if self.has_error else 2
            case 4:
                return _FRAME_RSP
        return None

    def __getitem__(self, number: int) -> int:  # type: ignore[override]
        place = self._place(number)
        return int(self._live.words[_ORDER[number]] if place is None else self._frame[place])

    def __setitem__(self, number: int, value: int) -> None:  # type: ignore[override]
        place = self._place(number)
        value &= (1 << 64) - 1
        if place is None:
            self._live.words[_ORDER[number]] = value
            self._live.changed()
        else:
            self._frame[place] = value

    def __len__(self) -> int:
        return len(_ORDER)

    def __delitem__(self, _: object) -> None:
        raise TypeError("a processor keeps its registers")

    def insert(self, index: int, value: int) -> None:
        """TypeError."""
        raise TypeError("a processor has no more registers than it has")


class Ring3Frames(Frames):
    """See `Frames`."""

    pages: Ring3Pages
    pages_type = Ring3Pages

    def __init__(self, domain: Domain, private: Hidden, shared: int, processors: Processors) -> None:
        super().__init__(domain, private, shared, processors)  # type: ignore[arg-type]
        self.pages.move(private.kind, private.count)


class Ring3Machine(PvMachine):
    """See `PvMachine`."""

    cpu: Ring3Cpu
    pages: Ring3Pages
    private: Block  # type: ignore[assignment]
    fast: NearState

    def __init__(self, frames: Frames, index: int, cpuid: tuple[CpuidEntry, ...]) -> None:
        super().__init__(frames, index, cpuid)
        self._entries = cpuid

    def _fast_state(self) -> NearState:
        return NearState(self.private, self.pages.frames, len(self.domain.vcpus))

    def let_go(self) -> None:
        """The hypervisor's own part of the machine goes."""
        self.fast.forget()
        self._state = self.fast.values

    def _xsetbv(self, value: int) -> bool:
        """XCR0 is `value` from now on, and CPUID says how large its state is (SDM volume 1, 13.2)."""
        if not self.set_xcr0(value):
            return False
        parts = [
            e for e in self._entries if e.leaf == _XSTATE and (e.subleaf or 0) > 1 and value >> (e.subleaf or 0) & 1
        ]
        size = max((e.eax + e.ebx for e in parts), default=_LEGACY_SIZE)
        self._cpuid = CpuidTable(
            tuple(replace(e, ebx=size) if e.leaf == _XSTATE and not e.subleaf else e for e in self._entries)
        )
        return True

    def start(self, root: int) -> None:
        """See `PvMachine.start`."""
        super().start(root)
        self.private.set_root(root << 12)

    def new_user_root(self, mfn: int) -> None:
        """See `PvMachine.new_user_root`."""
        super().new_user_root(mfn)
        self.private.set_user_root(mfn << 12)

    def collect(self) -> None:
        """What was done to page tables is for this processor to repeat. With the lock under which it was done."""
        pages, block = self.pages, self.private
        if pages.stores:
            block.stores.update(pages.stores)
            pages.stores.clear()
        if pages.retired:
            block.retired |= pages.retired
            pages.retired.clear()

    def settle_call(self) -> None:
        """As `settle`, after a hypercall: most have one store and nothing else."""
        block = self.private
        if self.is_shadowed and not self.cpu.flush and (one := block.take_one()) is not None:
            self.cpu.store_one(*one)
        else:
            self.settle()

    def settle(self) -> None:
        """Before the guest goes on: have the stub do what hypercalls did to page tables."""
        block = self.private
        if not self.is_shadowed:
            block.forget()
        if not (self.cpu.flush or block.stores or block.retired):
            return
        if not block.fits:
            self.forget_all()
            block.forget()
        flush, self.cpu.flush = self.cpu.flush, False
        block.work(flush)

    is_shadowed = True
    """Whether the engine keeps page tables of its own, which follow the guest's only if CPL 0 stores there."""
    forget_all: Callable[[], None]
    """Have every processor forget all that it knows of page tables, however long that takes."""

    def software_interrupt(self) -> int | None:
        """The number of the INT n that faulted; None where it is another instruction."""
        code = self._code(INT_SIZE)
        return code[1] if len(code) == INT_SIZE and code[0] == _INT else None

    def emulate(self) -> bool:
        """#GP of the kernel's: carry the instruction out if it is one that Xen does. False: the guest gets it."""
        found = decode(self._code(_LONGEST))
        if found is None or not self._privileged(found):
            return False
        self.cpu.rip += found.length
        return True

    def _privileged(self, found: Privileged) -> bool:
        regs = self.cpu.registers
        match found.operation:
            case "rdmsr":
                value = self.read_msr(regs[1] & _MASK32)
                if value is None:
                    return False
                regs[0], regs[2] = value & _MASK32, value >> 32
            case "wrmsr":
                return self.write_msr(regs[1] & _MASK32, regs[2] << 32 | regs[0] & _MASK32)
            case "xsetbv":
                return not regs[1] & _MASK32 and self._xsetbv(regs[2] << 32 & _HIGH32 | regs[0] & _MASK32)
            case "clts":
                self.set_task_switched(False)
            case "cpuid":
                regs[0], regs[3], regs[1], regs[2] = self._cpuid.look_up(regs[0] & _MASK32, regs[1] & _MASK32)
            case "in":
                port = regs[2] & 0xFFFF if found.number is None else found.number
                mask = (1 << 8 * found.size) - 1
                value = 0 if port == _PIT_COUNTER_2 else mask  # see `VcpuThread`
                regs[0] = value if found.size == 4 else regs[0] & ~mask | value
            case "read_cr":
                regs[found.register] = self.read_cr(found.number or 0)
            case "write_cr":
                return self.write_cr(found.number or 0, regs[found.register])
            case "read_dr":
                regs[found.register] = self.debug[(found.number or 0) & 7]
            case "write_dr":
                self.debug[(found.number or 0) & 7] = regs[found.register]
        return True

    read_msr: Callable[[int], int | None]
    write_msr: Callable[[int, int], bool]
    set_xcr0: Callable[[int], bool]


class Ring3Cpu:
    """A processor whose guest's kernel is at CPL 3; see `cpu.supervisor.Supervised`. RIP, RSP and flags are those of
    the frame that the stub has on its stack."""

    def __init__(self, vcpu: Vcpu, live: LiveRegisters, block: Block) -> None:
        self._vcpu, self._live, self._block = vcpu, live, block
        self._frame = block.frame
        self.trap_registers = TrapRegisters(live, block)
        self.registers: MutableSequence[int] = self.trap_registers
        self.hold: Callable[[], None] = lambda: None
        """Have the guest leave this processor, if the caller is another one's thread."""
        self.flush = False
        """Whether translations have to be forgotten before the guest goes on."""

    @property
    def rip(self) -> int:
        """The instruction that faulted."""
        return int(self._frame[_FRAME_RIP])

    @rip.setter
    def rip(self, value: int) -> None:
        self._frame[_FRAME_RIP] = value

    @property
    def cpl(self) -> int:
        """0 for the kernel, whose privilege Xen calls that."""
        return 0 if self._block.in_kernel else 3

    @property
    def fault_address(self) -> int:
        """CR2, which the stub hands on in RCX."""
        return int(self._live.words[2])

    @property
    def flags(self) -> int:
        """CF, PF, AF, ZF, SF and OF."""
        return int(self._frame[_FRAME_RFLAGS]) & _CC_FLAGS

    @flags.setter
    def flags(self, value: int) -> None:
        self._frame[_FRAME_RFLAGS] = self._frame[_FRAME_RFLAGS] & ~_CC_FLAGS | value & _CC_FLAGS

    def load_cr3(self, value: int) -> None:
        """Before the guest goes on."""
        self._block.set_root(value)
        self.flush = True

    def flush_tlb(self) -> None:
        """Before the guest goes on. Where another processor asks, the guest has left this one when this returns."""
        self.flush = True
        self.hold()

    def flush_page(self, linear: int) -> None:
        """As `flush_tlb`."""
        self.flush_tlb()

    def store_one(self, address: int, value: int) -> None:
        """Have the stub, which is about to return from a hypercall, make one store (stub.S, ONE)."""
        words = self._live.words
        self._frame[_FRAME_RIP] = words[_ORDER[_RCX]]
        words[_ORDER[_RCX]], words[_ORDER[_R11]] = address, value
        self._live.changed()

    def set_base(self, segment: str, base: int) -> None:
        """See `Supervised.set_base`."""
        self._vcpu.set_msrs({_BASES[segment]: base})

    def set_task_switched(self, wanted: bool) -> None:
        """CR0.TS."""
        sregs = self._vcpu.get_sregs()
        sregs.cr0 = sregs.cr0 & ~8 | (8 if wanted else 0)
        self._vcpu.set_sregs(sregs)

    def shortcut(self, number: int, rip: int) -> None:
        """Nothing: the stub has its own."""

    def native(self, code: bytes, state: int) -> None:
        """Nothing: hypercalls leave the guest here."""

    def interrupt(self, vector: int) -> None:
        """Nothing: the stub looks for events whenever it returns."""
