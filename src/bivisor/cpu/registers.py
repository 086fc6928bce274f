"""The state of a virtual processor as plain data (Intel SDM volume 3, section 25.4 "Guest-State Area"; KVM API 4.11).

All numbers are unsigned. A segment's fields are the hidden part of the segment register, as `struct kvm_segment` has
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Regs:
    """General registers (struct kvm_regs, in its order)."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


@dataclass(slots=True)
class Segment:
    """A segment register with its hidden part (struct kvm_segment). `limit` is in bytes, whatever `g` says."""

    base: int = 0
    limit: int = 0xFFFF
    selector: int = 0
    type: int = 3
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    l: int = 0  # noqa: E741 - the SDM's name of the bit
    g: int = 0
    avl: int = 0
    unusable: int = 0

    @classmethod
    def flat(cls, selector: int, *, code: bool, long: bool = False, dpl: int = 0) -> Segment:
        """Base 0, limit 4 GiB: code (execute, read, accessed) or data (read, write, accessed); 64-bit if `long`."""
        return cls(
            base=0,
            limit=0xFFFF_FFFF,
            selector=selector,
            type=11 if code else 3,
            dpl=dpl,
            db=0 if code and long else 1,
            l=1 if code and long else 0,
            g=1,
        )

    @classmethod
    def real(cls, selector: int, *, code: bool = False) -> Segment:
        """The segment as real mode has it: base is 16 times the selector, limit 64 KiB."""
        return cls(base=selector << 4, limit=0xFFFF, selector=selector, type=11 if code else 3)


@dataclass(slots=True)
class DescriptorTable:
    """GDTR or IDTR: linear `base`, `limit` in bytes less one."""

    base: int = 0
    limit: int = 0xFFFF


def _null() -> Segment:
    return Segment(limit=0, type=0, present=0, s=0, unusable=1)


@dataclass(slots=True)
class Sregs:
    """System registers (struct kvm_sregs). `apic_base` is IA32_APIC_BASE."""

    cs: Segment = field(default_factory=lambda: Segment.real(0, code=True))
    ds: Segment = field(default_factory=Segment)
    es: Segment = field(default_factory=Segment)
    fs: Segment = field(default_factory=Segment)
    gs: Segment = field(default_factory=Segment)
    ss: Segment = field(default_factory=Segment)
    tr: Segment = field(default_factory=lambda: Segment(type=11, s=0))
    ldt: Segment = field(default_factory=_null)
    gdt: DescriptorTable = field(default_factory=DescriptorTable)
    idt: DescriptorTable = field(default_factory=DescriptorTable)
    cr0: int = 0x6000_0010
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0xFEE0_0900


@dataclass(slots=True)
class Fpu:
    """x87 and SSE state (struct kvm_fpu): `fpr` 8 registers of 16 bytes (10 used), `xmm` 16 registers of 16 bytes,
    `ftwx` the abridged tag word (a bit set: the register is in use)."""

    fpr: list[bytes] = field(default_factory=lambda: [bytes(16)] * 8)
    fcw: int = 0x37F
    fsw: int = 0
    ftwx: int = 0
    last_opcode: int = 0
    last_ip: int = 0
    last_dp: int = 0
    xmm: list[bytes] = field(default_factory=lambda: [bytes(16)] * 16)
    mxcsr: int = 0x1F80


@dataclass(slots=True)
class Events:
    """What is on its way into the guest (struct kvm_vcpu_events): an exception, an interrupt, an NMI."""

    exception: int | None = None
    exception_error: int | None = None
    interrupt: int | None = None
    interrupt_soft: bool = False
    interrupt_shadow: bool = False
    nmi_injected: bool = False
    nmi_pending: bool = False
    nmi_masked: bool = False


@dataclass(slots=True)
class GuestDebug:
    """What the host wants to stop at (struct kvm_guest_debug): single step, `int3`, DR0 to DR3 with DR7.

    `outs` are linear addresses at which the host has put OUT DX, AL, where `int3` does not come out (`cpu.kvm.outs`).
    `block_interrupts`: none comes in the way of a step. On `soft`; with `kvm` an interrupt may be stepped into.
    """

    single_step: bool = False
    software_breakpoints: bool = False
    addresses: tuple[int, ...] = ()
    dr7: int = 0
    block_interrupts: bool = False
    outs: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """One CPUID leaf (struct kvm_cpuid_entry2). `subleaf` is None where ECX does not matter."""

    leaf: int
    subleaf: int | None
    eax: int
    ebx: int
    ecx: int
    edx: int
