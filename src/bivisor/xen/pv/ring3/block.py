"""What stub.S knows of one virtual processor: handlers, stack, address spaces, and what the host has for it to do."""

from __future__ import annotations

from array import array
from typing import Final

from bivisor.abi.x86 import Pte
from bivisor.abi.xen import pv as abi
from bivisor.memory import PAGE
from bivisor.xen.pv.ring3 import hidden as h
from bivisor.xen.pv.ring3.stub import EVENT, GUEST_CS, GUEST_SS, PLAIN, SYSCALL

_MODE, _WORK, _BOUNCE, _NEAR = 0, 1, 2, 3
_OTHER: Final = 2
_ONE: Final = 2
_INFO, _KSP, _KROOT, _UROOT, _ROOT = 1, 2, 3, 4, 5  # in quads
_INDEX: Final = 4
_EARLIEST: Final = 56
NEVER: Final = (1 << 63) - 1
"""A deadline that there is not."""
_HANDLERS: Final = PAGE // 8
_FLAGS: Final = 0x1820
_STORES: Final = 0x2000 // 8
_ROOM: Final = (h.TSS - h.STORES) * PAGE // 8 - 2
_STATE: Final = slice(128 // 8, 256 // 8)
_RO: Final = int(Pte.P | Pte.A | Pte.D)
_RW: Final = _RO | int(Pte.RW)
_NX: Final = int(Pte.XD)
_HYPERVISORS: Final = range(abi.HYPERVISOR_VIRT_START, abi.HYPERVISOR_VIRT_START + (len(abi.HYPERVISOR_SLOTS) << 39))
_NOWHERE: Final = abi.HYPERVISOR_VIRT_START  # what is below is no address
_CALLBACKS: Final = {abi.CallbackType.EVENT: EVENT, abi.CallbackType.SYSCALL: SYSCALL}


class Block:
    """That of processor `index`."""

    def __init__(self, hidden: h.Hidden, index: int) -> None:
        self._hidden = hidden
        self.linear = h.BLOCKS + index * h.BLOCK
        self.top = self.linear + h.TOP * PAGE
        self._pages = hidden.pages[index]
        at = hidden.own[index] + (h.TOP - h.OWN_GDT) * PAGE
        end = hidden.own[index] + (h.TSS - h.OWN_GDT) * PAGE
        self.bytes = hidden.view[at:end]
        self.quads = self.bytes.cast("Q")
        self.frame = hidden.view[at - 64 : at].cast("Q")
        """What the stub has on its stack: RCX, R11, error code, RIP, CS, RFLAGS, RSP, SS."""
        self.second = hidden.view[at + h.SECOND - 64 : at + h.SECOND].cast("Q")
        self.times = self.bytes[_EARLIEST : _EARLIEST + 16].cast("q")
        """Of its timer: to when the guest may set it without leaving the hypervisor's part, and when it is to ring."""
        self.times[0] = self.times[1] = NEVER
        self.near = self.quads[_STATE]
        """What near.S and fast.S know of the processor."""
        self.stores: dict[int, int] = {}
        """What the stub is to store: linear addresses of page-table entries, and their values."""
        self.retired: set[int] = set()
        """Frames that are no page tables any more."""
        self.callable: set[int] = set()
        """Vectors that a program may call by INT n."""
        for number in range(258):
            self._handler(number, 0, 0)
        self.bytes[_MODE] = 1
        self.bytes[_INDEX : _INDEX + 4] = index.to_bytes(4, "little")

    @property
    def in_kernel(self) -> bool:
        """Whether the kernel runs, and not a program."""
        return bool(self.bytes[_MODE])

    # ---------------------------------------------------------------- what hypercalls set

    def _handler(self, number: int, address: int, flags: int) -> None:
        self.quads[_HANDLERS + number] = address or h.NO_HANDLER
        self.bytes[_FLAGS + number] = flags

    def set_trap(self, vector: int, address: int, flags: int) -> None:
        """The guest's handler of `vector`; `flags` as in `struct trap_info`. Address 0: none."""
        self._handler(vector, address, flags & abi.TRAP_MASKS_EVENTS)
        if address and flags & abi.TRAP_DPL == abi.TRAP_DPL:
            self.callable.add(vector)
        else:
            self.callable.discard(vector)

    def set_callback(self, kind: int, address: int, *, masks_events: bool) -> None:
        """A callback; one that this processor never calls (failsafe, NMI, SYSENTER) is taken and forgotten."""
        number = _CALLBACKS.get(kind)  # type: ignore[call-overload]
        if number is not None:
            self._handler(number, address, abi.TRAP_MASKS_EVENTS if masks_events else 0)

    def set_stack(self, rsp: int) -> None:
        """Where the kernel's stack begins when a program is left. The stub, which stores there at CPL 0, may reach the
        hypervisor's part: a stack in it is nowhere."""
        self.quads[_KSP] = _NOWHERE if rsp in _HYPERVISORS else rsp & -16

    def set_iopl(self, iopl: int) -> None:
        """Nothing that a program could do with it."""

    def set_info(self, gpa: int) -> None:
        """`struct vcpu_info` is at `gpa`."""
        self._map(h.INFO, gpa & -PAGE | _RW | _NX)
        self.quads[_INFO] = self.linear + h.INFO * PAGE + (gpa & PAGE - 1)

    @property
    def info(self) -> int:
        """Where the stub has `struct vcpu_info`."""
        return self.quads[_INFO]

    def set_near(self, wanted: bool) -> None:
        """Whether near.S may carry hypercalls out."""
        self.bytes[_NEAR] = wanted

    def _map(self, page: int, entry: int) -> None:
        self._hidden.put(self._pages + 8 * page, entry)
        self.stores[self.linear + h.TABLE * PAGE + 8 * page] = entry

    def set_gdt(self, mfns: tuple[int, ...]) -> None:
        """The pages of the guest's descriptor table."""
        for index in range(abi.FIRST_RESERVED_GDT_PAGE):
            gpa = mfns[index] * PAGE if index < len(mfns) else h.GPA + self._hidden.zero
            self._map(index, gpa | _RO | _NX)

    def set_root(self, address: int) -> None:
        """The level-4 table while the kernel runs."""
        self.quads[_KROOT] = address

    def set_user_root(self, address: int) -> None:
        """The one while a program runs; 0 for none."""
        self.quads[_UROOT] = address

    # ---------------------------------------------------------------- what the stub is to do

    def bounce(self, wanted: bool) -> None:
        """Whether the guest gets the exception that the host has looked at."""
        self.bytes[_BOUNCE] = wanted

    def bounce_with_error(self, error: int) -> None:
        """The guest gets the exception whose number is in R11, with an error code, for one that has none."""
        frame = self.frame
        frame[0], frame[1], frame[2] = frame[1], frame[2], error
        self.bytes[_BOUNCE] = _OTHER

    def bounce_without_error(self) -> None:
        """The guest gets the exception whose number is in R11, without an error code, for one that has it."""
        frame = self.frame
        frame[1], frame[2] = frame[0], frame[1]
        self.bytes[_BOUNCE] = _OTHER

    def give_back(self, rip: int, rsp: int) -> None:
        """Make the frame of a return to the kernel."""
        self.frame[3:] = array("Q", (rip, GUEST_CS, PLAIN, rsp, GUEST_SS))

    @property
    def fits(self) -> bool:
        """Whether there is room for what the stub is to do."""
        return 2 * len(self.stores) + len(self.retired) <= _ROOM

    def forget(self) -> None:
        """The engine knows no page tables: there is nothing to do."""
        self.stores.clear()
        self.retired.clear()

    def take_one(self) -> tuple[int, int] | None:
        """The only thing that the stub is to do, if it is a store: address and value, which it expects in RCX and R11
        when a hypercall returns. Takes it out of `stores`."""
        if len(self.stores) != 1 or self.retired:
            return None
        self.bytes[_WORK] = _ONE
        return self.stores.popitem()

    def work(self, flush: bool) -> None:
        """Have the stub make `stores`, if they fit, and forget translations if `flush`."""
        quads = self.quads
        at = _STORES
        for address, value in self.stores.items():
            quads[at] = address
            quads[at + 1] = value
            at += 2
        self.stores.clear()
        quads[at] = 0
        at += 1
        for mfn in self.retired:
            quads[at] = h.WINDOW + mfn * PAGE
            at += 1
        self.retired.clear()
        quads[at] = 0
        quads[_ROOT] = quads[_KROOT if self.bytes[_MODE] else _UROOT] if flush else 0
        self.bytes[_WORK] = 1

    def close(self) -> None:
        """Let go of the memory."""
        for view in (self.times, self.near, self.frame, self.second, self.quads, self.bytes):
            view.release()
