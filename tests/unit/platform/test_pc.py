from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.cpu.contract import IrqChip, Machine
from bivisor.errors import UsageError
from bivisor.host.loop import ManualLoop
from bivisor.memory import GuestMemory
from bivisor.platform.bus import mmio_bus, port_bus
from bivisor.platform.events import Event, ExitStatus, PowerOff
from bivisor.platform.pc import Pc, PcOptions


class Wires:
    """The part of a machine that a board touches."""

    def __init__(self, irqchip: str) -> None:
        self.irqchip = irqchip
        self.chip: IrqChip | None = None
        self.intr = False
        self.lines: dict[int, bool] = {}
        self.messages: list[tuple[int, int]] = []

    def connect_irqchip(self, chip: IrqChip) -> None:
        self.chip = chip

    def set_intr(self, level: bool) -> None:
        self.intr = level

    def set_irq(self, gsi: int, level: bool) -> None:
        self.lines[gsi] = level

    def signal_msi(self, address: int, data: int) -> None:
        self.messages.append((address, data))


class Bench:
    def __init__(self, irqchip: str = "user") -> None:
        self.wires = Wires(irqchip)
        self.memory = GuestMemory(4 << 20)
        self.ports, self.mmio, self.loop = port_bus(), mmio_bus(), ManualLoop()
        self.events: list[Event | bytes] = []
        self.pc = Pc(
            cast(Machine, self.wires),
            self.memory,
            self.ports,
            self.mmio,
            self.loop,
            console=self.events.append,
            on_event=self.events.append,
            options=PcOptions(cpus=2, wall=lambda: 1_800_000_000 + self.loop.now()),
        )

    def close(self) -> None:
        self.pc.close()
        self.memory.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_the_tables_are_where_firmware_would_put_them(bench: Bench) -> None:
    tables = bench.pc.finish()
    assert bench.memory.read(tables.rsdp, 8) == b"RSD PTR "


def test_a_typed_byte_interrupts_through_whichever_controller_the_guest_uses(bench: Bench) -> None:
    assert bench.wires.chip is bench.pc.irqchip
    bench.ports.write(0x3F9, 1, 1)
    bench.mmio.write(0xFEC00000, 4, 0x10 + 2 * 4)
    bench.mmio.write(0xFEC00010, 4, 0x34)
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01)):
        bench.ports.write(port, 1, value)
    bench.pc.com1.receive(b"x")
    assert bench.wires.intr
    assert bench.wires.messages == [(0xFEE00000, 0x4034)]
    assert bench.wires.chip is not None
    assert bench.wires.chip.acknowledge() == 0x24


def test_with_an_irqchip_in_the_kernel_its_ports_are_the_kernels() -> None:
    bench = Bench("kernel")
    for port in (0x20, 0xA0, 0x40, 0x43, 0x61, 0x4D0):
        assert bench.ports.find(port) is None
    assert bench.mmio.find(0xFEC00000) is None
    bench.ports.write(0x3F9, 1, 1)
    bench.pc.com1.receive(b"x")
    assert bench.wires.lines[4]
    bench.close()


def test_a_machine_without_interrupt_controllers_is_refused() -> None:
    with pytest.raises(UsageError, match="interrupt controllers"):
        Bench("none")


def test_what_the_guest_said_comes_before_the_news_of_its_end(bench: Bench) -> None:
    bench.ports.write(0x3F8, 1, ord("!"))
    bench.ports.write(0xF4, 1, 7)
    assert bench.events == [b"!", ExitStatus(7)]


def test_poweroff_through_acpi(bench: Bench) -> None:
    bench.ports.write(0x604, 2, 1 << 13 | 5 << 10)
    assert bench.events == [PowerOff()]


Access = st.tuples(
    st.booleans(),
    st.integers(0, 0xFFFF) | st.integers(0, 0x100) | st.sampled_from([0xCF8, 0xCFC, 0x3F8, 0x600, 0x604, 0x70, 0x71]),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 0xFFFFFFFF),
    st.floats(0, 2),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(Access, max_size=200))
def test_a_guest_that_writes_rubbish_to_every_port_stops_at_most_itself(
    accesses: list[tuple[bool, int, int, int, float]],
) -> None:
    bench = Bench()
    bench.pc.finish()
    for is_write, port, size, value, seconds in accesses:
        if is_write:
            bench.ports.write(port, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= bench.ports.read(port, size) < 1 << 8 * size
        bench.loop.advance(seconds)
    bench.close()


def test_every_port_answers_every_size(bench: Bench) -> None:
    for port in range(0x10000):
        for size in (1, 2, 4):
            assert 0 <= bench.ports.read(port, size) < 1 << 8 * size
            if bench.ports.find(port) is not None:
                bench.ports.write(port, size, (1 << 8 * size) - 1)
