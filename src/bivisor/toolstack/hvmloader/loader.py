"""Puts SeaBIOS and what it has to know into the memory of an HVM domain.

On Xen, SeaBIOS asks no board for its tables: `struct xen_seabios_info` at 0x1000 says where ACPI and SMBIOS tables and
the memory map are, and it copies their anchors to where operating systems look (SeaBIOS, src/fw/xen.c).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from bivisor.errors import ImageError
from bivisor.memory import HOLE_END, HOLE_START, PAGE
from bivisor.platform.pci import PciBus
from bivisor.toolstack.hvmloader import acpi, pci, smbios

INFO_AT = 0x1000
_POINTERS_AT, _E820_AT = 0x1100, 0x1200
_INFO = struct.Struct("<14sBBIIII")
_SIGNATURE = b"XenHVMSeaBIOS\0"
_E820 = struct.Struct("<QQI")
_RAM, _RESERVED, _NVS = 1, 2, 4
_BELOW_1M = 1 << 20
TABLES_AT, _TABLES_OFFSET = 0xFC00_0000, 0x1000
TABLES_SIZE = 0xB000
SMBIOS_AT = 0xFC10_0000
_ANCHOR_AT = 0x1_0020
"""Where hvmloader leaves the entry point for SeaBIOS to find; the structures stay where they are."""
BIOS_MAX = 0x4_0000


@dataclass(frozen=True, slots=True)
class LowMemory:
    """`write(gpa, data)` puts bytes into the domain's RAM, of which it has `size`; `populate(gpa, data)` gives it pages
    of its own outside of that, which begin with `data`."""

    size: int
    write: Callable[[int, bytes], None]
    populate: Callable[[int, bytes], None]


def e820(size: int) -> tuple[tuple[int, int, int], ...]:
    """(address, length, type) of everything."""
    low = min(size, HOLE_START)
    end = TABLES_AT + TABLES_SIZE
    entries = [
        (0, 0xA_0000, _RAM),
        (0xC_0000, 0x4_0000, _RESERVED),
        (_BELOW_1M, low - _BELOW_1M, _RAM),
        (TABLES_AT, TABLES_SIZE, _NVS),
        (end, HOLE_END - end, _RESERVED),
    ]
    if size > low:
        entries.append((HOLE_END, size - low, _RAM))
    return tuple(entries)


def load(memory: LowMemory, bus: PciBus, bios: bytes, facts: smbios.Facts, chipset: acpi.Chipset) -> None:
    """Set up PCI, and write tables and the BIOS. ImageError for one that cannot be."""
    if not 1 << 16 <= len(bios) <= BIOS_MAX or len(bios) % PAGE:
        raise ImageError(f"a BIOS of {len(bios)} bytes: on Xen it has 64 to 256 KiB, in whole pages")
    if _SIGNATURE[:-1] not in bios:
        raise ImageError("this SeaBIOS was built without support for Xen (CONFIG_XEN)")
    window = pci.set_up(bus)
    tables = acpi.build(TABLES_AT + _TABLES_OFFSET, acpi.Machine(facts.vcpus, window, chipset))
    memory.populate(TABLES_AT, (bytes(_TABLES_OFFSET) + tables.image).ljust(TABLES_SIZE, b"\0"))
    anchor, structures = smbios.build(facts, SMBIOS_AT)
    memory.populate(SMBIOS_AT, structures)
    memory.write(_ANCHOR_AT, anchor)
    entries = e820(memory.size)
    memory.write(_E820_AT, b"".join(_E820.pack(*entry) for entry in entries))
    pointers = (tables.rsdp, _ANCHOR_AT)
    memory.write(_POINTERS_AT, struct.pack(f"<{len(pointers)}I", *pointers))
    info = bytearray(_INFO.pack(_SIGNATURE, _INFO.size, 0, _POINTERS_AT, len(pointers), _E820_AT, len(entries)))
    info[15] = -sum(info) & 0xFF
    memory.write(INFO_AT, bytes(info))
    memory.write(_BELOW_1M - len(bios), bios)
