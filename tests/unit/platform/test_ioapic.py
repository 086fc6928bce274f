from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from bivisor.cpu.contract import IrqChip
from bivisor.platform.bus import mmio_bus, port_bus
from bivisor.platform.ioapic import BASE, LEVEL, LOGICAL, MASKED, REMOTE_IRR, IoApic
from bivisor.platform.irqchip import PcIrqChip


class Apic:
    def __init__(self, pins: int = 24, version: int = 0x20) -> None:
        self.messages: list[tuple[int, int]] = []
        self.chip = IoApic(lambda address, data: self.messages.append((address, data)), pins=pins, version=version)

    def get(self, register: int) -> int:
        self.chip.write(0, 4, register)
        return self.chip.read(0x10, 4)

    def set(self, register: int, value: int) -> None:
        self.chip.write(0, 4, register)
        self.chip.write(0x10, 4, value)

    def entry(self, pin: int, low: int, high: int = 0) -> None:
        self.set(0x11 + 2 * pin, high)
        self.set(0x10 + 2 * pin, low)


def test_it_says_its_version_and_number_of_pins() -> None:
    assert Apic().get(1) == 0x170020


def test_one_of_xen_has_48_pins_and_no_eoi_register() -> None:
    apic = Apic(48, 0x11)
    assert apic.get(1) == 0x2F0011
    apic.entry(47, 0x51 | LEVEL)
    apic.chip.set_line(47, True)
    apic.chip.write(0x40, 4, 0x51)
    assert len(apic.messages) == 1
    apic.chip.end_of_interrupt(0x51)
    assert apic.messages == [(0xFEE0_0000, 0xC051)] * 2
    assert apic.get(0x10 + 2 * 48) == 0


def test_every_entry_is_masked_at_reset() -> None:
    apic = Apic()
    apic.chip.set_line(4, True)
    assert apic.get(0x18) == MASKED
    assert apic.messages == []


def test_an_edge_is_one_message() -> None:
    apic = Apic()
    apic.entry(4, 0x31 | LOGICAL, 0x03 << 24)
    for level in (True, True, False):
        apic.chip.set_line(4, level)
    assert apic.messages == [(0xFEE03004, 0x4031)]


def test_an_edge_under_the_mask_is_lost() -> None:
    apic = Apic()
    apic.entry(4, 0x31 | MASKED)
    apic.chip.set_line(4, True)
    apic.entry(4, 0x31)
    assert apic.messages == []


def test_a_level_comes_again_after_each_eoi_while_it_is_up() -> None:
    apic = Apic()
    apic.entry(16, 0x41 | LEVEL)
    apic.chip.set_line(16, True)
    assert apic.messages == [(0xFEE00000, 0xC041)]
    assert apic.get(0x30) & REMOTE_IRR
    apic.chip.end_of_interrupt(0x42)
    assert len(apic.messages) == 1
    apic.chip.end_of_interrupt(0x41)
    assert len(apic.messages) == 2
    apic.chip.set_line(16, False)
    apic.chip.write(0x40, 4, 0x41)  # the directed EOI
    assert len(apic.messages) == 2
    assert not apic.get(0x30) & REMOTE_IRR


def test_a_level_under_the_mask_shows_when_it_is_unmasked() -> None:
    apic = Apic()
    apic.entry(16, 0x41 | LEVEL | MASKED)
    apic.chip.set_line(16, True)
    assert apic.messages == []
    apic.entry(16, 0x41 | LEVEL)
    assert len(apic.messages) == 1


def test_the_guest_cannot_write_remote_irr_but_an_edge_entry_clears_it() -> None:
    apic = Apic()
    apic.entry(16, 0x41 | LEVEL | REMOTE_IRR | MASKED)
    assert not apic.get(0x30) & REMOTE_IRR
    apic.entry(16, 0x41 | LEVEL)
    apic.chip.set_line(16, True)
    apic.entry(16, 0x41 | MASKED)
    assert not apic.get(0x30) & REMOTE_IRR


def test_the_timer_is_input_2_of_the_io_apic_and_line_0_of_the_8259() -> None:
    messages: list[tuple[int, int]] = []
    intr: list[bool] = []
    chip = PcIrqChip(intr.append, lambda address, data: messages.append((address, data)), threading.RLock())
    assert isinstance(chip, IrqChip)
    ports, mmio = port_bus(), mmio_bus()
    chip.attach(ports, mmio)
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01)):
        ports.write(port, 1, value)
    mmio.write(BASE, 4, 0x14)
    mmio.write(BASE + 0x10, 4, 0x30)
    chip.set_irq(0, True)
    assert messages == [(0xFEE00000, 0x4030)]
    assert intr == [True]
    assert chip.acknowledge() == 0x20
    chip.set_irq(24, True)
    chip.set_irq(-1, True)


@given(st.lists(st.tuples(st.sampled_from("wrle"), st.integers(0, 0x44), st.integers(0, 2**64 - 1)), max_size=200))
def test_no_sequence_of_accesses_raises_or_gives_more_than_a_message_for_each_pin(
    steps: list[tuple[str, int, int]],
) -> None:
    apic = Apic()
    for kind, offset, value in steps:
        before = len(apic.messages)
        match kind:
            case "w":
                apic.chip.write(offset, 8, value)
            case "r":
                assert 0 <= apic.chip.read(offset, 4) < 1 << 32
            case "l":
                apic.chip.set_line(offset % 24, bool(value & 1))
            case "e":
                apic.chip.end_of_interrupt(value & 0xFF)
        assert len(apic.messages) - before <= 24
