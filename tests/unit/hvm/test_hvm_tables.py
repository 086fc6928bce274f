"""What firmware tells an HVM domain of its hardware: the DSDT, the FADT, the places of PCI; and cards with ROMs."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hvm_world import World

from bivisor.host.link import cable
from bivisor.platform.acpi import aml
from bivisor.platform.pci import BarKind, Identity, PciFunction
from bivisor.platform.pci import registers as reg
from bivisor.toolstack.hvmloader import acpi, dsdt, pci
from bivisor.toolstack.hvmloader.pci import LINK_IRQS
from bivisor.xen.hvm.irq import pci_gsi, pci_link
from bivisor.xen.hvm.platform import GSIS

WINDOW = (0xF000_0000, 0xFBFF_FFFF)
ROM = b"\x55\xaa\x80".ljust(200_000, b"r")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is not installed")
@pytest.mark.parametrize("gsis", [24, GSIS])
def test_iasl_disassembles_and_compiles_the_dsdt_without_a_warning(tmp_path: Path, gsis: int) -> None:
    path = tmp_path / "dsdt.dat"
    length = 36 + len(dsdt.build(WINDOW, gsis))
    header = struct.pack("<4sIBB6s8sI4sI", b"DSDT", length, 2, 0, b"Xen", b"HVM", 0, b"HVML", 0)
    table = bytearray(header + dsdt.build(WINDOW, gsis))
    table[9] = -sum(table) & 0xFF
    path.write_bytes(table)
    subprocess.run(["iasl", "-d", path], check=True, capture_output=True)
    compiled = subprocess.run(["iasl", path.with_suffix(".dsl")], check=True, capture_output=True, text=True)
    assert "0 Errors, 0 Warnings" in compiled.stdout


@pytest.mark.parametrize(("gsis", "line"), [(24, LINK_IRQS[pci_link(31, 3)]), (GSIS, pci_gsi(31, 3))])
def test_a_pin_has_an_input_of_its_own_where_there_are_so_many(gsis: int, line: int) -> None:
    row = aml.package(aml.integer(31 << 16 | 0xFFFF), aml.integer(3), aml.ZERO, aml.integer(line))
    assert dsdt.build(WINDOW, gsis).count(row) == 1


def test_tables_stay_below_what_the_memory_map_keeps_for_them() -> None:
    tables = acpi.build(0xFC00_1000, acpi.Machine(8, WINDOW, acpi.Chipset(GSIS, 2, 0x8086_A201)))
    assert len(tables.image) <= 0xA000 and 0xFC00_1000 < tables.rsdp < 0xFC00_B000


@pytest.mark.parametrize(("timer", "overridden"), [(2, [0, 5, 10, 11]), (0, [5, 10, 11])])
def test_the_madt_moves_the_8254_only_where_it_is_elsewhere(timer: int, overridden: list[int]) -> None:
    image = acpi.build(0xFC00_1000, acpi.Machine(1, WINDOW, acpi.Chipset(24, timer, 0))).image
    at = image.index(b"APIC")
    end, at, found = at + int.from_bytes(image[at + 4 : at + 8], "little"), at + 44, []
    while at < end:
        kind, length, _, irq = image[at : at + 4]
        found += [irq] * (kind == 2)
        at += length
    assert found == overridden


class Nothing:
    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None: ...


def test_pci_begins_lower_where_more_is_plugged_in(world: World) -> None:
    board = world.plug_in_board()
    assert pci.set_up(board.pci) == WINDOW
    big = PciFunction(Identity(1, 2, 3), name="big")
    big.add_bar(0, BarKind.MEMORY32, 256 << 20, Nothing())
    board.pci.add(big)
    assert pci.set_up(board.pci) == (0xE000_0000, 0xFBFF_FFFF)
    assert all(bar.mapped is not None for function in board.pci.functions for bar in function.bars.values()
               if bar.index < reg.BARS)  # fmt: skip


def test_a_cards_rom_is_memory_of_the_guest_until_the_card_goes(world: World) -> None:
    board = world.plug_in_board()
    ours, theirs = cable(world.loop, world.loop)
    board.add_nic(theirs, "00:16:3e:00:00:01", theirs.close, ROM)
    pci.set_up(board.pci)
    at = 4 << 11 | 0x8000_0000
    board.pci.config_write(at | reg.ROM, 4, board.pci.config_read(at | reg.ROM, 4) | 1)
    slot = world.windows.shown["ROM of card 0"]
    assert slot is not None and slot.size == 1 << 18 and slot.readonly
    assert bytes(slot.region.view[:200_000]) == ROM
    world.accesses.port(0x10, 2, 2)  # network cards are to go
    assert world.windows.shown["ROM of card 0"] is None
    assert board.pci.config_read(at, 4) == 0xFFFF_FFFF
    ours.close()
