"""IDE: programmed I/O, bus-master DMA, the CD-ROM, and guests that break the rules."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from board_bench import Bench, RamDisk, bench
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.platform.ide import AtaDisk, CdRom, PiixIde

SECTOR = 512
BASE, CONTROL, BUS_MASTER = 0x1F0, 0x3F6, 0xC000
CD_BASE = 0x170
DRQ, ERR = 0x08, 0x01


@pytest.fixture
def machine() -> Iterator[tuple[Bench, RamDisk]]:
    with bench() as made:
        disk = RamDisk(bytes(n // SECTOR & 0xFF for n in range(256 * SECTOR)))
        made.board.ide.add_drive(AtaDisk(disk), 0)
        made.board.ide.add_drive(CdRom(RamDisk(b"CD" * 8192)), 2)
        made.config(1, 1, 0x20, BUS_MASTER)
        made.config(1, 1, 0x04, 5, 2)
        yield made, disk


def command(made: Bench, code: int, lba: int, count: int, base: int = BASE) -> None:
    for register, value in ((2, count), (3, lba), (4, lba >> 8), (5, lba >> 16), (6, 0xE0 | lba >> 24 & 15), (7, code)):
        made.write(base + register, value & 0xFF)


def packet(made: Bench, data: bytes, limit: int = 2048) -> None:
    for register, value in ((1, 0), (4, limit & 0xFF), (5, limit >> 8), (7, 0xA0)):
        made.write(CD_BASE + register, value)
    for (word,) in struct.iter_unpack("<H", data.ljust(12, b"\0")):
        made.write(CD_BASE, word, 2)


def test_sectors_are_read_through_the_data_port_with_an_interrupt_each(machine: tuple[Bench, RamDisk]) -> None:
    made, _ = machine
    command(made, 0x20, 5, 2)
    for sector in (5, 6):
        assert made.lines[14]
        assert made.read(BASE + 7) & DRQ
        assert not made.lines[14]
        assert b"".join(made.read(BASE, 2).to_bytes(2, "little") for _ in range(256)) == bytes((sector,)) * SECTOR
    assert not made.read(BASE + 7) & DRQ


def test_a_sector_is_written_through_the_data_port(machine: tuple[Bench, RamDisk]) -> None:
    made, disk = machine
    command(made, 0x30, 9, 1)
    for _ in range(128):
        made.write(BASE, 0xDDCCBBAA, 4)
    assert made.lines[14]
    assert disk.data[9 * SECTOR : 10 * SECTOR] == b"\xaa\xbb\xcc\xdd" * 128


def test_the_bus_master_scatters_a_read_and_gathers_a_write(machine: tuple[Bench, RamDisk]) -> None:
    made, disk = machine
    made.prd(0x1000, (0x8000, 512), (0xC0000, 1536))
    made.write(BUS_MASTER + 4, 0x1000, 4)
    made.write(BUS_MASTER, 0x08)
    command(made, 0xC8, 3, 4)
    made.write(BUS_MASTER, 0x09)
    assert made.read(BUS_MASTER + 2) & 7 == 4
    assert made.lines[14]
    assert made.memory.read(0x8000, 512) == b"\x03" * 512
    assert made.memory.read(0xC0000, 1536) == b"\x04" * 512 + b"\x05" * 512 + b"\x06" * 512
    made.write(BUS_MASTER, 0)
    made.write(BUS_MASTER + 2, 6)
    command(made, 0xCA, 100, 4)
    made.write(BUS_MASTER, 0x01)
    assert disk.data[100 * SECTOR : 101 * SECTOR] == b"\x03" * 512


def test_a_table_that_leaves_memory_or_is_too_short_is_an_error(machine: tuple[Bench, RamDisk]) -> None:
    made, _ = machine
    for table in ([(0x8000_0000, 512)], [(0x8000, 256)]):
        made.prd(0x1000, *table)
        made.write(BUS_MASTER + 4, 0x1000, 4)
        made.write(BUS_MASTER, 0x08)
        command(made, 0xC8, 0, 1)
        made.write(BUS_MASTER, 0x09)
        assert made.read(BUS_MASTER + 2) & 2
        assert made.read(BASE + 7) & ERR
        made.write(BUS_MASTER, 0)
        made.write(BUS_MASTER + 2, 6)


def trim(made: Bench, entries: bytes, blocks: int = 1, feature: int = 1) -> None:
    made.memory.write(0x8000, entries.ljust(SECTOR * blocks, b"\0"))
    made.prd(0x1000, (0x8000, 20), (0x8014, SECTOR * blocks - 20))
    made.write(BUS_MASTER + 4, 0x1000, 4)
    made.write(BUS_MASTER, 0)
    made.write(BUS_MASTER + 2, 6)
    made.write(BASE + 1, 0)
    made.write(BASE + 1, feature)
    for value in (0, blocks):
        made.write(BASE + 2, value)
    made.write(BASE + 6, 0xE0)
    made.write(BASE + 7, 0x06)
    made.write(BUS_MASTER, 0x01)


def test_sectors_that_a_guest_trims_are_discarded_and_none_beyond_the_end(machine: tuple[Bench, RamDisk]) -> None:
    made, disk = machine
    trim(made, struct.pack("<QQ", 10 | 2 << 48, 255 | 1 << 48))
    assert not made.read(BASE + 7) & ERR
    assert disk.discarded == [(10 * SECTOR, 2 * SECTOR), (255 * SECTOR, SECTOR)]
    disk.discarded.clear()
    trim(made, struct.pack("<QQ", 10 | 2 << 48, 255 | 2 << 48))
    assert made.read(BASE + 7) & ERR
    for blocks, feature in ((9, 1), (1, 0)):
        trim(made, struct.pack("<Q", 10 | 2 << 48), blocks, feature)
        assert made.read(BASE + 7) & ERR
    assert not disk.discarded
    disk.read_only = True
    trim(made, struct.pack("<Q", 10 | 2 << 48))
    assert made.read(BASE + 7) & ERR
    assert not disk.discarded


def test_no_command_leaves_the_disk(machine: tuple[Bench, RamDisk]) -> None:
    made, disk = machine
    before = bytes(disk.data)
    for code in (0x20, 0x30, 0xC8, 0xCA):
        command(made, code, 255, 2)
        assert made.read(BASE + 7) & ERR
        assert made.read(BASE + 1) == 0x10
    assert disk.data == before


def test_what_the_host_cannot_read_is_a_media_error(machine: tuple[Bench, RamDisk]) -> None:
    made, disk = machine
    disk.broken = True
    command(made, 0x20, 0, 1)
    assert made.read(BASE + 1) == 0x40


def test_a_read_only_disk_takes_no_writes() -> None:
    with bench() as made:
        made.board.ide.add_drive(AtaDisk(RamDisk(bytes(SECTOR * 8), read_only=True)), 0)
        command(made, 0x30, 0, 1)
        assert made.read(BASE + 1) == 0x04


def test_a_disk_says_what_it_is(machine: tuple[Bench, RamDisk]) -> None:
    made, _ = machine
    command(made, 0xEC, 0, 0)
    words = [made.read(BASE, 2) for _ in range(256)]
    assert words[60] | words[61] << 16 == 256
    assert b"".join(struct.pack(">H", word) for word in words[27:47]).rstrip() == b"BIVISOR HARDDISK"


def test_a_place_without_a_drive_has_no_status(machine: tuple[Bench, RamDisk]) -> None:
    made, _ = machine
    made.write(BASE + 6, 0xF0)
    assert made.read(BASE + 7) == 0


def test_a_disc_is_read_by_packets_after_it_was_announced(machine: tuple[Bench, RamDisk]) -> None:
    made, _ = machine
    assert (made.read(CD_BASE + 4), made.read(CD_BASE + 5)) == (0x14, 0xEB)
    packet(made, b"\0")
    assert made.read(CD_BASE + 1) >> 4 == 6  # unit attention
    packet(made, b"\0")
    assert not made.read(CD_BASE + 7) & ERR
    packet(made, bytes((0x25,)))
    assert b"".join(made.read(CD_BASE, 2).to_bytes(2, "little") for _ in range(4)) == struct.pack(">II", 7, 2048)
    packet(made, struct.pack(">BBIBHB", 0x28, 0, 1, 0, 1, 0))
    assert made.read(CD_BASE + 4) | made.read(CD_BASE + 5) << 8 == 2048
    assert made.read(CD_BASE, 4) == int.from_bytes(b"CDCD", "little")
    packet(made, struct.pack(">BBIBHB", 0x28, 0, 8, 0, 1, 0))
    assert made.read(CD_BASE + 7) & ERR


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*range(BASE, BASE + 8), CONTROL, *range(CD_BASE, CD_BASE + 8), *range(0xC000, 0xC010)]),
            st.sampled_from([1, 2, 4]),
            st.one_of(st.none(), st.sampled_from([0xA0, 0xC8, 0x20, 0x30, 0xE0, 0x09, 4]), st.integers(0, 2**32 - 1)),
        ),
        max_size=60,
    )
)
def test_no_sequence_of_accesses_raises(accesses: list[tuple[int, int, int | None]]) -> None:
    with bench() as made:
        made.board.ide.add_drive(AtaDisk(RamDisk(bytes(64 * SECTOR))), 0)
        made.board.ide.add_drive(CdRom(RamDisk(bytes(64 * 2048))), 2)
        made.config(1, 1, 0x20, BUS_MASTER)
        made.config(1, 1, 0x04, 5, 2)
        for port, size, value in accesses:
            if value is None:
                made.read(port, size)
            else:
                made.write(port, value & (1 << 8 * size) - 1, size)


class Engine:
    """Takes what is fed, as native code does: words that fit, and no more."""

    def __init__(self) -> None:
        self.port, self.data, self.at = 0, b"", 0

    def feed_port(self, port: int, data: memoryview | None) -> None:
        self.port, self.data, self.at = (0, b"", 0) if data is None else (port, bytes(data), 0)

    def taken_from_port(self) -> int:
        return self.at

    def take(self) -> int | None:
        if self.at + 2 > len(self.data):
            return None
        self.at += 2
        return int.from_bytes(self.data[self.at - 2 : self.at], "little")


def test_a_guest_that_is_fed_reads_the_same_with_two_exits_a_sector() -> None:
    with bench() as made:
        engine = Engine()
        data = bytes(range(256)) * 8
        ide = PiixIde(made.memory, made.lines.__setitem__, engine)
        ide.add_drive(AtaDisk(RamDisk(data)), 0)
        channel = ide.channels[0]
        for register, value in ((2, 4), (3, 0), (6, 0xE0), (7, 0x20)):
            channel.write(register, 1, value)
        got, exits = b"", 0
        while channel.read(7, 1) & DRQ:
            word = engine.take() if engine.port == BASE else None
            if word is None:
                word, exits = channel.read(0, 2), exits + 1
            got += word.to_bytes(2, "little")
        assert got == data
        assert exits == 8


def test_a_command_in_the_middle_of_a_block_ends_the_feeding() -> None:
    with bench() as made:
        engine = Engine()
        ide = PiixIde(made.memory, made.lines.__setitem__, engine)
        ide.add_drive(AtaDisk(RamDisk(bytes(8 * SECTOR))), 0)
        for register, value in ((2, 4), (3, 0), (6, 0xE0), (7, 0x20)):
            ide.channels[0].write(register, 1, value)
        engine.take()
        ide.channels[0].write(7, 1, 0xE7)
        assert engine.port == 0
        assert engine.take() is None
