"""The registers of a local APIC as MSRs 0x800 to 0x8FF: Intel SDM volume 3, 11.12.1.2."""

from __future__ import annotations

from bivisor.abi.x86 import Apic
from bivisor.cpu.soft.lapic import LocalApic

_SELF_IPI = 0x3F0
_EOI_MSR = 0x80B
_NOT_READABLE = (Apic.DFR, Apic.ICR_HIGH, Apic.EOI, _SELF_IPI)
_NOT_WRITABLE = (Apic.DFR, Apic.ICR_HIGH, Apic.ID, Apic.LDR)


class ApicError(Exception):
    """The guest did what the SDM answers with #GP (reserved registers and bits)."""


def read_msr(apic: LocalApic, index: int) -> int:
    """RDMSR. ApicError where the SDM says #GP."""
    offset = (index - 0x800) << 4
    if not apic.x2apic or offset in _NOT_READABLE:
        raise ApicError
    if offset == Apic.ICR_LOW:
        return apic.icr
    if offset == Apic.LDR:
        return (apic.index >> 4) << 16 | 1 << (apic.index & 15)
    if not apic.has(offset):
        raise ApicError
    return apic.read(offset)


def write_msr(apic: LocalApic, index: int, value: int) -> None:
    """WRMSR. ApicError where the SDM says #GP."""
    if index == _EOI_MSR and apic.x2apic:
        if value:
            raise ApicError
        apic.eoi()
        return
    offset = (index - 0x800) << 4
    if not apic.x2apic or offset in _NOT_WRITABLE:
        raise ApicError
    if offset == Apic.ICR_LOW:
        apic.icr = value & 0xFFFF_FFFF_000C_CFFF
        apic.send(value & 0xFFFF_FFFF, value >> 32)
    elif value >> 32:
        raise ApicError
    elif offset == _SELF_IPI:
        apic.request(value & 0xFF)
    elif offset == Apic.ESR and value:
        raise ApicError
    elif apic.has(offset, writable=True):
        apic.write(offset, value)
    else:
        raise ApicError
