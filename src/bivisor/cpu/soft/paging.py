"""Walks a guest's page tables (Intel SDM volume 3, chapter 4) as KVM_TRANSLATE does: checks no rights, sets no A, D."""

from __future__ import annotations

from collections.abc import Callable

from bivisor.abi.x86 import Cr0, Cr4, Efer, Pte
from bivisor.errors import GuestAddressError

_ADDRESS = 0x000F_FFFF_FFFF_F000
# Plain numbers: every handle of every hypercall comes through here, and an operation on flags of an enum takes a
# microsecond.
_PG, _PAE, _PSE, _LA57 = int(Cr0.PG), int(Cr4.PAE), int(Cr4.PSE), int(Cr4.LA57)
_LMA, _P, _PS = int(Efer.LMA), int(Pte.P), int(Pte.PS)


def translate(read: Callable[[int, int], int], cr0: int, cr3: int, cr4: int, efer: int, linear: int) -> int | None:
    """The guest-physical address of `linear`, or None. `read(gpa, size)` reads an entry or raises GuestAddressError."""
    if not cr0 & _PG:
        return linear & 0xFFFF_FFFF
    try:
        if efer & _LMA:
            top = 56 if cr4 & _LA57 else 47
            if linear >> top not in (0, (1 << 64 - top) - 1):
                return None
            return _walk(read, cr3 & _ADDRESS, linear, 5 if cr4 & _LA57 else 4)
        linear &= 0xFFFF_FFFF
        if cr4 & _PAE:
            entry = read((cr3 & 0xFFFF_FFE0) + 8 * (linear >> 30), 8)
            return _walk(read, entry & _ADDRESS, linear, 2) if entry & _P else None
        return _walk_32(read, cr3, cr4, linear)
    except GuestAddressError:
        return None


def _walk(read: Callable[[int, int], int], table: int, linear: int, levels: int) -> int | None:
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        entry = read(table + 8 * (linear >> shift & 511), 8)
        if not entry & _P:
            return None
        if level == 0 or (level <= 2 and entry & _PS):
            mask = (1 << shift) - 1
            return entry & _ADDRESS & ~mask | linear & mask
        table = entry & _ADDRESS
    return None


def _walk_32(read: Callable[[int, int], int], cr3: int, cr4: int, linear: int) -> int | None:
    entry = read((cr3 & 0xFFFF_F000) + 4 * (linear >> 22), 4)
    if not entry & _P:
        return None
    if entry & _PS and cr4 & _PSE:
        high = (entry >> 13 & 0xFF) << 32
        return high | entry & 0xFFC0_0000 | linear & 0x3F_FFFF
    entry = read((entry & 0xFFFF_F000) + 4 * (linear >> 12 & 1023), 4)
    return entry & 0xFFFF_F000 | linear & 0xFFF if entry & _P else None
