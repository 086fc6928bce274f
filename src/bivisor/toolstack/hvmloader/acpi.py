"""The ACPI tables of an HVM domain, as hvmloader makes them: RSDP, RSDT, XSDT, FADT, FACS, DSDT, MADT, HPET, WAET.

Specification: ACPI 6.5, chapter 5; the registers are where hvm/ioreq.h says, version 1 of their places. What may be
said in several ways is said as on Xen 4.17.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bivisor.abi.xen import ioreq
from bivisor.platform import acpi_pm, hpet, ioapic, reset
from bivisor.toolstack.hvmloader import dsdt
from bivisor.xen.hvm.platform import IO_APIC_ID, PCI_ISA_IRQS

_OEM, _OEM_TABLE, _CREATOR = b"Xen\0\0\0", b"HVM\0\0\0\0\0", b"HVML"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_AT = 9
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_FACS = struct.Struct("<4sIIIIIQB31x")
_GAS = struct.Struct("<BBBBQ")
_HPET = struct.Struct("<IBBBBQBHB")
_LOCAL_APIC_BASE = 0xFEE0_0000
_ALIGNMENT = 64
_PCAT_COMPAT = 1
_HAS_8042 = 1 << 1
_WBINVD, _PROC_C1, _FIX_RTC, _TMR_VAL_EXT, _USE_PLATFORM_CLOCK = 1 << 0, 1 << 2, 1 << 6, 1 << 8, 1 << 15
_RESET_VALUE = 0x06
_LEVEL_LOW = 0x000F
_WAET_RTC_GOOD, _WAET_TIMER_ONE_READ = 1 << 0, 1 << 1


@dataclass(frozen=True, slots=True)
class Chipset:
    """What tables say beside the rest: inputs of the I/O APIC, which of them is the 8254's, the HPET's capabilities."""

    gsis: int
    timer_gsi: int
    hpet: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What the tables say of it: processors, where PCI is below 4 GiB (first and last address)."""

    cpus: int
    window: tuple[int, int]
    chipset: Chipset


@dataclass(frozen=True, slots=True)
class Tables:
    """`image` belongs at the address that it was made for; `rsdp` is the address of the root pointer in it."""

    image: bytes
    rsdp: int


def build(base: int, machine: Machine) -> Tables:
    """The tables of `machine`, made for guest-physical `base`, a multiple of 64."""
    image = bytearray()

    def place(table: bytes) -> int:
        image.extend(bytes(-len(image) % _ALIGNMENT))
        address = base + len(image)
        image.extend(table)
        return address

    facs = place(_FACS.pack(b"FACS", _FACS.size, 0, 0, 0, 0, 0, 1))
    definition = place(_table(b"DSDT", 2, dsdt.build(machine.window, machine.chipset.gsis)))
    tables = [
        place(_fadt(facs, definition)),
        place(_madt(machine.cpus, machine.chipset.timer_gsi)),
        place(_table(b"HPET", 1, _HPET.pack(machine.chipset.hpet, 0, 0, 0, 0, hpet.BASE, 0, 0, 0))),
        place(_table(b"WAET", 1, struct.pack("<I", _WAET_RTC_GOOD | _WAET_TIMER_ONE_READ))),
    ]
    rsdt = place(_table(b"RSDT", 1, struct.pack(f"<{len(tables)}I", *tables)))
    xsdt = place(_table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))
    return Tables(*_with_root(image, base, rsdt, xsdt))


def _with_root(image: bytearray, base: int, rsdt: int, xsdt: int) -> tuple[bytes, int]:
    image.extend(bytes(-len(image) % _ALIGNMENT))
    root = bytearray(_RSDP.pack(b"RSD PTR ", 0, _OEM, 2, rsdt, _RSDP.size, xsdt, 0))
    root[8] = -sum(root[:20]) & 0xFF
    root[32] = -sum(root) & 0xFF
    rsdp = base + len(image)
    return bytes(image + root), rsdp


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = _HEADER.pack(signature, _HEADER.size + len(body), revision, 0, _OEM, _OEM_TABLE, 0, _CREATOR, 0)
    table = bytearray(header + body)
    table[_CHECKSUM_AT] = -sum(table) & 0xFF
    return bytes(table)


def _fadt(facs: int, definition: int) -> bytes:
    event, control = ioreq.ACPI_PM1A_EVT_BLK_ADDRESS_V1, ioreq.ACPI_PM1A_CNT_BLK_ADDRESS_V1
    timer, gpe = ioreq.ACPI_PM_TMR_BLK_ADDRESS_V1, ioreq.ACPI_GPE0_BLK_ADDRESS_V1
    nothing = bytes(_GAS.size)

    def register(port: int, length: int) -> bytes:
        return _GAS.pack(1, 8 * length, 0, 0, port)

    body = b"".join(
        (
            struct.pack("<IIBBHIBBBB", facs, definition, 0, 0, acpi_pm.SCI_IRQ, 0, 0, 0, 0, 0),
            struct.pack("<8I", event, 0, control, 0, 0, timer, gpe, 0),
            struct.pack("<6B", 4, 2, 0, 4, ioreq.ACPI_GPE0_BLK_LEN_V1, 0),
            struct.pack("<BBHHHHBBBBB", 0, 0, 0xFFF, 0xFFF, 0, 0, 0, 0, 0, 0, 0),
            struct.pack("<HBI", _HAS_8042, 0, _PROC_C1 | _WBINVD | _FIX_RTC | _TMR_VAL_EXT | _USE_PLATFORM_CLOCK),
            register(reset.RESET_PORT, 1),
            struct.pack("<BHB", _RESET_VALUE, 0, 0),
            struct.pack("<QQ", facs, definition),
            register(event, 4),
            nothing,
            register(control, 2),
            nothing,
            nothing,
            register(timer, 4),
            nothing,
            nothing,
        )
    )
    return _table(b"FACP", 4, body)


def _madt(cpus: int, timer_gsi: int) -> bytes:
    entries = [struct.pack("<BBBBIH", 2, 10, 0, 0, timer_gsi, 0)] if timer_gsi else []
    entries += [struct.pack("<BBBBIH", 2, 10, 0, irq, irq, _LEVEL_LOW) for irq in PCI_ISA_IRQS]
    entries.append(struct.pack("<BBBBII", 1, 12, IO_APIC_ID, 0, ioapic.BASE, 0))
    entries += [struct.pack("<BBBBI", 0, 8, cpu, cpu, 1) for cpu in range(cpus)]
    return _table(b"APIC", 2, struct.pack("<II", _LOCAL_APIC_BASE, _PCAT_COMPAT) + b"".join(entries))
