"""The ACPI tables of an HVM domain, as hvmloader makes them: RSDP, RSDT, XSDT, FADT, FACS, DSDT, MADT, WAET.

Specification: ACPI 6.5, chapter 5; the registers are where hvm/ioreq.h says, version 1 of their places.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bivisor.abi.xen import ioreq
from bivisor.platform import acpi_pm, ioapic, rtc
from bivisor.platform.acpi import aml, resources
from bivisor.platform.pci.bus import ADDRESS_PORT, PORTS
from bivisor.toolstack.hvmloader.pci import LINK_IRQS
from bivisor.xen.hvm.irq import PINS, pci_link
from bivisor.xen.hvm.platform import PCI_ISA_IRQS

_OEM, _OEM_TABLE, _CREATOR = b"Xen\0\0\0", b"HVM\0\0\0\0\0", b"HVML"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_AT = 9
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_FACS = struct.Struct("<4sIIIIIQB31x")
_GAS = struct.Struct("<BBBBQ")
_LOCAL_APIC_BASE = 0xFEE0_0000
_ALIGNMENT = 64
_PCAT_COMPAT = 1
_LEGACY_DEVICES, _HAS_8042 = 1 << 0, 1 << 1
_WBINVD, _PROC_C1, _SLP_BUTTON, _FIX_RTC, _TMR_VAL_EXT = 1 << 0, 1 << 2, 1 << 5, 1 << 6, 1 << 8
_LEVEL_LOW = 0x000F
_WAET_RTC_GOOD, _WAET_TIMER_ONE_READ = 1 << 0, 1 << 1
PCI_WINDOW = (0xE000_0000, 0xFBFF_FFFF)


@dataclass(frozen=True, slots=True)
class Tables:
    """`image` belongs at the address that it was made for; `rsdp` is the address of the root pointer in it."""

    image: bytes
    rsdp: int


def build(base: int, cpus: int) -> Tables:
    """The tables of a domain with `cpus` processors, made for guest-physical `base`, a multiple of 64."""
    image = bytearray()

    def place(table: bytes) -> int:
        image.extend(bytes(-len(image) % _ALIGNMENT))
        address = base + len(image)
        image.extend(table)
        return address

    facs = place(_FACS.pack(b"FACS", _FACS.size, 0, 0, 0, 0, 0, 1))
    definition = place(_table(b"DSDT", 2, _definition()))
    tables = [
        place(_fadt(facs, definition)),
        place(_madt(cpus)),
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

    def register(port: int, length: int, access: int) -> bytes:
        return _GAS.pack(1, 8 * length, 0, access, port)

    body = b"".join(
        (
            struct.pack("<IIBBHIBBBB", facs, definition, 0, 0, acpi_pm.SCI_IRQ, 0, 0, 0, 0, 0),
            struct.pack("<8I", event, 0, control, 0, 0, timer, gpe, 0),
            struct.pack("<6B", 4, 2, 0, 4, ioreq.ACPI_GPE0_BLK_LEN_V1, 0),
            struct.pack("<BBHHHHBBBBB", 0, 0, 0xFFF, 0xFFF, 0, 0, 0, 0, 0, 0, rtc.CENTURY),
            struct.pack(
                "<HBI",
                _LEGACY_DEVICES | _HAS_8042,
                0,
                _PROC_C1 | _WBINVD | _SLP_BUTTON | _FIX_RTC | _TMR_VAL_EXT,
            ),
            nothing,
            struct.pack("<BHB", 0, 0, 0),
            struct.pack("<QQ", facs, definition),
            register(event, 4, 2),
            nothing,
            register(control, 2, 2),
            nothing,
            nothing,
            register(timer, 4, 3),
            register(gpe, ioreq.ACPI_GPE0_BLK_LEN_V1, 1),
            nothing,
        )
    )
    return _table(b"FACP", 4, body)


def _madt(cpus: int) -> bytes:
    entries = [struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)]  # the 8254 is input 2
    entries += [
        struct.pack("<BBBBIH", 2, 10, 0, irq, irq, _LEVEL_LOW) for irq in sorted((*PCI_ISA_IRQS, acpi_pm.SCI_IRQ))
    ]
    entries.append(struct.pack("<BBBBII", 1, 12, 1, 0, ioapic.BASE, 0))
    entries += [struct.pack("<BBBBI", 0, 8, cpu, cpu, 1) for cpu in range(cpus)]
    return _table(b"APIC", 2, struct.pack("<II", _LOCAL_APIC_BASE, _PCAT_COMPAT) + b"".join(entries))


def _definition() -> bytes:
    nothing = aml.ZERO
    sleep = aml.name("\\_S5", aml.package(nothing, nothing, nothing, nothing))
    return sleep + aml.scope("\\_SB", _host_bridge())


def _host_bridge() -> bytes:
    windows = resources.template(
        resources.bus_numbers(0, 0xFF),
        resources.io(ADDRESS_PORT, PORTS),
        resources.io_window(0x0000, ADDRESS_PORT - 1),
        resources.io_window(ADDRESS_PORT + PORTS, 0xFFFF),
        resources.memory_window(0xA_0000, 0xB_FFFF),
        resources.memory_window(*PCI_WINDOW),
    )
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.ZERO),
        aml.name("_ADR", aml.ZERO),
        aml.name("_BBN", aml.ZERO),
        aml.name("_CRS", windows),
        aml.name("_PRT", _routes()),
        aml.device("ISA_", aml.name("_ADR", aml.integer(1 << 16)), *_isa_devices()),
    )


def _routes() -> bytes:
    """Every pin of every slot; AML packages hold 255 elements."""
    return aml.package(
        *(
            aml.package(
                aml.integer(slot << 16 | 0xFFFF),
                aml.integer(pin),
                aml.ZERO,
                aml.integer(LINK_IRQS[pci_link(slot, pin)]),
            )
            for slot in range(1, 32)
            for pin in range(PINS)
        )
    )


def _isa_devices() -> list[bytes]:
    def isa(name: str, hid: str, *parts: bytes, uid: int | None = None) -> bytes:
        number = () if uid is None else (aml.name("_UID", aml.integer(uid)),)
        return aml.device(
            name, aml.name("_HID", aml.eisa_id(hid)), *number, aml.name("_CRS", resources.template(*parts))
        )

    return [
        isa("RTC_", "PNP0B00", resources.io(rtc.BASE_PORT, 2), resources.irq(rtc.IRQ)),
        isa("PS2K", "PNP0303", resources.io(0x60, 1), resources.io(0x64, 1), resources.irq(1)),
        isa("PS2M", "PNP0F13", resources.irq(12)),
        isa("UAR1", "PNP0501", resources.io(0x3F8, 8), resources.irq(4), uid=1),
    ]
