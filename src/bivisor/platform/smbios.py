"""SMBIOS tables: what dmidecode prints of the machine.

Specification: DMTF DSP0134 (System Management BIOS), version 2.8: 5.2.1 entry point, 7.1 to 7.33 structures.
"""

from __future__ import annotations

import struct
import uuid as uuids

_ENTRY_POINT = struct.Struct("<4sBBBBHB5s5sBHIHB")
_UNKNOWN = 2
KIND = "pc-i440fx"
_MIB = 1 << 20


def _structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    """A structure of `kind`; its strings are numbered from 1."""
    text = b"".join(each.encode("ascii") + b"\0" for each in strings) or b"\0"
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + text + b"\0"


def smbios_tables(
    *, cpus: int, memory: int, uuid: uuids.UUID, maker: str = "Bivisor", product: str = "Standard PC (i440FX + PIIX)"
) -> tuple[bytes, bytes]:
    """The entry point, whose address and checksums firmware fills in, and the structures. `memory` is in bytes."""
    uuid_bytes = uuid.bytes_le
    low = min(memory, 0xC000_0000)
    parts = [
        _structure(1, 0x100, struct.pack("<BBBB16sBBB", 1, 2, 3, 0, uuid_bytes, 6, 0, 0), maker, product, KIND),
        _structure(3, 0x300, struct.pack("<BBBBBBBBBIBBBB", 1, 1, 2, 0, 0, 3, 3, 3, 2, 0, 0, 0, 0, 0), maker, KIND),
        *(_processor(index, maker) for index in range(cpus)),
        _structure(16, 0x1000, struct.pack("<BBBIHH", 1, 3, 6, min(memory >> 10, 0x8000_0000), 0xFFFE, 1)),
        _structure(
            17,
            0x1100,
            struct.pack("<HHHHHBBBBBHHBBBBB", 0x1000, 0xFFFE, 0xFFFF, 0xFFFF, min(memory // _MIB, 0x7FFF), 9, 0, 1, 0,
                        7, _UNKNOWN, 0, 2, 0, 0, 0, 0),
            "DIMM 0", maker,
        ),
        _structure(19, 0x1300, struct.pack("<IIHB", 0, (low >> 10) - 1, 0x1000, 1)),
        _structure(32, 0x2000, bytes(6) + b"\0"),
        _structure(127, 0x7F00, b""),
    ]  # fmt: skip
    tables = b"".join(parts)
    largest = max(map(len, parts))
    anchor = _ENTRY_POINT.pack(
        b"_SM_", 0, _ENTRY_POINT.size, 2, 8, largest, 0, bytes(5), b"_DMI_", 0, len(tables), 0, len(parts), 0x28
    )
    return anchor, tables


def _processor(index: int, maker: str) -> bytes:
    body = struct.pack(
        "<BBBBQBBHHHBBHHHBBBBBBH",
        1, 3, 1, 2, 0, 3, 0, 0, 2000, 2000, 0x41, 1, 0xFFFF, 0xFFFF, 0xFFFF, 0, 0, 0, 1, 1, 1, 4,
    )  # fmt: skip
    return _structure(4, 0x400 + index, body, f"CPU {index}", maker, KIND)
