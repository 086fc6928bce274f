"""What the board tells its firmware: ACPI tables with the script that places them, the memory map, SMBIOS.

Specification: QEMU docs/specs/fw_cfg.rst and hw/acpi/bios-linker-loader ("etc/table-loader": entries of 128 bytes that
allocate a file, add a file's address to a pointer, or add a checksum); ACPI 6.5 for the tables; PIIX3 for the routing.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bivisor.memory import HOLE_END, HOLE_START
from bivisor.platform import acpi_pm, rtc
from bivisor.platform import hpet as hpets
from bivisor.platform.acpi import aml, resources
from bivisor.platform.acpi.tables import Board, build_loose_tables, loose_rsdp
from bivisor.platform.hpet import Hpet
from bivisor.platform.i440fx.bridges import pirq_of

PIRQ_LINES = (10, 10, 11, 11)
"""The ISA interrupts that SeaBIOS and OVMF give to PIRQ A to D."""

S5_TYPE = 0  # PIIX4 data sheet, PMCNTRL: SUS_TYP 0 is soft off
TABLES_FILE, RSDP_FILE, LOADER_FILE = "etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"
_ALLOCATE = struct.Struct("<I56sIB63x")
_POINTER = struct.Struct("<I56s56sIB7x")
_CHECKSUM = struct.Struct("<I56sIII56x")
_HIGH, _FSEG = 1, 2
_E820 = struct.Struct("<QQI")
_LEGACY_DEVICES, _HAS_8042 = 1, 2
_PCI_END = 0xFEC0_0000


def e820(size: int) -> bytes:
    """The file `etc/e820` for `size` bytes of RAM."""
    low = min(size, HOLE_START)
    entries = [(0, low, 1)]
    if size > low:
        entries.append((HOLE_END, size - low, 1))
    return b"".join(_E820.pack(*entry) for entry in entries)


def acpi_files(
    *,
    cpus: int,
    timer_gsi: int,
    com_ports: Sequence[tuple[int, int]],
    size: int,
    hpet: Hpet | None = None,
    pm_base: int = acpi_pm.BASE_PORT,
) -> dict[str, bytes]:
    """The ACPI tables of the board, and the script that has firmware place them. `pm_base` is where firmware has put
    the ports of power management."""
    board = Board(
        cpus=cpus,
        timer_gsi=timer_gsi,
        level_irqs=(acpi_pm.SCI_IRQ, *sorted(set(PIRQ_LINES))),
        boot_flags=_LEGACY_DEVICES | _HAS_8042,
        pm_base=pm_base,
    )
    more = {} if hpet is None else {b"HPET": hpet.table()}
    tables = build_loose_tables(board, _definition(com_ports, size, has_hpet=hpet is not None), more)
    names = {name: name.encode().ljust(56, b"\0") for name in (TABLES_FILE, RSDP_FILE)}
    script = [
        _ALLOCATE.pack(1, names[TABLES_FILE], 64, _HIGH),
        _ALLOCATE.pack(1, names[RSDP_FILE], 16, _FSEG),
        *(_POINTER.pack(2, names[TABLES_FILE], names[TABLES_FILE], *pointer) for pointer in tables.pointers),
        *(_CHECKSUM.pack(3, names[TABLES_FILE], at + 9, at, length) for at, length in tables.tables),
        _POINTER.pack(2, names[RSDP_FILE], names[TABLES_FILE], 16, 4),
        _POINTER.pack(2, names[RSDP_FILE], names[TABLES_FILE], 24, 8),
        _CHECKSUM.pack(3, names[RSDP_FILE], 8, 0, 20),
        _CHECKSUM.pack(3, names[RSDP_FILE], 32, 0, 36),
    ]
    return {TABLES_FILE: tables.image, RSDP_FILE: loose_rsdp(tables), LOADER_FILE: b"".join(script)}


def _definition(com_ports: Sequence[tuple[int, int]], size: int, *, has_hpet: bool) -> bytes:
    sleep = aml.package(aml.integer(S5_TYPE), aml.integer(S5_TYPE), aml.ZERO, aml.ZERO)
    devices = [_host_bridge(com_ports, size)]
    if has_hpet:
        place = resources.template(resources.memory(hpets.BASE, hpets.LENGTH))
        devices.append(aml.device("HPET", aml.name("_HID", aml.eisa_id("PNP0103")), aml.name("_CRS", place)))
    return aml.name("\\_S5", sleep) + aml.scope("\\_SB", *devices)


def _host_bridge(com_ports: Sequence[tuple[int, int]], size: int) -> bytes:
    # where SeaBIOS begins with memory ranges of PCI
    pci_start = 0x8000_0000 if size <= 0x8000_0000 else HOLE_START
    windows = resources.host_bridge(0xFF, (0xA_0000, 0xB_FFFF), (pci_start, _PCI_END - 1))
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.ZERO),
        aml.name("_ADR", aml.ZERO),
        aml.name("_CRS", windows),
        aml.name("_PRT", _routes()),
        aml.device("ISA_", aml.name("_ADR", aml.integer(1 << 16)), *_isa_devices(com_ports)),
    )


def _routes() -> bytes:
    """Every pin of every slot; AML packages hold 255 elements, so the last slots, which stay empty, are left out."""
    return aml.package(
        *(
            aml.package(
                aml.integer(slot << 16 | 0xFFFF),
                aml.integer(pin),
                aml.ZERO,
                aml.integer(PIRQ_LINES[pirq_of(slot, pin + 1)]),
            )
            for slot in range(1, 32)
            for pin in range(4)
        )
    )


def _isa_devices(com_ports: Sequence[tuple[int, int]]) -> list[bytes]:
    def isa(name: str, hid: str, *parts: bytes, uid: int | None = None) -> bytes:
        number = () if uid is None else (aml.name("_UID", aml.integer(uid)),)
        crs = aml.name("_CRS", resources.template(*parts))
        return aml.device(name, aml.name("_HID", aml.eisa_id(hid)), *number, crs)

    return [
        isa("RTC_", "PNP0B00", resources.io(rtc.BASE_PORT, 2), resources.irq(rtc.IRQ)),
        isa("KBD_", "PNP0303", resources.io(0x60, 1), resources.io(0x64, 1), resources.irq(1)),
        isa("MOU_", "PNP0F13", resources.irq(12)),
        *(
            isa(f"COM{n}", "PNP0501", resources.io(base, 8), resources.irq(irq), uid=n)
            for n, (base, irq) in enumerate(com_ports, 1)
        ),
    ]
