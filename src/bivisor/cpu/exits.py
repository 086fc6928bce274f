"""Why a virtual processor left the guest: one frozen class per reason, to be matched with `match`.

The names are those of the KVM API (Documentation/virt/kvm/api.rst, section 5, `exit_reason`). Where an exit wants an
answer, it carries a small writable view (`data`, `result`, `error`); what is written there before the next `run()` is
what the guest sees. An engine may hand out the same exit object again for the same access, so that an exit costs no
allocation: read what you need before the next `run()`, and do not keep `data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Direction(Enum):
    """Which way the data of a port access goes, seen from the guest."""

    IN = "in"
    OUT = "out"


@dataclass(frozen=True, slots=True)
class PortIo:
    """IN, OUT, INS or OUTS (KVM_EXIT_IO). `data` holds `count` items of `size` (1, 2, 4) bytes; a string form with a
    repeat prefix may come with `count` above 1 or as several exits. IN: fill `data`."""

    direction: Direction
    port: int
    size: int
    count: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Mmio:
    """An access of `length` (1 to 8) bytes to guest-physical `address` that is not memory (KVM_EXIT_MMIO). A write to a
    read-only slot comes as one too. One of more than 4 bytes may come in parts, lowest address first, as on a bus of 32
    bits. Read: fill `data`."""

    address: int
    length: int
    is_write: bool
    data: memoryview


@dataclass(frozen=True, slots=True)
class Hlt:
    """HLT, and the processor has nothing to wake for (KVM_EXIT_HLT). With an interrupt controller in the engine it is
    handled there and this exit says that nothing can ever wake the processor, or it does not come at all."""


@dataclass(frozen=True, slots=True)
class RdMsr:
    """RDMSR of an MSR that the engine does not own or that the filter denies (KVM_EXIT_X86_RDMSR). Fill the 8 bytes of
    `data`, or set `error[0]` to 1: the guest gets #GP."""

    index: int
    data: memoryview
    error: memoryview


@dataclass(frozen=True, slots=True)
class WrMsr:
    """WRMSR likewise (KVM_EXIT_X86_WRMSR). Set `error[0]` to 1 to give the guest #GP."""

    index: int
    value: int
    error: memoryview


@dataclass(frozen=True, slots=True)
class Cpuid:
    """CPUID, where the engine was asked to exit on it. Fill the 16 bytes of `data`: EAX, EBX, ECX, EDX."""

    leaf: int
    subleaf: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Hypercall:
    """VMCALL or VMMCALL (KVM_EXIT_HYPERCALL, KVM_EXIT_XEN). `args` are in the order of `abi`: "kvm" is RBX, RCX, RDX,
    RSI; "xen" is RDI, RSI, RDX, R10, R8, R9 (or the 32-bit order where `long_mode` is false). Fill the 8 bytes of
    `result`: RAX."""

    abi: str
    nr: int
    args: tuple[int, ...]
    cpl: int
    long_mode: bool
    result: memoryview


@dataclass(frozen=True, slots=True)
class InterruptWindow:
    """The guest can take an interrupt now, as was asked for (KVM_EXIT_IRQ_WINDOW_OPEN)."""


@dataclass(frozen=True, slots=True)
class Debug:
    """A breakpoint or single step that the host set (KVM_EXIT_DEBUG). `exception` is 1 (#DB) or 3 (#BP)."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """A triple fault (KVM_EXIT_SHUTDOWN)."""


@dataclass(frozen=True, slots=True)
class FailEntry:
    """VM entry failed (KVM_EXIT_FAIL_ENTRY): the guest state that was set is not valid."""

    hardware_reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class InternalError:
    """The engine gave up (KVM_EXIT_INTERNAL_ERROR): an instruction that it cannot emulate, or a state that it cannot
    enter. `data` and `text` are all that it said."""

    suberror: int
    data: tuple[int, ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class SystemEvent:
    """The guest asked for reset, shutdown or crash through the engine (KVM_EXIT_SYSTEM_EVENT)."""

    type: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The host asked for it with `kick()` (KVM_EXIT_INTR, EINTR)."""


@dataclass(frozen=True, slots=True)
class UnknownExit:
    """A reason that this program does not know."""

    reason: int


Exit = (
    PortIo
    | Mmio
    | Hlt
    | RdMsr
    | WrMsr
    | Cpuid
    | Hypercall
    | InterruptWindow
    | Debug
    | Shutdown
    | FailEntry
    | InternalError
    | SystemEvent
    | Interrupted
    | UnknownExit
)
