"""Interrupt lines of an HVM domain, the clock that two share, and what firmware finds in memory."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hvm_world import MEMORY, World

from bivisor.abi.xen.errno import Errno
from bivisor.dom0.hvm.unplug import MAGIC
from bivisor.errors import GuestAddressError, ImageError
from bivisor.memory import PAGE
from bivisor.platform.ide import AtaDisk, CdRom
from bivisor.platform.pci import BarKind
from bivisor.platform.pci import registers as reg
from bivisor.platform.rtc import Rtc
from bivisor.toolstack import hvmloader
from bivisor.toolstack.hvmloader import smbios
from bivisor.toolstack.hvmloader.loader import INFO_AT
from bivisor.toolstack.shared_image import SharedImage
from bivisor.xen.errors import XenError
from bivisor.xen.hvm.irq import Lines, pci_gsi
from bivisor.xen.hvm.platform import Clock

BIOS = b"XenHVMSeaBIOS".ljust(1 << 16, b"\xf4")
CHIPSET = hvmloader.Chipset(48, 2, 0x8086_A201)
FACTS = smbios.Facts(2, MEMORY, uuid.UUID(int=0x1234), "4.17.7", 2600, "AMD", (0x60F00, 0x178BFBFF))


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


class Lamp:
    """Shows the lines that are up."""

    def __init__(self) -> None:
        self.up: set[int] = set()

    def __call__(self, gsi: int, level: bool) -> None:
        (self.up.add if level else self.up.discard)(gsi)


def test_a_pin_drives_its_own_input_and_the_isa_line_of_its_link() -> None:
    lamp = Lamp()
    lines = Lines(lamp)
    lines.route(3, 5)
    lines.set_pin(3, 0, True)
    assert lamp.up == {pci_gsi(3, 0), 5}
    lines.route(3, 11)
    assert lamp.up == {pci_gsi(3, 0), 11}
    lines.set_pin(7, 0, True)  # another pin of the same link
    lines.set_pin(3, 0, False)
    assert lamp.up == {pci_gsi(7, 0), 11}
    lines.set_pin(7, 0, False)
    assert not lamp.up


def test_an_isa_line_is_up_as_long_as_anybody_holds_it() -> None:
    lamp = Lamp()
    lines = Lines(lamp)
    lines.route(0, 10)
    lines.set_isa(10, True)
    lines.set_pin(4, 0, True)
    lines.set_isa(10, False)
    assert 10 in lamp.up
    lines.set_pin(4, 0, False)
    assert not lamp.up
    with pytest.raises(XenError, match=Errno.EINVAL.name):
        lines.set_isa(16, True)
    with pytest.raises(XenError, match=Errno.EINVAL.name):
        lines.set_pin(32, 0, True)
    with pytest.raises(XenError, match=Errno.EINVAL.name):
        lines.route(4, 1)


@pytest.mark.parametrize("place", [7, (2, 0)])
def test_events_come_at_a_line_where_the_guest_wants_that(place: int | tuple[int, int]) -> None:
    lamp = Lamp()
    lines = Lines(lamp)
    lines.route(2, 10)
    lines.set_callback(place)
    assert lines.has_callback and not lines.callback_is_up
    lines.callback_level(True)
    assert lines.callback_is_up
    assert lamp.up == ({7} if place == 7 else {pci_gsi(2, 0), 10})
    lines.set_callback(None)
    assert not lamp.up and not lines.has_callback


def test_xen_has_the_clock_and_the_device_model_the_rest_of_the_cmos(world: World) -> None:
    clock = Clock(Rtc(world.loop, lambda: 0.0, lambda _: None))
    clock.write(0, 1, 0x0D)
    assert not clock.is_foreign and clock.read(1, 1) & 0x80
    clock.write(0, 1, 0x0E)
    assert clock.is_foreign
    world.plug_in_board()
    world.accesses.port(0x70, 1, 0x34)
    assert world.accesses.port(0x71, 1, None) == 0
    world.accesses.port(0x70, 1, 0x3D)
    assert world.accesses.port(0x71, 1, None) == 2  # a hard disk


def test_devices_reach_the_ram_that_the_guest_has_and_no_other(world: World) -> None:
    board = world.plug_in_board()
    view = board.memory.view(0x1000, 3 * PAGE)
    view[:4] = b"here"
    view.release()
    heard: list[tuple[int, int]] = []
    world.memory.listen(lambda gpa, length: heard.append((gpa, length)))
    board.memory.written(0x1234, PAGE)
    assert world.memory.read(0x1000, 4) == b"here" and heard == [(0x1234, PAGE)]
    assert world.domain.release(2, 1)
    for gpa, length in ((0x1000, 2 * PAGE), (0x2000, 4), (MEMORY - 4, 8), (0xA_0000, 4), (1 << 60, 1)):
        with pytest.raises(GuestAddressError):
            board.memory.view(gpa, length)


class Image:
    """A disk image of zeroes that knows whether it is open."""

    def __init__(self) -> None:
        self.path, self.size, self.read_only, self.physical_block = Path("x"), 1 << 20, False, 512
        self.closed = 0

    def readv(self, views: object, offset: int) -> int:
        return 0

    def writev(self, views: object, offset: int) -> int:
        return 0

    def flush(self) -> None: ...

    def discard(self, offset: int, length: int) -> None: ...

    def zero(self, offset: int, length: int, unmap: bool) -> None: ...

    def close(self) -> None:
        self.closed += 1


def test_unplugging_takes_the_disks_and_leaves_the_discs(world: World) -> None:
    board = world.plug_in_board()
    image, disc = Image(), Image()
    shared = SharedImage(image)
    other = shared.again()
    board.add_drive(AtaDisk(shared, serial="BV1"), 0, shared.close)
    board.add_drive(CdRom(disc), 2, disc.close)
    assert world.accesses.port(0x10, 2, None) == MAGIC
    assert world.accesses.port(0x12, 1, None) == 1
    world.accesses.port(0x12, 2, 3)
    world.accesses.port(0x10, 4, 0)
    world.accesses.port(0x10, 2, 3)
    channels = board.ide.channels
    assert channels[0].drives[0] is None and channels[1].drives[0] is not None
    assert board.unplug.product == 3
    assert image.closed == 0  # the PV disk has it still
    other.close()
    other.close()
    assert image.closed == 1
    with pytest.raises(OSError, match="closed"):
        other.readv([], 0)


def low_memory(world: World) -> hvmloader.LowMemory:
    def populate(gpa: int, data: bytes) -> None:
        for at in range(0, len(data), PAGE):
            page = world.domain.frame_for((gpa + at) // PAGE)
            page[: len(data) - at] = data[at : at + PAGE]

    return hvmloader.LowMemory(MEMORY, world.memory.write, populate)


def _set_up(world: World) -> None:
    board = world.plug_in_board()
    hvmloader.load(low_memory(world), board.pci, BIOS, FACTS, CHIPSET)


def test_firmware_finds_what_hvmloader_leaves(world: World) -> None:
    _set_up(world)
    read = world.memory.read
    signature, size, _, tables, count, e820, entries = struct.unpack("<14sBBIIII", read(INFO_AT, 32))
    assert signature == b"XenHVMSeaBIOS\0"
    assert sum(read(INFO_AT, size)) & 0xFF == 0
    rsdp, anchor = struct.unpack("<2I", read(tables, 4 * count))
    assert sum(read(rsdp, 20)) & 0xFF == 0 and sum(read(rsdp, 36)) & 0xFF == 0
    (xsdt,) = struct.unpack("<Q", read(rsdp + 24, 8))
    found = {}
    (size,) = struct.unpack("<I", read(xsdt + 4, 4))
    for at in range(36, size, 8):
        (address,) = struct.unpack("<Q", read(xsdt + at, 8))
        (length,) = struct.unpack("<I", read(address + 4, 4))
        assert sum(read(address, length)) & 0xFF == 0
        found[read(address, 4)] = address
    assert set(found) == {b"FACP", b"APIC", b"HPET", b"WAET"}
    assert read(anchor, 4) == b"_SM_" and sum(read(anchor, 31)) & 0xFF == 0
    regions = [struct.unpack("<QQI", read(e820 + 20 * n, 20)) for n in range(entries)]
    assert all(first[0] + first[1] <= second[0] for first, second in pairwise(regions))
    reserved = next(region for region in regions if region[0] <= rsdp < region[0] + region[1])
    assert reserved[2] == 4
    assert read((1 << 20) - len(BIOS), 13) == BIOS[:13]


def test_every_function_is_placed_routed_and_turned_on(world: World) -> None:
    _set_up(world)
    board = world.board
    assert board is not None
    for function in board.pci.functions:
        kinds = {bar.kind is BarKind.IO for bar in function.bars.values()}
        if function is board.vga:
            kinds.add(True)  # its ports have no BAR
        assert function.config[reg.COMMAND] & 7 == 4 | (True in kinds) | (False in kinds) << 1
        assert all(bar.mapped == bar.address(function.config) for bar in function.bars.values() if bar.index < reg.BARS)
        if function.pin:
            assert function.config[reg.INTERRUPT_LINE] in (5, 10, 11)
    world.accesses.port(0xCF8, 4, 0x8000_0000 | 1 << 11 | 0x60)
    assert world.accesses.port(0xCFC, 4, None) == 0x050B_0A05


def test_a_bios_that_cannot_work_on_xen_is_refused(world: World) -> None:
    board = world.plug_in_board()
    memory = low_memory(world)
    for bios, told in ((bytes(1 << 16), "without support for Xen"), (b"x" * 100, "in whole pages")):
        with pytest.raises(ImageError, match=told):
            hvmloader.load(memory, board.pci, bios, FACTS, CHIPSET)


def test_smbios_says_what_hvmloader_says() -> None:
    anchor, tables = smbios.build(FACTS, 0x1000)
    assert anchor[6:8] == bytes((2, 4))
    kinds = []
    at = 0
    while at < len(tables):
        kind, length = tables[at], tables[at + 1]
        end = tables.index(b"\0\0", at + length) + 2
        kinds.append((kind, length, tables[at + length : end - 2].split(b"\0")))
        at = end
    assert [kind for kind, _, _ in kinds] == [0, 1, 3, 4, 4, 11, 16, 17, 19, 20, 32, 127]
    assert kinds[0][2][:2] == [b"Xen", b"4.17.7"]
    assert kinds[1][2][:3] == [b"Xen", b"HVM domU", b"4.17.7"]
    assert kinds[7][2] == [b"DIMM 0"]


def test_a_guest_gets_no_pages_where_its_device_model_shows_memory(world: World) -> None:
    board = world.plug_in_board()
    domain = world.domain
    domain.physmap.occupied = lambda: [(slot.gpa, slot.size) for slot in world.windows.shown.values() if slot]
    board.pci.assign()
    for place in board.pci.places:
        board.pci.config_write(0x8000_0000 | place << 8 | reg.COMMAND, 2, 7)
    frame_buffer = world.windows.shown["frame buffer"]
    assert frame_buffer is not None and frame_buffer.size == 16 << 20
    with pytest.raises(XenError, match=Errno.EINVAL.name):
        domain.frame_for((frame_buffer.gpa >> 12) + 5)
    domain.frame_for((frame_buffer.gpa >> 12) - 1).release()  # beside it there may be pages
    windows = [slot for slot in world.memory.slots if slot.gpa > MEMORY]
    assert windows and all(slot.gpa + slot.size <= frame_buffer.gpa for slot in windows)
