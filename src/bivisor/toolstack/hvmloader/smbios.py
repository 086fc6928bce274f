"""The SMBIOS tables of an HVM domain, as hvmloader of Xen 4.17 makes them: what dmidecode prints there.

Specification: DMTF DSP0134 (System Management BIOS), version 2.4: 2.1 entry point, 3.3 structures.
"""

from __future__ import annotations

import struct
import uuid as uuids
from dataclasses import dataclass

ANCHOR_ROOM = 32
_ENTRY_POINT = struct.Struct("<4sBBBBHB5s5sBHIHB")
_DATE = "11/04/2026"
"""When Debian's Xen of that version was built."""
_MIB, _KIB = 1 << 20, 1 << 10
_DEVICE_MIB = 0x4000
"""Each memory device has up to 16 GiB."""
_NONE = 0xFFFF


@dataclass(frozen=True, slots=True)
class Facts:
    """Of the domain: `memory` in bytes, `xen` the hypervisor's version as text, `signature` EAX and EDX of CPUID 1."""

    vcpus: int
    memory: int
    uuid: uuids.UUID
    xen: str
    mhz: int
    maker: str
    signature: tuple[int, int]


def _structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    text = b"".join(each.encode("ascii", "replace") + b"\0" for each in strings) or b"\0"
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + text + b"\0"


def build(facts: Facts, address: int) -> tuple[bytes, bytes]:
    """The entry point, and the structures, which belong at `address`."""
    parts = [_bios(facts), _system(facts), _chassis()]
    parts += [_processor(facts, number) for number in range(1, facts.vcpus + 1)]
    parts.append(_structure(11, 0xB00, b"\x01", "Xen"))
    size = -(-facts.memory // _MIB)
    devices = -(-size // _DEVICE_MIB)
    parts.append(_structure(16, 0x1000, struct.pack("<BBBIHH", 1, 3, 6, size * _KIB & 0xFFFF_FFFF, 0xFFFE, devices)))
    for device in range(devices):
        parts += _memory(device, min(_DEVICE_MIB, size - device * _DEVICE_MIB))
    parts += [_structure(32, 0x2000, bytes(7)), _structure(127, 0x7F00, b"")]
    tables = b"".join(parts)
    anchor = bytearray(
        _ENTRY_POINT.pack(
            b"_SM_", 0, _ENTRY_POINT.size, 2, 4, max(map(len, parts)), 0, bytes(5),
            b"_DMI_", 0, len(tables), address, len(parts), 0x24,
        )
    )  # fmt: skip
    anchor[0x15] = -sum(anchor[0x10:]) & 0xFF
    anchor[4] = -sum(anchor) & 0xFF
    return bytes(anchor), tables


def _bios(facts: Facts) -> bytes:
    major, _, rest = facts.xen.partition(".")
    minor = rest.partition(".")[0]
    body = struct.pack("<BBHBBQ2sBBBB", 1, 2, 0xE800, 3, 0, 0x80080, b"\0\x04", int(major), int(minor), 255, 255)
    return _structure(0, 0, body, "Xen", facts.xen, _DATE)


def _system(facts: Facts) -> bytes:
    body = struct.pack("<BBBB16sBBB", 1, 2, 3, 4, facts.uuid.bytes, 6, 0, 0)
    return _structure(1, 0x100, body, "Xen", "HVM domU", facts.xen, str(facts.uuid))


def _chassis() -> bytes:
    return _structure(3, 0x300, struct.pack("<9BIBBBB", 1, 1, 0, 0, 0, 3, 3, 3, 2, 0, 0, 0, 0, 0), "Xen")


def _processor(facts: Facts, number: int) -> bytes:
    eax, edx = facts.signature
    body = struct.pack(
        "<BBBBIIBBHHHBBHHHBBB",
        1, 3, 1, 2, eax, edx, 0, 0, 0, facts.mhz, facts.mhz, 0x41, 1, _NONE, _NONE, _NONE, 0, 0, 0,
    )  # fmt: skip
    return _structure(4, 0x400 + number, body, f"CPU {number}", facts.maker)


def _memory(device: int, size: int) -> list[bytes]:
    """A device of `size` MiB, where it is in the array, and the array in the address space."""
    start = device * _DEVICE_MIB * _KIB
    end = start + size * _KIB - 1
    body = struct.pack("<HHHHHBBBBBHHBBBB", 0x1000, 0, 64, 64, size, 9, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0)
    mapped = struct.pack("<IIHB", start, end, 0x1000, 1)
    placed = struct.pack("<IIHHBBB", start, end, 0x1100 + device, 0x1300 + device, 1, 0, 0)
    return [
        _structure(17, 0x1100 + device, body, f"DIMM {device}"),
        _structure(19, 0x1300 + device, mapped),
        _structure(20, 0x1400 + device, placed),
    ]
