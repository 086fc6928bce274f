"""The static ACPI tables: RSDP, XSDT, FADT, FACS and MADT, laid out for one place in guest memory.

Specification: ACPI 6.5, sections 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.10 (FACS), 5.2.12 (MADT).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bivisor.platform import acpi_pm, ioapic, irqchip, reset, rtc
from bivisor.platform.acpi import dsdt

BASE, LIMIT = 0xE_0000, 0x10_0000
LOCAL_APIC = 0xFEE0_0000

_OEM, _OEM_TABLE, _CREATOR = b"BIVISR", b"BIVISOR ", b"BVSR"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_AT = 9
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_FACS = struct.Struct("<4sIIIIIQB31x")
_LOCAL_APIC = struct.Struct("<BBBBI")
_IO_APIC = struct.Struct("<BBBBII")
_OVERRIDE = struct.Struct("<BBBBIH")
_LOCAL_NMI = struct.Struct("<BBBHB")
_GAS = struct.Struct("<BBBBQ")
_ALIGNMENT = 64

_FADT_WBINVD, _FADT_PROC_C1, _FADT_SLP_BUTTON, _FADT_FIX_RTC = 1 << 0, 1 << 2, 1 << 5, 1 << 6
_FADT_TMR_VAL_EXT, _FADT_RESET_REG = 1 << 8, 1 << 10
_FADT_FLAGS = _FADT_WBINVD | _FADT_PROC_C1 | _FADT_SLP_BUTTON | _FADT_FIX_RTC | _FADT_TMR_VAL_EXT | _FADT_RESET_REG
_BOOT_LEGACY_DEVICES, _BOOT_VGA_NOT_PRESENT = 1 << 0, 1 << 2
_PCAT_COMPAT = 1
_ACTIVE_HIGH_LEVEL = 0x000D
_RESET_VALUE = 0x06


_FADT_LENGTH = 276
_BOOT_CMOS_NOT_PRESENT = 1 << 5
_REDUCED_HARDWARE, _WBINVD = 1 << 20, 1 << 0


@dataclass(frozen=True, slots=True)
class Board:
    """What the tables say of a board.

    `timer_gsi` is the I/O APIC input of ISA interrupt 0. `com_ports` are (base port, IRQ) pairs, `pci_slots` the slots
    that have a device. `level_irqs` are the ISA interrupts that are level-triggered, `boot_flags` the FADT's
    IAPC_BOOT_ARCH (5.2.9.3), `pm_base` where the fixed hardware's ports are.
    """

    cpus: int = 1
    timer_gsi: int = irqchip.TIMER_GSI
    com_ports: Sequence[tuple[int, int]] = ((0x3F8, 4),)
    pci_slots: Sequence[int] = ()
    has_pvpanic: bool = True
    level_irqs: Sequence[int] = (acpi_pm.SCI_IRQ,)
    boot_flags: int = _BOOT_LEGACY_DEVICES | _BOOT_VGA_NOT_PRESENT
    pm_base: int = acpi_pm.BASE_PORT


@dataclass(frozen=True, slots=True)
class AcpiTables:
    """`image` belongs at guest-physical `base`, in memory that the memory map calls reserved; `rsdp` is the address of
    the root pointer in it."""

    base: int
    image: bytes
    rsdp: int


def build_tables(board: Board, base: int = BASE) -> AcpiTables:
    """The tables of `board`, made for `base`, which has to be a multiple of 64."""
    image = bytearray(_RSDP.size)

    def place(table: bytes) -> int:
        image.extend(bytes(-len(image) % _ALIGNMENT))
        address = base + len(image)
        image.extend(table)
        return address

    facs = place(_FACS.pack(b"FACS", _FACS.size, 0, 0, 0, 0, 0, 2))
    code = dsdt.board(com_ports=board.com_ports, pci_slots=board.pci_slots, has_pvpanic=board.has_pvpanic)
    definition = place(_table(b"DSDT", 2, code))
    tables = (place(_fadt(facs, definition, board)), place(_madt(board)))
    xsdt = place(_table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))
    _RSDP.pack_into(image, 0, *_rsdp(xsdt))
    return AcpiTables(base, bytes(image), base)


def build_reduced_tables(cpus: int, base: int = BASE) -> AcpiTables:
    """The tables of a hardware-reduced machine (ACPI 6.5, 3.11.1): processors with local APICs and nothing else."""
    image = bytearray(_RSDP.size)

    def place(table: bytes) -> int:
        image.extend(bytes(-len(image) % _ALIGNMENT))
        address = base + len(image)
        image.extend(table)
        return address

    definition = place(_table(b"DSDT", 2, b""))
    body = bytearray(_FADT_LENGTH - _HEADER.size)
    for offset, layout, value in (
        (40, "<I", definition),
        (109, "<H", _BOOT_VGA_NOT_PRESENT | _BOOT_CMOS_NOT_PRESENT),
        (112, "<I", _REDUCED_HARDWARE | _WBINVD),
        (140, "<Q", definition),
    ):
        struct.pack_into(layout, body, offset - _HEADER.size, value)
    local = b"".join(_LOCAL_APIC.pack(0, _LOCAL_APIC.size, cpu, cpu, 1) for cpu in range(cpus))
    tables = (
        place(_table(b"FACP", 6, bytes(body))),
        place(_table(b"APIC", 5, struct.pack("<II", LOCAL_APIC, 0) + local)),
    )
    xsdt = place(_table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))
    _RSDP.pack_into(image, 0, *_rsdp(xsdt))
    return AcpiTables(base, bytes(image), base)


@dataclass(frozen=True, slots=True)
class LooseTables:
    """Tables that firmware has to place: `image` with offsets where addresses will be, `pointers` (offset, size) to
    them, `tables` (offset, length) that need a checksum, and the offsets of RSDT and XSDT."""

    image: bytes
    pointers: tuple[tuple[int, int], ...]
    tables: tuple[tuple[int, int], ...]
    rsdt: int
    xsdt: int


def build_loose_tables(board: Board, code: bytes, more: Mapping[bytes, bytes] = MappingProxyType({})) -> LooseTables:
    """The tables of `board` with the definition block `code`, for firmware that finds a place for them itself. `more`
    has the bodies of further tables by their signatures."""
    image = bytearray()
    pointers: list[tuple[int, int]] = []
    tables: list[tuple[int, int]] = []

    def place(table: bytes, references: Sequence[tuple[int, int]] = (), *, checked: bool = True) -> int:
        image.extend(bytes(-len(image) % _ALIGNMENT))
        at = len(image)
        image.extend(table)
        pointers.extend((at + offset, size) for offset, size in references)
        if checked:
            image[at + _CHECKSUM_AT] = 0  # SeaBIOS takes the sum away from what is there, OVMF writes it over that
            tables.append((at, len(table)))
        return at

    facs = place(_FACS.pack(b"FACS", _FACS.size, 0, 0, 0, 0, 0, 2), checked=False)
    definition = place(_table(b"DSDT", 2, code))
    fadt = place(_fadt(facs, definition, board), ((36, 4), (40, 4), (140, 8)))
    found = [fadt, place(_madt(board)), *(place(_table(name, 1, body)) for name, body in more.items())]
    count = len(found)
    rsdt, xsdt = (
        place(
            _table(name, 1, struct.pack(f"<{count}{letter}", *found)),
            [(_HEADER.size + size * n, size) for n in range(count)],
        )
        for name, letter, size in ((b"RSDT", "I", 4), (b"XSDT", "Q", 8))
    )
    return LooseTables(bytes(image), tuple(pointers), tuple(tables), rsdt, xsdt)


def loose_rsdp(tables: LooseTables) -> bytes:
    """A root pointer with offsets where addresses will be (at 16 and 24) and no checksums (at 8 and 32)."""
    return _RSDP.pack(b"RSD PTR ", 0, _OEM, 2, tables.rsdt, _RSDP.size, tables.xsdt, 0)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    length = _HEADER.size + len(body)
    header = _HEADER.pack(signature, length, revision, 0, _OEM, _OEM_TABLE, 1, _CREATOR, 1)
    table = bytearray(header + body)
    table[_CHECKSUM_AT] = -sum(table) & 0xFF
    return bytes(table)


def _rsdp(xsdt: int) -> tuple[bytes, int, bytes, int, int, int, int, int]:
    def fields(checksum: int, extended: int) -> tuple[bytes, int, bytes, int, int, int, int, int]:
        return (b"RSD PTR ", checksum, _OEM, 2, 0, _RSDP.size, xsdt, extended)

    checksum = -sum(_RSDP.pack(*fields(0, 0))[:20]) & 0xFF
    return fields(checksum, -sum(_RSDP.pack(*fields(checksum, 0))) & 0xFF)


def _io_register(port: int, length: int, access: int) -> bytes:
    """A generic address structure in I/O space. `access`: 1 byte, 2 word, 3 double word."""
    return _GAS.pack(1, 8 * length, 0, access, port)


def _fadt(facs: int, definition: int, board: Board) -> bytes:
    pm = acpi_pm
    ports = [board.pm_base + offset for offset in (pm.PM1_EVENT, pm.PM1_CONTROL, pm.PM_TIMER, pm.GPE0)]
    event, control, timer, gpe0 = ports
    nothing = bytes(_GAS.size)
    body = b"".join(
        (
            struct.pack("<IIBBHIBBBB", facs, definition, 0, 0, pm.SCI_IRQ, 0, 0, 0, 0, 0),
            struct.pack("<8I", event, 0, control, 0, 0, timer, gpe0, 0),
            struct.pack("<6B", pm.PM1_EVENT_LENGTH, pm.PM1_CONTROL_LENGTH, 0, pm.PM_TIMER_LENGTH, pm.GPE0_LENGTH, 0),
            struct.pack("<BBHHHHBBBBB", 0, 0, 0xFFFF, 0xFFFF, 0, 0, 0, 0, 0, 0, rtc.CENTURY),
            struct.pack("<HBI", board.boot_flags, 0, _FADT_FLAGS),
            _GAS.pack(1, 8, 0, 1, reset.RESET_PORT),
            struct.pack("<BHB", _RESET_VALUE, 0, 0),
            struct.pack("<QQ", 0, definition),
            _io_register(event, pm.PM1_EVENT_LENGTH, 2),
            nothing,
            _io_register(control, pm.PM1_CONTROL_LENGTH, 2),
            nothing,
            nothing,
            _io_register(timer, pm.PM_TIMER_LENGTH, 3),
            _io_register(gpe0, pm.GPE0_LENGTH, 2),
            nothing,
            nothing,
            nothing,
            b"BIVISOR\0",
        )
    )
    return _table(b"FACP", 6, body)


def _madt(board: Board) -> bytes:
    entries = [_LOCAL_APIC.pack(0, _LOCAL_APIC.size, cpu, cpu, 1) for cpu in range(board.cpus)]
    entries.append(_IO_APIC.pack(1, _IO_APIC.size, 0, 0, ioapic.BASE, 0))
    if board.timer_gsi:
        entries.append(_OVERRIDE.pack(2, _OVERRIDE.size, 0, 0, board.timer_gsi, 0))
    entries += [_OVERRIDE.pack(2, _OVERRIDE.size, 0, irq, irq, _ACTIVE_HIGH_LEVEL) for irq in board.level_irqs]
    entries.append(_LOCAL_NMI.pack(4, _LOCAL_NMI.size, 0xFF, 0, 1))
    return _table(b"APIC", 5, struct.pack("<II", LOCAL_APIC, _PCAT_COMPAT) + b"".join(entries))
