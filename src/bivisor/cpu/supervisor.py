"""A kernel that runs under a hypervisor by agreement: what the engine hands to it, beyond the contract of a processor.

A supervised kernel runs at CPL 0 of the machine that it is alone in, and calls its hypervisor by SYSCALL, which for a
program at CPL 3 stays the system call that the architecture has. Control registers are the hypervisor's; invalid
opcodes and stores to pages that the kernel may not write are shown to it first. Everything else (exceptions, the
interrupt descriptor table, segments) is the processor's, at its own speed: a hypervisor that wants to be between sets
the tables up so. `cpu.soft` has this; a processor of the contract does not need it.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Protocol, runtime_checkable


class Supervisor(Protocol):
    """Who is asked. Each method is called by the processor's own thread, between two instructions of the guest."""

    def call(self) -> bool:
        """SYSCALL at CPL 0: the registers are live, RIP is behind it. False: `run()` comes back with `Hypercall`."""

    def read_cr(self, number: int) -> int:
        """What a MOV from control register 0, 3 or 4 finds."""

    def write_cr(self, number: int, value: int) -> bool:
        """A MOV to a control register; False: the guest gets #GP."""

    def trap(self, vector: int, error: int) -> bool:
        """#UD anywhere, or #PF for a store of CPL 0 to a page that is present. True: it is dealt with and RIP is where
        the guest goes on; False: the guest gets the exception."""


class Supervised(Protocol):
    """The processor, as its supervisor reaches it. Everything is live: reading or writing it costs next to nothing."""

    @property
    def registers(self) -> MutableSequence[int]:
        """RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of their encoding."""

    @property
    def rip(self) -> int:
        """The instruction that is next or, in `Supervisor.trap`, the one that faulted."""

    @rip.setter
    def rip(self, value: int) -> None: ...

    @property
    def cpl(self) -> int:
        """The privilege level that it runs at."""

    @property
    def fault_address(self) -> int:
        """CR2."""

    @property
    def flags(self) -> int:
        """CF, PF, AF, ZF, SF and OF of RFLAGS."""

    @flags.setter
    def flags(self, value: int) -> None: ...

    def load_cr3(self, value: int) -> None:
        """Change the address space, which forgets what the old one's page tables said."""

    def flush_tlb(self) -> None:
        """Forget what page tables said. From the thread of any processor of the machine, as `flush_page`: the guest on
        this one does not go on with what it knew before."""

    def flush_page(self, linear: int) -> None:
        """Forget it for one address."""

    def set_base(self, segment: str, base: int) -> None:
        """The base of "fs", "gs", or "kernel_gs" (what SWAPGS will bring)."""

    def set_task_switched(self, wanted: bool) -> None:
        """CR0.TS: whether the next FPU instruction gives #NM."""

    def shortcut(self, number: int, rip: int) -> None:
        """SYSCALL at CPL 0 with `number` in RAX calls nobody, but goes on at `rip`: for what the kernel asks so often
        that code of the hypervisor's lies in the guest for it."""

    def native(self, code: bytes, state: int) -> None:
        """Code of the host's processor that SYSCALL at CPL 0 goes to before `Supervisor.call`, called as
        `code(registers, state)`: 0 if the supervisor has to be asked, 1 if it has answered, else what to load into CR3
        as it has answered. No code: none any more. It only saves time: an engine that runs the guest elsewhere than in
        this process does nothing."""

    def interrupt(self, vector: int) -> None:
        """Deliver `vector` through the IDT as soon as RFLAGS.IF is set, unless that of the NMI waits for this: then the
        supervisor has to ask again. For the processor's own thread."""


@runtime_checkable
class LocalTables(Protocol):
    """A `Supervised` that can have a local descriptor table."""

    def load_ldt(self, base: int, size: int) -> None:
        """The table is at linear address `base`, of `size` bytes; 0: none."""
