"""Between the plain data of `cpu/registers.py` and the structures of linux/kvm.h."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from bivisor.abi import linux_kvm as abi
from bivisor.abi.linux_kvm import EventFlag, GuestDbg
from bivisor.cpu.registers import CpuidEntry, DescriptorTable, Events, Fpu, GuestDebug, Regs, Segment, Sregs
from bivisor.errors import UsageError

_SEGMENT_FIELDS = 12
_SEGMENTS = 8


def pack_regs(regs: Regs) -> bytes:
    """struct kvm_regs."""
    return abi.REGS.pack(*(getattr(regs, name) for name in Regs.__slots__))


def unpack_regs(data: bytes | bytearray) -> Regs:
    """struct kvm_regs."""
    return Regs(*abi.REGS.unpack(data))


def _segment(s: Segment) -> tuple[int, ...]:
    return (s.base, s.limit, s.selector, s.type, s.present, s.dpl, s.db, s.s, s.l, s.g, s.avl, s.unusable)


def pack_sregs(s: Sregs) -> bytes:
    """struct kvm_sregs with no interrupt pending."""
    fields: list[int] = []
    for segment in (s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.tr, s.ldt):
        fields += _segment(segment)
    for table in (s.gdt, s.idt):
        fields += (table.base, table.limit)
    return abi.SREGS.pack(*fields, s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base)


def unpack_sregs(data: bytes | bytearray) -> Sregs:
    """struct kvm_sregs."""
    fields = abi.SREGS.unpack(data)
    ends = range(0, _SEGMENTS * _SEGMENT_FIELDS, _SEGMENT_FIELDS)
    cs, ds, es, fs, gs, ss, tr, ldt = (Segment(*fields[at : at + _SEGMENT_FIELDS]) for at in ends)
    gdt_base, gdt_limit, idt_base, idt_limit, *rest = fields[_SEGMENTS * _SEGMENT_FIELDS :]
    gdt, idt = DescriptorTable(gdt_base, gdt_limit), DescriptorTable(idt_base, idt_limit)
    return Sregs(cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, *rest)


def put_fpu(xsave: bytearray, f: Fpu) -> None:
    """Replace the x87 and SSE parts of a struct kvm_xsave, and mark them as in use."""
    (mask,) = struct.unpack_from("<I", xsave, abi.XSAVE_MXCSR_MASK)
    control = (f.fcw, f.fsw, f.ftwx, f.last_opcode, f.last_ip, f.last_dp, f.mxcsr, mask)
    abi.FXSAVE.pack_into(xsave, 0, *control, *f.fpr, *f.xmm)
    xsave[abi.XSAVE_XSTATE_BV] |= abi.XSTATE_X87_AND_SSE


def unpack_fpu(xsave: bytes | bytearray) -> Fpu:
    """The x87 and SSE parts of a struct kvm_xsave."""
    fcw, fsw, ftwx, last_opcode, last_ip, last_dp, mxcsr, _, *registers = abi.FXSAVE.unpack_from(xsave)
    return Fpu(registers[:8], fcw, fsw, ftwx, last_opcode, last_ip, last_dp, registers[8:], mxcsr)


def pack_events(e: Events) -> bytes:
    """struct kvm_vcpu_events; what is pending as an SMI or SIPI stays as it is."""
    return abi.VCPU_EVENTS.pack(
        e.exception is not None, e.exception or 0, e.exception_error is not None, 0, e.exception_error or 0,
        e.interrupt is not None, e.interrupt or 0, e.interrupt_soft, abi.SHADOW_INT_STI if e.interrupt_shadow else 0,
        e.nmi_injected, e.nmi_pending, e.nmi_masked,
        0, EventFlag.VALID_NMI_PENDING | EventFlag.VALID_SHADOW,
        0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def unpack_events(data: bytes | bytearray) -> Events:
    """struct kvm_vcpu_events."""
    (
        injected, nr, has_error, pending, error,
        irq_injected, irq_nr, irq_soft, shadow,
        nmi_injected, nmi_pending, nmi_masked, *_,
    ) = abi.VCPU_EVENTS.unpack(data)  # fmt: skip
    exception = bool(injected or pending)
    return Events(
        exception=nr if exception else None,
        exception_error=error if exception and has_error else None,
        interrupt=irq_nr if irq_injected else None,
        interrupt_soft=bool(irq_soft),
        interrupt_shadow=bool(shadow),
        nmi_injected=bool(nmi_injected),
        nmi_pending=bool(nmi_pending),
        nmi_masked=bool(nmi_masked),
    )


def pack_debug(debug: GuestDebug) -> bytes:
    """struct kvm_guest_debug. Addresses without a DR7 become execution breakpoints."""
    if len(debug.addresses) > 4:
        raise UsageError(f"{len(debug.addresses)} hardware breakpoints: the processor has 4")
    control = GuestDbg(0)
    dr7 = debug.dr7
    if debug.single_step:
        control |= GuestDbg.ENABLE | GuestDbg.SINGLESTEP
    if debug.software_breakpoints:
        control |= GuestDbg.ENABLE | GuestDbg.USE_SW_BP
    if debug.addresses or dr7:
        control |= GuestDbg.ENABLE | GuestDbg.USE_HW_BP
        dr7 = dr7 or sum(2 << 2 * number for number in range(len(debug.addresses)))
    addresses = (*debug.addresses, 0, 0, 0, 0)[:4]
    return abi.GUEST_DEBUG.pack(control, *addresses, 0, 0, 0, dr7 | 0x400)


def pack_cpuid(entries: Iterable[CpuidEntry]) -> bytearray:
    """struct kvm_cpuid2."""
    packed = []
    for e in entries:
        flags = 0 if e.subleaf is None else abi.CPUID_FLAG_SIGNIFCANT_INDEX
        packed.append(abi.CPUID_ENTRY2.pack(e.leaf, e.subleaf or 0, flags, e.eax, e.ebx, e.ecx, e.edx))
    return bytearray(abi.CPUID2.pack(len(packed)) + b"".join(packed))


def unpack_cpuid(data: bytes | bytearray) -> tuple[CpuidEntry, ...]:
    """struct kvm_cpuid2."""
    (count,) = abi.CPUID2.unpack_from(data)
    found = []
    for number in range(count):
        at = abi.CPUID2.size + number * abi.CPUID_ENTRY2.size
        leaf, index, flags, *values = abi.CPUID_ENTRY2.unpack_from(data, at)
        found.append(CpuidEntry(leaf, index if flags & abi.CPUID_FLAG_SIGNIFCANT_INDEX else None, *values))
    return tuple(found)
