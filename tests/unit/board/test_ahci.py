"""AHCI as a driver uses it: link, commands by DMA and by PIO, queued commands, errors, packets, what is no memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from board_bench import SIZE, Bench, RamDisk, bench
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.errors import UsageError
from bivisor.platform.ahci import PORTS
from bivisor.platform.ahci import registers as r
from bivisor.platform.ide import AtaDisk, CdRom
from bivisor.platform.ide.drive import Drive

ABAR, LIST, RECEIVED, TABLE, DATA = 0xFEBF_0000, 0x11_0000, 0x11_1000, 0x11_2000, 0x12_0000
LINE = 10
IMAGE = bytes(range(256)) * 512


class Driver:
    """Port 0 of the controller in slot 3, and memory for its lists."""

    def __init__(self, machine: Bench, drive: Drive) -> None:
        self.machine = machine
        self.name = machine.board.add_sata_drive(drive)
        machine.config(3, 0, 0x24, ABAR)
        machine.config(3, 0, 0x04, 6)
        machine.config(1, 0, 0x60 + 2, LINE, 1)
        self.set(r.GHC, r.GHC_AE | r.GHC_IE)
        for register, value in ((r.CLB, LIST), (r.FB, RECEIVED), (r.PXIE, 0xFFFF_FFFF)):
            self.port(register, value)
        self.port(r.CMD, r.CMD_FRE | r.CMD_SUD | r.CMD_POD)
        self.port(r.CMD, r.CMD_FRE | r.CMD_SUD | r.CMD_POD | r.CMD_ST)

    def get(self, offset: int) -> int:
        return self.machine.mmio.read(ABAR + offset, 4)

    def set(self, offset: int, value: int) -> None:
        self.machine.mmio.write(ABAR + offset, 4, value)

    def port(self, offset: int, value: int | None = None) -> int:
        if value is not None:
            self.set(r.PORT_BASE + offset, value)
        return self.get(r.PORT_BASE + offset)

    def prepare(
        self, code: int, *, slot: int = 0, lba: int = 0, count: int = 1, feature: int = 0, write: bool = False,
        ranges: tuple[tuple[int, int], ...] = ((DATA, 512),), packet: bytes = b"", device: int = 0x40,
    ) -> None:  # fmt: skip
        low, high = lba.to_bytes(6, "little")[:3], lba.to_bytes(6, "little")[3:]
        fis = struct.pack(
            "<BBBB3sB3sBH6x", r.FIS_H2D, 0x80, code, feature & 0xFF, low, device, high, feature >> 8, count
        )
        table = TABLE + slot * 0x400
        memory = self.machine.memory
        memory.write(table, fis)
        memory.write(table + r.TABLE_ACMD, packet.ljust(16, b"\0"))
        for number, (address, length) in enumerate(ranges):
            memory.write(table + r.TABLE_PRDT + 16 * number, r.PRD.pack(address, 0, length - 1))
        flags = 5 | (r.FLAG_ATAPI if packet else 0) | (r.FLAG_WRITE if write else 0)
        memory.write(LIST + 32 * slot, r.HEADER.pack(flags, len(ranges), 0, table))

    def issue(self, slots: int = 1) -> int:
        """Issue; the interrupt status, which is cleared."""
        self.port(r.CI, slots)
        status = self.port(r.PXIS)
        assert self.get(r.IS) & 1 == bool(status)
        assert bool(self.machine.lines.get(LINE)) == bool(status)
        self.port(r.PXIS, status)
        assert not self.machine.lines.get(LINE)
        return status

    def command(self, code: int, **words: object) -> int:
        self.prepare(code, **words)  # type: ignore[arg-type]
        return self.issue()


@pytest.fixture
def machine() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def disk() -> RamDisk:
    return RamDisk(IMAGE)


@pytest.fixture
def driver(machine: Bench, disk: RamDisk) -> Driver:
    return Driver(machine, AtaDisk(disk, sata=True))


def test_the_link_is_up_where_a_drive_is_and_the_signature_tells_its_kind(machine: Bench, driver: Driver) -> None:
    assert driver.name == "/pci@i0cf8/pci8086,2922@3/drive@0/disk@0"
    assert machine.board.add_sata_drive(CdRom(None)).endswith("drive@1/disk@0")
    assert (driver.port(r.SSTS), driver.port(r.SIG)) == (0x113, 0x101)
    assert driver.get(r.PORT_BASE + r.PORT_SIZE + r.SIG) == 0xEB14_0101
    assert driver.get(r.PORT_BASE + 2 * r.PORT_SIZE + r.SSTS) == 0
    assert driver.get(r.PI) == (1 << PORTS) - 1


def test_a_link_reset_brings_a_fis_with_the_signature(machine: Bench, driver: Driver) -> None:
    driver.port(r.SCTL, 1)
    assert driver.port(r.SSTS) == 0
    driver.port(r.SCTL, 0)
    assert driver.port(r.SSTS) == 0x113
    assert driver.port(r.PXIS) & r.IS_PCS
    assert machine.memory.read(RECEIVED + r.AT_D2H, 8).hex() == "3440500101000000"
    driver.port(r.SERR, 0xFFFF_FFFF)
    assert not driver.port(r.PXIS) & r.IS_PCS


def test_identify_comes_by_pio_and_tells_of_the_queue(machine: Bench, driver: Driver) -> None:
    assert driver.command(0xEC) == r.IS_PSS
    words = struct.unpack("<256H", machine.memory.read(DATA, 512))
    assert (words[75], words[76] & 0x100, words[93]) == (31, 0x100, 0)
    assert words[60] | words[61] << 16 == len(IMAGE) // 512
    assert machine.memory.read(RECEIVED + r.AT_PIO_SETUP, 1)[0] == r.FIS_PIO_SETUP
    assert struct.unpack("<I", machine.memory.read(LIST + 4, 4)) == (512,)


def test_dma_reads_and_writes_through_scattered_ranges(machine: Bench, driver: Driver, disk: RamDisk) -> None:
    ranges = ((DATA, 512), (DATA + 0x1000, 1024), (DATA + 0x3000, 512))
    assert driver.command(0x25, lba=3, count=4, ranges=ranges) == r.IS_DHRS
    assert b"".join(machine.memory.read(*each) for each in ranges) == IMAGE[1536 : 1536 + 2048]
    machine.memory.write(DATA, b"\xa5" * 512)
    assert driver.command(0x35, lba=7, count=1, write=True) == r.IS_DHRS
    assert disk.data[7 * 512 : 8 * 512] == b"\xa5" * 512
    assert disk.data[: 7 * 512] == IMAGE[: 7 * 512]
    assert driver.command(0xEA) == r.IS_DHRS
    assert disk.flushes == 1


def test_queued_commands_end_with_their_tags(machine: Bench, driver: Driver, disk: RamDisk) -> None:
    for slot in (2, 9):
        driver.prepare(
            r.READ_FPDMA, slot=slot, lba=slot, feature=1, count=slot << 3, ranges=((DATA + 512 * slot, 512),)
        )
    driver.port(r.SACT, 1 << 2 | 1 << 9)
    assert driver.issue(1 << 2 | 1 << 9) == r.IS_SDBS
    assert driver.port(r.SACT) == driver.port(r.CI) == 0
    assert machine.memory.read(RECEIVED + r.AT_SET_DEVICE_BITS, 8) == struct.pack("<BBBBI", 0xA1, 0x40, 0x50, 0, 1 << 9)
    for slot in (2, 9):
        assert machine.memory.read(DATA + 512 * slot, 512) == IMAGE[512 * slot :][:512]
    driver.prepare(r.WRITE_FPDMA, slot=1, lba=0, feature=2, count=1 << 3, write=True, ranges=((DATA, 1024),))
    driver.port(r.SACT, 2)
    assert driver.issue(2) == r.IS_SDBS
    assert disk.data[:1024] == machine.memory.read(DATA, 1024)


def test_an_error_stops_the_port_until_the_guest_restarts_it(driver: Driver, disk: RamDisk) -> None:
    assert driver.command(0x25, lba=10_000) == r.IS_TFES | r.IS_DHRS
    assert driver.port(r.TFD) & 0x1001 == 0x1001
    assert driver.port(r.CI) == 1
    assert driver.issue(2) == 0
    driver.port(r.CMD, r.CMD_FRE)
    assert driver.port(r.CI) == 0
    driver.port(r.CMD, r.CMD_FRE | r.CMD_ST)
    disk.broken = True
    assert driver.command(0x25) & r.IS_TFES
    disk.broken = False
    driver.port(r.CMD, r.CMD_FRE)
    driver.port(r.CMD, r.CMD_FRE | r.CMD_ST)
    assert driver.command(0x25) == r.IS_DHRS


def test_the_log_tells_which_queued_command_failed(machine: Bench, driver: Driver) -> None:
    driver.prepare(r.READ_FPDMA, slot=5, lba=1 << 40, feature=1, count=5 << 3)
    driver.port(r.SACT, 1 << 5)
    assert driver.issue(1 << 5) == r.IS_SDBS | r.IS_TFES
    assert driver.port(r.SACT) == 1 << 5
    driver.port(r.CMD, r.CMD_FRE)
    driver.port(r.CMD, r.CMD_FRE | r.CMD_ST)
    assert driver.command(r.READ_LOG_EXT, lba=r.LOG_NCQ_ERROR) == r.IS_PSS
    page = machine.memory.read(DATA, 512)
    assert (page[0], page[3], sum(page) & 0xFF) == (5, 0x10, 0)


def test_a_table_shorter_than_the_command_is_an_error(driver: Driver) -> None:
    assert driver.command(0x25, count=2) & r.IS_TFES


@pytest.mark.parametrize("place", [0x8000_0000, SIZE - 256, 1 << 60])
def test_what_is_no_memory_fails_and_no_more(driver: Driver, place: int) -> None:
    assert driver.command(0x25, ranges=((place, 512),)) & r.IS_TFES
    driver.port(r.CMD, r.CMD_FRE)
    driver.port(r.CLB, place & 0xFFFF_FFFF)
    driver.port(r.CLBU, place >> 32)
    driver.port(r.FBU, 1 << 20)
    driver.port(r.CMD, r.CMD_FRE | r.CMD_ST)
    assert driver.issue() in (r.IS_HBFS, r.IS_DHRS | r.IS_TFES)


def test_without_mastership_nothing_is_read(machine: Bench, driver: Driver) -> None:
    machine.config(3, 0, 0x04, 2)
    assert driver.command(0xEC) == 0
    assert machine.memory.read(DATA, 512) == bytes(512)


def test_a_soft_reset_comes_in_two_commands(machine: Bench, driver: Driver) -> None:
    for control, expected in ((r.SRST, 0), (0, r.IS_DHRS)):
        driver.prepare(0)
        machine.memory.write(TABLE + 1, b"\0")
        machine.memory.write(TABLE + 15, bytes((control,)))
        assert driver.issue() == expected
    assert driver.port(r.TFD) & 0xFF == 0x50


def test_a_cd_rom_answers_packets_by_dma_and_by_pio(machine: Bench) -> None:
    driver = Driver(machine, CdRom(RamDisk(IMAGE)))
    assert driver.command(0xA1) == r.IS_PSS
    assert driver.command(0xA0, packet=bytes(12)) & r.IS_TFES  # the attention of a disc that is new
    driver.port(r.CMD, r.CMD_FRE)
    driver.port(r.CMD, r.CMD_FRE | r.CMD_ST)
    read = struct.pack(">BBIBHB2x", 0x28, 0, 2, 0, 2, 0)
    for feature, expected in ((1, r.IS_DHRS), (0, r.IS_PSS)):
        machine.memory.write(DATA, bytes(4096))
        words = {"packet": read, "feature": feature, "ranges": ((DATA, 4096),)}
        assert driver.command(0xA0, **words) == expected
        assert machine.memory.read(DATA, 4096) == IMAGE[4096:8192]


def test_a_seventh_drive_is_refused(machine: Bench) -> None:
    for _ in range(PORTS):
        machine.board.add_sata_drive(CdRom(None))
    with pytest.raises(UsageError, match="6 ports"):
        machine.board.add_sata_drive(CdRom(None))


def test_a_guest_that_enables_messages_gets_them_in_place_of_the_line(machine: Bench, driver: Driver) -> None:
    assert machine.config(3, 0, 0x34, size=1) == 0x80
    assert machine.config(3, 0, 0x80) == 0x0080_A805  # MSI with a 64-bit address, then the index and data pair
    assert machine.config(3, 0, 0xA8) == 0x0010_0012 and machine.config(3, 0, 0xAC) == 0x48
    for offset, value in ((0x84, 0xFEE0_1000), (0x88, 0), (0x8C, 0x4041), (0x82, 0x81)):
        machine.config(3, 0, offset, value, 2 if offset in (0x82, 0x8C) else 4)
    driver.prepare(0x25)
    driver.port(r.CI, 1)
    assert machine.messages and set(machine.messages) == {(0xFEE0_1000, 0x4041)}
    assert not machine.lines.get(LINE)
    machine.config(3, 0, 0x84, 0x1000)  # no interrupt, and no reason to write to memory
    before = len(machine.messages)
    driver.prepare(0x25)
    driver.port(r.CI, 1)
    assert len(machine.messages) == before


def test_registers_can_be_reached_by_index_and_data(machine: Bench, driver: Driver) -> None:
    machine.config(3, 0, 0x20, 0xC000)
    machine.config(3, 0, 0x04, 7)
    machine.write(0xC010, r.PORT_BASE + r.CLB, 4)
    assert machine.read(0xC014, 4) == LIST
    machine.write(0xC014, LIST + 0x400, 4)
    assert driver.port(r.CLB) == LIST + 0x400
    assert machine.read(0xC010, 4) == r.PORT_BASE + r.CLB
    machine.write(0xC010, 0xFFFF_FFFF, 4)
    assert machine.read(0xC014, 4) == 0 and machine.read(0xC014, 1) == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from((0x80, 0x82, 0x84, 0x88, 0x8C, 0x90, 0xA8, 0x20, 0x04)) | st.integers(0xC000, 0xC01F),
            st.sampled_from((1, 2, 4)),
            st.integers(0, 0xFFFF_FFFF),
        ),
        max_size=40,
    )
)
def test_nothing_that_a_guest_writes_to_capabilities_or_ports_raises(steps: list[tuple[int, int, int]]) -> None:
    with bench() as machine:
        driver = Driver(machine, AtaDisk(RamDisk(IMAGE), sata=True))
        machine.config(3, 0, 0x20, 0xC000)
        machine.config(3, 0, 0x04, 7)
        for at, size, value in steps:
            masked = value & (1 << 8 * size) - 1
            if at < 0x100:
                machine.config(3, 0, at, masked, size)
            else:
                machine.write(at, masked, size)
                assert 0 <= machine.read(at, size) < 1 << 8 * size
            driver.port(r.PXIE, value)
        assert all(address >> 20 == 0xFEE for address, _ in machine.messages)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 0xFFF), st.sampled_from((1, 2, 4, 8)), st.integers(0, (1 << 64) - 1)),
            st.tuples(st.sampled_from((0x110, 0x118, 0x12C, 0x134, 0x138)), st.just(4), st.integers(0, 0xFFFF_FFFF)),
            st.binary(min_size=1, max_size=64),
        ),
        max_size=30,
    )
)
def test_nothing_that_a_guest_writes_raises(steps: list[tuple[int, int, int] | bytes]) -> None:
    with bench() as machine:
        driver = Driver(machine, AtaDisk(RamDisk(IMAGE), sata=True))
        driver.prepare(0x25)
        for step in steps:
            if isinstance(step, bytes):
                for place in (LIST, TABLE, TABLE + r.TABLE_PRDT):
                    machine.memory.write(place, step)
            else:
                offset, size, value = step
                machine.mmio.write(ABAR + offset, size, value & (1 << 8 * size) - 1)
                assert 0 <= machine.mmio.read(ABAR + offset, size) < 1 << 8 * size
