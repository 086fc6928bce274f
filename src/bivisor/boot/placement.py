"""What lies where in a guest that is being loaded: the memory map and who has taken which part of it.

The classic PC's first MiB: RAM to 0x9fc00, then the EBDA, video memory and ROMs, where the platform puts its ACPI
tables. Nothing is loaded there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bivisor.abi.boot_params import E820_TYPE_RAM, E820_TYPE_RESERVED
from bivisor.errors import ImageError, UsageError
from bivisor.memory import PAGE, GuestMemory

EBDA = 0x9_FC00
ONE_MIB = 0x10_0000
_LOWEST = 0x1000


@dataclass(frozen=True, slots=True)
class Range:
    """`size` bytes at guest-physical `gpa`; `name` says what was put there."""

    name: str
    gpa: int
    size: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.gpa + self.size


@dataclass(frozen=True, slots=True)
class MapEntry:
    """A piece of the memory map: `type` is an E820_TYPE_ number, which PVH and multiboot use too."""

    base: int
    size: int
    type: int


def memory_map(ram: Iterable[tuple[int, int]], reserve: Sequence[tuple[int, int]] = ()) -> tuple[MapEntry, ...]:
    """The e820 map of `ram` with the classic first MiB and the (address, length) pairs of `reserve` taken out of it."""
    holes = [(EBDA, ONE_MIB - EBDA)]
    for base, size in reserve:
        if base < 0 or size < 0 or base + size > 1 << 64:
            raise UsageError(f"reserved memory {base:#x}+{size:#x}: outside the 64-bit address space")
        if size:
            holes.append((base, size))
    holes = _merge(holes)
    entries = [MapEntry(base, size, E820_TYPE_RESERVED) for base, size in holes]
    for base, size in ram:
        entries += [MapEntry(*piece, E820_TYPE_RAM) for piece in _without(base, base + size, holes)]
    return tuple(sorted(entries, key=lambda entry: entry.base))


def _merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes as sorted ranges that neither overlap nor touch."""
    merged: list[tuple[int, int]] = []
    for base, size in sorted(ranges):
        if merged and base <= sum(merged[-1]):
            first = merged[-1][0]
            merged[-1] = (first, max(sum(merged[-1]), base + size) - first)
        else:
            merged.append((base, size))
    return merged


def _without(start: int, end: int, holes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of start..end; `holes` are sorted and do not overlap."""
    pieces = []
    for base, size in holes:
        if base >= end:
            break
        if start < base:
            pieces.append((start, base - start))
        start = max(start, base + size)
    if start < end:
        pieces.append((start, end - start))
    return pieces


class Placement:
    """Hands out parts of `memory`'s RAM, no byte twice. `map` is the memory map, `layout` what was handed out."""

    def __init__(self, memory: GuestMemory, reserve: Sequence[tuple[int, int]] = ()) -> None:
        self.memory = memory
        self.map = memory_map(memory.ram_ranges, reserve)
        self._taken: list[Range] = []

    @property
    def layout(self) -> tuple[Range, ...]:
        """What was put where, lowest address first."""
        return tuple(sorted(self._taken, key=lambda taken: taken.gpa))

    def at(self, name: str, pieces: Iterable[tuple[int, int]]) -> None:
        """Take these (address, length) pieces, which may touch or overlap each other. ImageError if any is not free."""
        merged = _merge(piece for piece in pieces if piece[1])
        end = sum(merged[-1]) if merged else 0
        if end > max(base + size for base, size in self.memory.ram_ranges):
            needs, has = -(-end >> 20), mib(self.memory.size)
            where = f"from {merged[0][0]:#x} to {end:#x}"
            raise ImageError(f"{name} does not fit: it lies {where} and needs {needs} MiB; the guest has {has} MiB")
        for base, size in merged:
            if not any(start <= base and base + size <= start + length for start, length in self._free()):
                raise ImageError(f"{name} at {base:#x}+{size:#x} overlaps {self._holder(base, size)}")
        self._taken += [Range(name, base, size) for base, size in merged]

    def low(self, name: str, size: int, align: int = 16) -> int:
        """Take `size` bytes as low as possible, but below the EBDA; gives the address."""
        for start, length in self._free():
            base = _up(max(start, _LOWEST), align)
            if base + size <= min(start + length, EBDA):
                self._taken.append(Range(name, base, size))
                return base
        raise ImageError(f"{name} of {size} bytes does not fit below {EBDA:#x} in the guest's memory")

    def high(self, name: str, size: int, below: int = 1 << 64) -> int | None:
        """Take `size` bytes, page-aligned, as high as possible between 1 MiB and `below`; None if they do not fit."""
        for start, length in reversed(self._free()):
            base = (min(start + length, below) - size) & -PAGE
            if base >= max(start, ONE_MIB):
                self._taken.append(Range(name, base, size))
                return base
        return None

    def _holder(self, base: int, size: int) -> str:
        """What has some of these bytes already."""
        for taken in self._taken:
            if base < taken.end and taken.gpa < base + size:
                return f"{taken.name} at {taken.gpa:#x}"
        return "what is reserved in the guest's memory map"

    def _free(self) -> list[tuple[int, int]]:
        taken = _merge((taken.gpa, taken.size) for taken in self._taken)
        return [
            piece
            for entry in self.map
            if entry.type == E820_TYPE_RAM
            for piece in _without(entry.base, entry.base + entry.size, taken)
        ]


def _up(address: int, align: int) -> int:
    return -(-address // align) * align


def mib(size: int) -> str:
    """`size` in MiB for a message."""
    return f"{size / (1 << 20):.1f}".removesuffix(".0")
