"""A board without a machine: buses, memory and interrupt lines that a test looks at."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bivisor.host.loop import ManualLoop
from bivisor.memory import GuestMemory, MemoryRegion
from bivisor.platform.bus import Bus, mmio_bus, port_bus
from bivisor.platform.events import Event
from bivisor.platform.i440fx.board import BoardOptions, I440fxBoard, Site

SIZE = 2 << 20
GAP = (0xA0000, 0xC0000)


class Shown:
    """The windows, as far as they were asked for."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[int, int, int] | None] = {}

    def show(self, name: str, gpa: int | None, region: MemoryRegion, offset: int, size: int) -> None:
        self.places[name] = None if gpa is None else (gpa, offset, size)


class RamDisk:
    """A block back-end in memory; it counts what it moved."""

    physical_block = 512

    def __init__(self, data: bytes, *, read_only: bool = False) -> None:
        self.data = bytearray(data)
        self.size = len(data)
        self.read_only = read_only
        self.flushes = 0
        self.broken = False
        self.discarded: list[tuple[int, int]] = []

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        if self.broken:
            raise OSError
        start = offset
        for view in views:
            part = self.data[offset : offset + len(view)]
            view[: len(part)] = part
            offset += len(part)
        return offset - start

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        start = offset
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)
        return offset - start

    def flush(self) -> None:
        self.flushes += 1

    def discard(self, offset: int, length: int) -> None:
        self.discarded.append((offset, length))

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        pass


class Bench:
    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.loop = ManualLoop()
        self.ports: Bus = port_bus()
        self.mmio: Bus = mmio_bus()
        self.lines: dict[int, bool] = {}
        self.messages: list[tuple[int, int]] = []
        self.events: list[Event] = []
        self.windows = Shown()
        self.a20: list[bool] = []
        self.log: list[bytes] = []
        site = Site(
            self.ports,
            self.mmio,
            memory,
            SIZE,
            self.loop,
            self.lines.__setitem__,
            lambda address, data: self.messages.append((address, data)),
            self.windows,
            self.a20.append,
        )
        options = BoardOptions(vga_rom=b"\x55\xaa" + bytes(510), firmware_log=self.log.append, wall=lambda: 0.0)
        self.board = I440fxBoard(site, options, console=lambda _: None, on_event=self.events.append)
        self.board.finish()

    def read(self, port: int, size: int = 1) -> int:
        return self.ports.read(port, size)

    def write(self, port: int, value: int, size: int = 1) -> None:
        self.ports.write(port, size, value)

    def config(self, slot: int, function: int, offset: int, value: int | None = None, size: int = 4) -> int:
        self.write(0xCF8, 0x8000_0000 | slot << 11 | function << 8 | offset & 0xFC, 4)
        if value is None:
            return self.read(0xCFC + (offset & 3), size)
        self.write(0xCFC + (offset & 3), value, size)
        return 0

    def prd(self, at: int, *ranges: tuple[int, int]) -> None:
        """A table of physical regions at `at`, the last one marked."""
        for number, (address, length) in enumerate(ranges):
            last = 0x8000_0000 if number == len(ranges) - 1 else 0
            self.memory.write(at + 8 * number, struct.pack("<II", address, length & 0xFFFF | last))


@contextmanager
def bench() -> Iterator[Bench]:
    with GuestMemory(SIZE, gap=GAP) as memory:
        made = Bench(memory)
        try:
            yield made
        finally:
            made.board.close()
