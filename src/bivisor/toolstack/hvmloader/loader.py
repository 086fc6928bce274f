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
_RAM, _RESERVED = 1, 2
_BELOW_1M = 1 << 20
_TABLES = 0x1_0000
"""Room for the tables at the end of RAM below the hole."""
_RESERVED_START = 0xFC00_0000
BIOS_MAX = 0x4_0000


@dataclass(frozen=True, slots=True)
class LowMemory:
    """`write(gpa, data)` puts bytes into the domain's RAM, of which it has `size`."""

    size: int
    write: Callable[[int, bytes], None]


def e820(size: int) -> tuple[tuple[int, int, int], ...]:
    """(address, length, type) of everything."""
    low = min(size, HOLE_START)
    entries = [
        (0, 0xA_0000, _RAM),
        (_BELOW_1M, low - _TABLES - _BELOW_1M, _RAM),
        (low - _TABLES, _TABLES, _RESERVED),
        (_RESERVED_START, HOLE_END - _RESERVED_START, _RESERVED),
    ]
    if size > low:
        entries.append((HOLE_END, size - low, _RAM))
    return tuple(entries)


def load(memory: LowMemory, bus: PciBus, bios: bytes, facts: smbios.Facts) -> None:
    """Set up PCI, and write tables and the BIOS. ImageError for one that cannot be."""
    if not 1 << 16 <= len(bios) <= BIOS_MAX or len(bios) % PAGE:
        raise ImageError(f"a BIOS of {len(bios)} bytes: on Xen it has 64 to 256 KiB, in whole pages")
    if _SIGNATURE[:-1] not in bios:
        raise ImageError("this SeaBIOS was built without support for Xen (CONFIG_XEN)")
    pci.set_up(bus)
    base = min(memory.size, HOLE_START) - _TABLES
    tables = acpi.build(base, facts.vcpus)
    memory.write(base, tables.image)
    anchor_at = base + (len(tables.image) + 63 & ~63)
    anchor, structures = smbios.build(facts, anchor_at + smbios.ANCHOR_ROOM)
    memory.write(anchor_at, anchor)
    memory.write(anchor_at + smbios.ANCHOR_ROOM, structures)
    entries = e820(memory.size)
    memory.write(_E820_AT, b"".join(_E820.pack(*entry) for entry in entries))
    pointers = (tables.rsdp, anchor_at)
    memory.write(_POINTERS_AT, struct.pack(f"<{len(pointers)}I", *pointers))
    info = bytearray(_INFO.pack(_SIGNATURE, _INFO.size, 0, _POINTERS_AT, len(pointers), _E820_AT, len(entries)))
    info[15] = -sum(info) & 0xFF
    memory.write(INFO_AT, bytes(info))
    memory.write(_BELOW_1M - len(bios), bios)
