"""A PC without a processor: what a hostile guest's accesses would do, read from bytes.

Each step of an input is one byte of what to do and its arguments: port, memory and configuration accesses to the
device at hand, bytes into guest memory (descriptors, tables), time, and something from outside. After it nothing may
have been raised, no value may be wider than its access, and what is no guest memory may not have changed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bivisor.host.loop import Callback, ManualLoop
from bivisor.memory import GuestMemory, MemoryRegion
from bivisor.platform import hpet, i8254, port61
from bivisor.platform.ahci import Ahci
from bivisor.platform.bus import Bus, Claim, mmio_bus, port_bus
from bivisor.platform.e1000 import E1000
from bivisor.platform.events import Event
from bivisor.platform.flash import BLOCK, Flash
from bivisor.platform.i440fx.board import BoardOptions, I440fxBoard, Site
from bivisor.platform.ide import AtaDisk, CdRom
from bivisor.platform.irqchip import PcIrqChip
from bivisor.platform.pci import PciFunction
from bivisor.platform.virtio.balloon import VirtioBalloon
from bivisor.platform.virtio.blk import VirtioBlk
from bivisor.platform.virtio.console import Port, VirtioConsole
from bivisor.platform.virtio.net import VirtioNet
from bivisor.platform.virtio.pci import VirtioPci
from bivisor.platform.virtio.rng import VirtioRng

SIZE = 2 << 20
GAP = (0xA0000, 0xC0000)
FLASH = 0xFFC0_0000
SCRATCH, PAGES = 0x1_0000, 16
STEPS_MAX = 200
_CANARY = b"\xc5" * (GAP[1] - GAP[0])
_EDGES = (0, 1, 0xFF, SIZE - 8, SIZE - 1, SIZE, GAP[0] - 4, GAP[0], 0x7FFF_FFFF, 0xFFFF_FFF0, 0xFFFF_FFFF, 1 << 40)
_EDGES_64 = ((1 << 52) - 4, 1 << 63, (1 << 64) - 1, (1 << 64) - 16)
_SIZES = (1, 2, 4, 8)


class Shown:
    """The windows of devices; each has to be inside its region."""

    def show(self, name: str, gpa: int | None, region: MemoryRegion, offset: int, size: int) -> None:
        assert gpa is None or 0 <= offset <= offset + size <= region.size, name


class Disk:
    """A block back-end in memory that can break."""

    physical_block = 512
    read_only = False

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.size = size
        self.broken = False

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        return self._move(views, offset, lambda view, part: view.__setitem__(slice(0, len(part)), part))

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        return self._move(views, offset, lambda view, part: part.__setitem__(slice(None), view[: len(part)]))

    def _move(self, views: Sequence[memoryview], offset: int, move: Callable[[memoryview, memoryview], None]) -> int:
        if self.broken:
            raise OSError
        assert offset >= 0 and offset + sum(map(len, views)) <= self.size
        start, whole = offset, memoryview(self.data)
        for view in views:
            move(view, whole[offset : offset + len(view)])
            offset += len(view)
        return offset - start

    def flush(self) -> None:
        if self.broken:
            raise OSError

    def discard(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self.size

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        assert 0 <= offset <= offset + length <= self.size


class Store:
    """Where the flash is kept."""

    def save(self, offset: int, data: bytes) -> None:
        assert 0 <= offset < offset + len(data) <= BLOCK


class Wire:
    """A network that gives back what was put into it from outside, and is full at times."""

    offloads = (1 << 36) - 1
    has_header = True
    frame_max = 0

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.full = False
        self.callbacks: tuple[Callback | None, Callback | None] = (None, None)

    def set_offloads(self, features: int) -> None:
        pass

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        self.callbacks = (readable, writable)

    def send(self, views: Sequence[memoryview]) -> bool:
        assert sum(map(len, views)) <= 1 << 17
        return not self.full

    def receive(self, views: Sequence[memoryview]) -> int:
        if not self.waiting:
            return 0
        packet = self.waiting.pop(0)
        left = packet
        for view in views:
            part = left[: len(view)]
            view[: len(part)] = part
            left = left[len(part) :]
        return len(packet) - len(left)

    def outside(self, data: bytes) -> None:
        """Something arrives, or there is room again."""
        self.full = bool(data[:1] > b"\xc0")
        self.waiting = [*self.waiting[:4], data.ljust(26, b"\0")]
        for callback in self.callbacks:
            if callback is not None:
                callback()


class Terminal:
    """The host's side of a console port."""

    def __init__(self) -> None:
        self.waiting = b""
        self.callbacks: tuple[Callback | None, Callback | None] = (None, None)

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        self.callbacks = (readable, writable)

    def read(self, limit: int) -> bytes | None:
        part, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return part

    def write(self, data: memoryview) -> int:
        return len(data) // 2 + 1 if data else 0

    def outside(self, data: bytes) -> None:
        self.waiting = (self.waiting + data)[:4096]
        for callback in self.callbacks:
            if callback is not None:
                callback()


@dataclass
class FuzzMachine:
    """The board, with all of PCI placed and enabled. Of what is not soldered to it only `wanted` is plugged in (a PCI
    function's name): an input has a machine of its own, and making it is what most of the time goes into."""

    wanted: str = ""
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = memory = GuestMemory(SIZE, gap=GAP)
        memory.ram.view[slice(*GAP)] = _CANARY
        self.loop = loop = ManualLoop()
        self.ports: Bus = port_bus()
        self.mmio: Bus = mmio_bus()
        self.chip = PcIrqChip(lambda _: None, lambda *_: None, loop.lock)
        self.chip.attach(self.ports, self.mmio)
        line = hpet.TimerLine(lambda level: self.chip.set_irq(0, level))
        pit = i8254.I8254(loop, line.pit)
        self.ports.attach(i8254.BASE_PORT, i8254.PORTS, pit, "8254")
        self.ports.attach(port61.PORT, 1, port61.Port61(pit.channels[2], loop), "port 0x61")
        site = Site(
            self.ports, self.mmio, memory, SIZE, loop, self.chip.set_irq, lambda *_: None, Shown(), lambda _: None, self
        )
        timer = hpet.Hpet(loop, self.chip.set_irq, line)
        options = BoardOptions(vga_rom=b"\x55\xaa" + bytes(510), wall=lambda: 1e9 + loop.now(), hpet=timer)
        self.board = I440fxBoard(site, options, console=lambda _: None, on_event=self._event)
        content = bytearray(b"\xff" * 3 * BLOCK)
        self.flash = memoryview(content)[BLOCK : 2 * BLOCK]  # what is around it has to stay
        self._flash_around = content
        self.mmio.attach(FLASH, BLOCK, Flash(self.flash, Store(), lambda _: None), "flash")
        self.disk, self.disc, self.wire, self.terminal = Disk(1 << 20), Disk(1 << 20), Wire(), Terminal()
        self._plug_in()
        if not self.wanted:
            self.board.finish()
        self.board.pci.assign()
        for function in self.board.pci.functions:
            function.config_write(4, 2, 7)

    def _event(self, event: Event) -> None:
        self.events = [event]

    def _plug_in(self) -> None:
        board, loop, memory = self.board, self.loop, self.memory
        board.ide.add_drive(AtaDisk(self.disk), 0)
        board.ide.add_drive(CdRom(self.disc), 2)
        self.functions: dict[str, PciFunction] = {"ide": board.ide, "vga": board.vga}
        if self.wanted == "ahci":
            board.add_sata_drive(AtaDisk(self.disk, sata=True))
            board.add_sata_drive(CdRom(self.disc))
            assert isinstance(board.ahci, Ahci)
            self.functions["ahci"] = board.ahci
        makers: dict[str, Callable[[], PciFunction]] = {
            "e1000": lambda: E1000(memory, self.wire, "52:54:00:00:00:01", loop),
            "virtio-blk": lambda: VirtioPci(VirtioBlk(self.disk, loop), memory),
            "virtio-net": lambda: VirtioPci(VirtioNet(self.wire, "52:54:00:00:00:02"), memory),
            "virtio-console": lambda: VirtioPci(
                VirtioConsole([Port(self.terminal), Port(self.terminal, "agent")]), memory
            ),
            "virtio-rng": lambda: VirtioPci(VirtioRng(loop, self._entropy), memory),
            "virtio-balloon": lambda: VirtioPci(VirtioBalloon(loop, self._punch, reporting=True), memory),
        }
        if self.wanted in makers:
            self.functions[self.wanted] = makers[self.wanted]()
            board.add(self.functions[self.wanted])

    @staticmethod
    def _entropy(view: memoryview) -> int:
        view[:] = bytes(len(view))
        return len(view)

    def _punch(self, _: int, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= SIZE
        assert offset + length <= GAP[0] or offset >= GAP[1]

    # The feeder of IDE's port: what it is given is taken at once

    def feed_port(self, port: int, data: memoryview | None) -> None:
        self._fed = 0 if data is None else len(data)

    def taken_from_port(self) -> int:
        return self._fed // 2 & ~1

    def claims(self, names: Sequence[str]) -> tuple[list[Claim], list[Claim]]:
        """The ports and addresses whose claims' names begin with one of `names`."""
        starts = tuple(names)
        return (
            [claim for claim in self.ports.claims if claim.name.startswith(starts)],
            [claim for claim in self.mmio.claims if claim.name.startswith(starts)],
        )

    def check(self) -> None:
        """What holds after every input."""
        assert self.memory.ram.view[slice(*GAP)] == _CANARY, "a write left guest memory"
        around = self._flash_around
        assert around[:BLOCK] == around[2 * BLOCK :] == b"\xff" * BLOCK, "a write left the flash"

    def close(self) -> None:
        self.board.close()
        self.memory.close()


class Input:
    """Bytes that are taken from the front; zeros behind their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, length: int) -> bytes:
        part = self._data[self._at : self._at + length]
        self._at += length
        return part.ljust(length, b"\0")

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def value(self) -> int:
        """A number as guests write them: small, a place in memory, an edge, or anything."""
        kind = self.number(1)
        if kind < 0x60:
            return kind
        if kind < 0xA0:
            return SCRATCH + (kind & PAGES - 1) * 0x1000 + (self.number(1) << 4 if kind & 0x10 else 0)
        if kind < 0xB0:
            return (*_EDGES, *_EDGES_64)[kind & 15]
        return self.number(2 if kind < 0xD0 else 4 if kind < 0xF0 else 8)


def run(machine: FuzzMachine, names: Sequence[str], function: PciFunction | None, data: bytes) -> None:
    """Carry out the program `data` against the claims that begin with `names`, and against `function`."""
    source = Input(data)
    for _ in range(STEPS_MAX):
        if not source:
            break
        # a function may have been moved by the step before
        ports, addresses = machine.claims(names)
        _step(machine, source, ports, addresses, function)
    machine.check()


def _step(
    machine: FuzzMachine, source: Input, ports: list[Claim], addresses: list[Claim], function: PciFunction | None
) -> None:
    what = source.number(1)
    is_port = bool(ports) and (not addresses or what & 0x10 != 0)
    match what & 7:
        case 0 | 1 | 2 | 3:
            bus, claims = (machine.ports, ports) if is_port else (machine.mmio, addresses)
            size = _SIZES[what >> 5 & 3] if not is_port else min(4, _SIZES[what >> 5 & 3])
            offset = source.number(2 if claims and max(claim.length for claim in claims) > 256 else 1)
            if not claims:
                return
            claim = claims[offset % len(claims)]
            address = claim.base + offset % claim.length // (1 if what & 0x08 else size) * (1 if what & 0x08 else size)
            if what & 7 == 3:
                value = bus.read(address, size)
                assert 0 <= value < 1 << 8 * size
            else:
                bus.write(address, size, source.value() & (1 << 8 * size) - 1)
        case 4 if function is not None:
            size = min(4, _SIZES[what >> 5 & 3])
            offset = source.number(1) // size * size
            if what & 8:
                function.config_write(offset, size, source.value() & (1 << 8 * size) - 1)
            else:
                assert 0 <= function.config_read(offset, size) < 1 << 8 * size
        case 5:
            place = SCRATCH + (what >> 4 & PAGES - 1) * 0x1000 + source.number(1) * 16
            machine.memory.write(place, struct.pack("<QQ", source.value() & (1 << 64) - 1, source.number(8)))
        case 6:
            machine.loop.advance((0, 1e-6, 1e-3, 0.05)[what >> 3 & 3])
            machine.disk.broken = machine.disc.broken = bool(what & 0x40)
        case _:
            _outside(machine, source.take(4 + (what >> 3)))


def _outside(machine: FuzzMachine, data: bytes) -> None:
    """A frame, keys, mouse, terminal input, a press of the power button; a picture is asked for."""
    machine.wire.outside(data)
    machine.terminal.outside(data)
    machine.board.com1.receive(data)
    machine.board.ps2.keyboard.key(data[0] & 0x7F, bool(data[0] & 0x80))
    machine.board.ps2.mouse.move(data[1] - 128, data[2] - 128, 0, data[3] & 7)
    machine.board.pm.press_power_button()
    machine.board.vga.frame()
