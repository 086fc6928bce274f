"""The page walk against tables whose mappings are known, in all modes."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from bivisor.abi.x86 import Cr0, Cr4, Efer, Pte
from bivisor.cpu.soft.paging import translate
from bivisor.errors import GuestAddressError

SIZE = 1 << 20
RW = Pte.P | Pte.RW
PAGED = Cr0.PE | Cr0.PG
LME = Efer.LME | Efer.LMA


class Tables:
    """Memory for tables, which hands out its pages one after another."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)
        self.next = 0x1000

    def page(self) -> int:
        self.next += 0x1000
        return self.next - 0x1000

    def read(self, gpa: int, size: int) -> int:
        if gpa + size > SIZE:
            raise GuestAddressError(gpa, size)
        return int.from_bytes(self.memory[gpa : gpa + size], "little")

    def write(self, gpa: int, value: int, size: int) -> None:
        self.memory[gpa : gpa + size] = value.to_bytes(size, "little")


@dataclass(frozen=True)
class Mode:
    """A paging mode: the shifts of its levels, and which of them can hold a page."""

    cr4: int
    efer: int
    levels: tuple[int, ...]
    leaves: tuple[int, ...]
    width: int
    bits: int

    def address(self, dice: random.Random) -> int:
        linear = dice.randrange(1 << self.bits)
        return linear | (1 << 64) - (1 << self.bits) if self.bits > 32 and linear >> self.bits - 1 else linear

    def map(self, tables: Tables, root: int, linear: int, last: int, frame: int) -> bool:
        """Map a page; False where one that is mapped already is in the way."""
        table, count = root, 4096 // self.width
        for shift in self.levels:
            at = table + self.width * (linear >> shift & count - 1)
            entry = tables.read(at, self.width)
            if shift == last:
                if not entry:
                    tables.write(at, frame | RW | (Pte.PS if shift > 12 else 0), self.width)
                return not entry
            if entry & Pte.PS:
                return False
            if not entry:
                entry = tables.page() | (Pte.P if shift == 30 and self.bits == 32 else RW)
                tables.write(at, entry, self.width)
            table = entry & ~0xFFF
        raise AssertionError(last)

    def find(self, tables: Tables, root: int, linear: int) -> int | None:
        return translate(tables.read, PAGED, root, self.cr4, self.efer, linear)


FOUR_LEVELS = Mode(Cr4.PAE, LME, (39, 30, 21, 12), (30, 21, 12), 8, 48)
MODES = {
    "32-bit": Mode(Cr4.PSE, 0, (22, 12), (22, 12), 4, 32),
    "PAE": Mode(Cr4.PAE, 0, (30, 21, 12), (21, 12), 8, 32),
    "4-level": FOUR_LEVELS,
    "5-level": Mode(Cr4.PAE | Cr4.LA57, LME, (48, 39, 30, 21, 12), (30, 21, 12), 8, 57),
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("seed", range(20))
def test_every_page_that_was_mapped_is_found_and_no_other(name: str, seed: int) -> None:
    mode, dice, tables = MODES[name], random.Random(seed), Tables()
    root = tables.page()
    pages: dict[tuple[int, int], int] = {}
    for _ in range(20):
        linear, last = mode.address(dice), dice.choice(mode.leaves)
        frame = dice.randrange(1 << (32 if mode.width == 4 else 40)) >> last << last
        if mode.map(tables, root, linear, last, frame):
            pages[linear >> last, last] = frame
    assert len(pages) > 3
    for (number, last), frame in pages.items():
        inside = dice.randrange(1 << last)
        assert mode.find(tables, root, (number << last) + inside) == frame + inside
    for _ in range(100):
        stranger = mode.address(dice)
        if not any((stranger >> last, last) in pages for last in mode.leaves):
            assert mode.find(tables, root, stranger) is None


def test_without_paging_an_address_is_itself_in_32_bits() -> None:
    assert translate(Tables().read, Cr0.PE, 0, 0, 0, 0x1_2345_6789) == 0x2345_6789


@pytest.mark.parametrize("linear", [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63])
def test_a_non_canonical_address_is_not_mapped(linear: int) -> None:
    tables = Tables()
    assert FOUR_LEVELS.map(tables, tables.page(), linear & (1 << 48) - 1, 30, 0)
    assert FOUR_LEVELS.find(tables, 0x1000, linear) is None


def test_tables_outside_memory_map_nothing() -> None:
    assert FOUR_LEVELS.find(Tables(), 0xF_FFFF_F000, 0) is None


def test_a_table_that_points_at_itself_ends_the_walk() -> None:
    tables = Tables()
    tables.write(0x1000, 0x1000 | RW, 8)
    assert FOUR_LEVELS.find(tables, 0x1000, 0x123) == 0x1123


def test_a_large_page_of_32_bit_paging_reaches_40_bits() -> None:
    tables = Tables()
    tables.write(0x1000, 0x80 << 13 | 0x40_0000 | RW | Pte.PS, 4)
    assert MODES["32-bit"].find(tables, 0x1000, 0x1234) == 0x80_0040_1234
