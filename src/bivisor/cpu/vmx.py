"""VM exits and VM entries as things that can be looked at (Intel SDM volume 3, chapters 24 to 28).

On `soft` a processor can be given an observer, which gets a `VmExit` each time that the guest leaves non-root mode and
a `VmEntry` each time it goes back, with the state that was saved and loaded. On `kvm` the kernel owns that state; there
the exit's reason and qualification are derived from what it reports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bivisor.abi.x86 import ExitReason
from bivisor.cpu.exits import (
    Cpuid,
    Debug,
    Direction,
    Exit,
    FailEntry,
    Hlt,
    Hypercall,
    InternalError,
    Interrupted,
    InterruptWindow,
    Mmio,
    PortIo,
    RdMsr,
    Shutdown,
    SystemEvent,
    UnknownExit,
    WrMsr,
)
from bivisor.cpu.registers import Regs, Sregs


@dataclass(frozen=True, slots=True)
class GuestState:
    """The guest-state area (SDM 25.4) as far as both engines have it."""

    regs: Regs
    sregs: Sregs


@dataclass(frozen=True, slots=True)
class HostState:
    """What root mode goes on with (SDM 25.5): here a Python function, which is the host's RIP, and its thread."""

    rip: str
    thread: str


@dataclass(frozen=True, slots=True)
class VmExit:
    """The guest left non-root mode. `qualification` is the SDM's exit qualification (table 28-1 and on), `saved` the
    guest's state, None where the engine does not tell; `loaded` is what runs now."""

    reason: ExitReason
    qualification: int
    guest_physical: int | None
    exit: Exit
    saved: GuestState | None
    loaded: HostState


@dataclass(frozen=True, slots=True)
class VmEntry:
    """The guest goes on in non-root mode with `loaded` (SDM 27.3.2)."""

    loaded: GuestState | None


Observer = Callable[[VmExit | VmEntry], None]


def _io_qualification(exit_: PortIo) -> int:
    """SDM table 28-5; string and repeat forms are not told apart once the access is seen."""
    incoming = exit_.direction is Direction.IN
    return exit_.size - 1 | incoming << 3 | (exit_.count > 1) << 5 | exit_.port << 16


def reason_of(exit_: Exit) -> tuple[ExitReason, int, int | None]:
    """The basic exit reason, the exit qualification and the guest-physical address of `exit_`, in the SDM's terms."""
    match exit_:
        case PortIo():
            return ExitReason.IO_INSTRUCTION, _io_qualification(exit_), None
        case Mmio(address=address, is_write=is_write):
            return ExitReason.EPT_VIOLATION, 2 if is_write else 1, address
        case Hlt():
            return ExitReason.HLT, 0, None
        case RdMsr():
            return ExitReason.RDMSR, 0, None
        case WrMsr():
            return ExitReason.WRMSR, 0, None
        case Cpuid():
            return ExitReason.CPUID, 0, None
        case Hypercall():
            return ExitReason.VMCALL, 0, None
        case InterruptWindow():
            return ExitReason.INTERRUPT_WINDOW, 0, None
        case Debug(dr6=dr6):
            return ExitReason.EXCEPTION_OR_NMI, dr6 & 0xE00F, None
        case Shutdown():
            return ExitReason.TRIPLE_FAULT, 0, None
        case FailEntry() | InternalError():
            return ExitReason.ENTRY_FAILURE_GUEST_STATE, 0, None
        case Interrupted() | SystemEvent() | UnknownExit():
            return ExitReason.EXTERNAL_INTERRUPT, 0, None
