from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from bivisor.host.loop import ManualLoop
from bivisor.platform.acpi import BASE, Board, aml, build_tables
from bivisor.platform.acpi_pm import PM_TIMER, PWRBTN_STS, TIMER_FREQUENCY, TMR_STS, AcpiPm
from bivisor.platform.events import Event, PowerOff

BOARD = Board(cpus=3, com_ports=((0x3F8, 4), (0x2F8, 3)), pci_slots=tuple(range(1, 32)))


def tables() -> dict[bytes, bytes]:
    """Every table that the XSDT and the FADT lead to, by signature."""
    image = build_tables(BOARD).image

    def at(address: int) -> bytes:
        length = struct.unpack_from("<I", image, address - BASE + 4)[0]
        return image[address - BASE : address - BASE + length]

    xsdt = at(struct.unpack_from("<Q", image, 24)[0])
    found = {table[:4]: table for table in map(at, struct.unpack(f"<{(len(xsdt) - 36) // 8}Q", xsdt[36:]))}
    found[b"XSDT"] = xsdt
    found[b"DSDT"] = at(struct.unpack_from("<Q", found[b"FACP"], 140)[0])
    found[b"FACS"] = at(struct.unpack_from("<I", found[b"FACP"], 36)[0])
    return found


def test_the_root_pointer_is_found_and_its_checksums_hold() -> None:
    built = build_tables(BOARD)
    assert built.rsdp == BASE
    assert built.image[:8] == b"RSD PTR "
    assert sum(built.image[:20]) & 0xFF == sum(built.image[:36]) & 0xFF == 0


def test_every_table_has_its_length_and_checksum() -> None:
    found = tables()
    assert set(found) == {b"XSDT", b"FACP", b"APIC", b"DSDT", b"FACS"}
    for signature, table in found.items():
        assert signature == b"FACS" or sum(table) & 0xFF == 0
    assert len(found[b"FACP"]) == 276


def test_the_madt_lists_each_processor_and_the_timer_override() -> None:
    madt, entries = tables()[b"APIC"], []
    at = 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert [entry[0] for entry in entries] == [0, 0, 0, 1, 2, 2, 4]
    assert [entry[3] for entry in entries[:3]] == [0, 1, 2]
    assert struct.unpack_from("<BBI", entries[4], 2) == (0, 0, 2)


def test_a_timer_on_input_0_needs_no_override() -> None:
    image = build_tables(Board(timer_gsi=0)).image
    assert image.count(struct.pack("<BBBBI", 2, 10, 0, 0, 2)) == 0


@pytest.mark.parametrize("size", [10, 62, 63, 4092, 4093, 70_000])
def test_the_package_length_counts_itself(size: int) -> None:
    encoded = aml.scope("\\", bytes(size - 2))[1:]
    following = encoded[0] >> 6
    if following == 0:
        assert encoded[0] == len(encoded)
    else:
        assert encoded[0] & 0x3F | int.from_bytes(encoded[1 : 1 + following], "little") << 4 == len(encoded)


def test_aml_terms_are_those_of_the_grammar() -> None:
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"
    assert [aml.integer(n) for n in (0, 1, 2, 0x100, 0x10000)] == [
        b"\x00",
        b"\x01",
        b"\x0a\x02",
        b"\x0b\x00\x01",
        b"\x0c\x00\x00\x01\x00",
    ]
    assert aml.name_string("\\_SB.PCI0") == b"\\\x2e_SB_PCI0"
    assert aml.name_string("A.B.C") == b"\x2f\x03A___B___C___"


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is not installed")
def test_iasl_disassembles_and_compiles_the_dsdt_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "dsdt.dat"
    path.write_bytes(tables()[b"DSDT"])
    subprocess.run(["iasl", "-d", path], check=True, capture_output=True)
    compiled = subprocess.run(["iasl", path.with_suffix(".dsl")], check=True, capture_output=True, text=True)
    assert "0 Errors, 0 Warnings" in compiled.stdout


class Pm:
    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.level = False
        self.events: list[Event] = []
        self.pm = AcpiPm(self.loop, self.sci, self.events.append)

    def sci(self, level: bool) -> None:
        self.level = level


def test_entering_s5_is_power_off_and_no_other_state_is() -> None:
    board = Pm()
    assert board.pm.read(4, 2) & 1  # SCI_EN
    board.pm.write(4, 2, 1 << 13 | 3 << 10)
    assert board.events == []
    board.pm.write(4, 2, 5 << 10)
    board.pm.write(4, 2, 1 << 13 | 5 << 10)
    assert board.events == [PowerOff()]


def test_the_timer_runs_at_its_frequency() -> None:
    board = Pm()
    before = board.pm.read(PM_TIMER, 4)
    board.loop.advance(2)
    assert board.pm.read(PM_TIMER, 4) - before == 2 * TIMER_FREQUENCY


def test_the_power_button_interrupts_until_its_status_is_cleared() -> None:
    board = Pm()
    board.pm.write(2, 2, PWRBTN_STS)
    board.pm.press_power_button()
    assert board.level
    assert board.pm.read(0, 2) == PWRBTN_STS
    board.pm.write(0, 2, PWRBTN_STS)
    assert not board.level


def test_the_timer_status_is_set_when_the_top_bit_changes() -> None:
    board = Pm()
    board.pm.write(2, 2, TMR_STS)
    board.loop.advance((1 << 31) / TIMER_FREQUENCY + 1)
    assert board.level
    board.pm.write(0, 1, TMR_STS)
    assert not board.level


def test_any_part_of_the_block_can_be_accessed() -> None:
    board = Pm()
    for offset in range(16):
        for size in (1, 2, 4, 8):
            board.pm.write(offset, size, (1 << 8 * size) - 1)
            board.pm.read(offset, size)
