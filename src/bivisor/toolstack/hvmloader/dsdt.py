"""The DSDT of an HVM domain: the host bridge with its interrupt routing, the links, the ISA devices, the slots.

Specification: ACPI 6.5, sections 6.2.13 (_PRT, and 5.8.1 for _PIC), 6.2.12 (_PRS), 6.3.3 (_EJ0); Intel 82371SB data
sheet, PIRQRC, for the links. The devices are those that Xen's own tables name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bivisor.platform import hpet, port61, rtc
from bivisor.platform.acpi import aml, resources
from bivisor.toolstack.hvmloader.pci import LINK_IRQS
from bivisor.xen.hvm.irq import LINKS, PINS, pci_gsi, pci_link
from bivisor.xen.hvm.platform import PCI_ISA_IRQS

_SLOTS = range(1, 32)
_PIRQRC, _DISABLED = 0x60, 0x80
_IS_THERE, _IS_OFF = 0x0B, 0x09
_EJECT_PORT = 0xAE08
_HOTPLUG_PORTS = ((0xAE00, 0x10), (0xB044, 4))
_LOW_MEMORY = (0, 0xA_0000)
_USES_APIC = "\\PICD"
_LINK_NAMES = tuple(f"LNK{letter}" for letter in "ABCD")
_PIRQ_NAMES = tuple(f"PIR{letter}" for letter in "ABCD")
_ISA_PARTS = (
    ("SYSR", "PNP0C02", ((0x10, 0x10), (0x22, 0x0C), (0x30, 0x10), (0x44, 0x1C), (0x62, 2), (0x65, 0x0B), (0x72, 0x0E),
                         (0x80, 1), (0x84, 3), (0x88, 1), (0x8C, 3), (0x90, 0x10), (0xA2, 0x1C), (0xE0, 0x10),
                         (0x8A0, 4), (0xCC0, 0x10), (0x4D0, 2)), None),
    ("PIC_", "PNP0000", ((0x20, 2), (0xA0, 2)), 2),
    ("DMA0", "PNP0200", ((0x00, 0x10), (0x81, 3), (0x87, 1), (0x89, 3), (0x8F, 1), (0xC0, 0x20)), None),
    ("TMR_", "PNP0100", ((0x40, 4),), 0),
    ("RTC_", "PNP0B00", ((rtc.BASE_PORT, 2),), rtc.IRQ),
    ("SPKR", "PNP0800", ((port61.PORT, 1),), None),
    ("PS2M", "PNP0F13", (), 12),
    ("PS2K", "PNP0303", ((0x60, 1), (0x64, 1)), 1),
    ("UAR1", "PNP0501", ((0x3F8, 8),), 4),
)  # fmt: skip


def build(window: tuple[int, int], gsis: int) -> bytes:
    """The definition block. `window` has the first and the last address of PCI below 4 GiB; the I/O APIC has `gsis`
    inputs: where they are a PC's 24, the pins of PCI reach it by the ISA interrupts alone."""
    nothing = aml.ZERO
    return b"".join(
        (
            aml.name("\\_S5", aml.package(nothing, nothing, nothing, nothing)),
            aml.name(_USES_APIC, aml.ZERO),
            aml.method("\\_PIC", 1, aml.store(aml.ARG0, aml.name_string(_USES_APIC))),
            aml.scope("\\_SB", _taken("MEM0", 1, resources.memory(*_LOW_MEMORY)), _host_bridge(window, gsis)),
        )
    )


def _host_bridge(window: tuple[int, int], gsis: int) -> bytes:
    windows = resources.host_bridge(0xFF, (0xA_0000, 0xB_FFFF), window)
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.ZERO),
        aml.name("_BBN", aml.ZERO),
        aml.name("_CRS", windows),
        *_interrupts(gsis),
        _hpet(),
        _isa_bridge(),
        _taken("HP0", 2, *(resources.io(base, length) for base, length in _HOTPLUG_PORTS)),
        *(_link(number) for number in range(LINKS)),
        aml.region("SEJ_", aml.SYSTEM_IO, _EJECT_PORT, 4),
        aml.field("SEJ_", ("B0EJ", 32)),
        *(_slot(number) for number in _SLOTS),
    )


def _taken(name: str, uid: int, *parts: bytes) -> bytes:
    """What no driver shall have."""
    return aml.device(
        name,
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", aml.integer(uid)),
        aml.name("_CRS", resources.template(*parts)),
    )


def _interrupts(gsis: int) -> tuple[bytes, ...]:
    def input_of(slot: int, pin: int) -> tuple[bytes, int]:
        return aml.ZERO, pci_gsi(slot, pin)

    def isa_line_of(slot: int, pin: int) -> tuple[bytes, int]:
        return aml.ZERO, LINK_IRQS[pci_link(slot, pin)]

    def link_of(slot: int, pin: int) -> tuple[bytes, int]:
        return aml.name_string(f"\\_SB.PCI0.{_LINK_NAMES[pci_link(slot, pin)]}"), 0

    has_inputs = gsis > max(pci_gsi(slot, pin) for slot in _SLOTS for pin in range(PINS))
    return (
        aml.name("PRTA", _routes(input_of if has_inputs else isa_line_of)),
        aml.name("PRTP", _routes(link_of)),
        aml.method(
            "_PRT",
            0,
            aml.if_(aml.name_string(_USES_APIC), aml.return_(aml.name_string("PRTA"))),
            aml.return_(aml.name_string("PRTP")),
        ),
    )


def _routes(source_of: Callable[[int, int], tuple[bytes, int]]) -> bytes:
    """Every pin of every slot, with its link and what of that; AML packages hold 255 elements."""
    rows = []
    for slot in _SLOTS:
        for pin in range(PINS):
            source, index = source_of(slot, pin)
            rows.append(aml.package(aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), source, aml.integer(index)))
    return aml.package(*rows)


def _hpet() -> bytes:
    place = resources.template(resources.memory(hpet.BASE, hpet.LENGTH))
    return aml.device(
        "HPET", aml.name("_HID", aml.eisa_id("PNP0103")), aml.name("_UID", aml.ZERO), aml.name("_CRS", place)
    )


def _isa_bridge() -> bytes:
    """The registers of the links are the ISA bridge's."""
    pirqs = tuple((name, 8) for name in _PIRQ_NAMES)
    return aml.device(
        "ISA_",
        aml.name("_ADR", aml.integer(1 << 16)),
        aml.region("PIRQ", aml.PCI_CONFIG, _PIRQRC, LINKS),
        aml.field("PIRQ", *pirqs),
        *(_isa_device(*part) for part in _ISA_PARTS),
    )


def _isa_device(name: str, hid: str, ports: Sequence[tuple[int, int]], irq: int | None) -> bytes:
    parts = [resources.io(base, length) for base, length in ports]
    if irq is not None:
        parts.append(resources.irq(irq))
    number = (aml.name("_UID", aml.ONE),) if name == "UAR1" else ()
    return aml.device(name, aml.name("_HID", aml.eisa_id(hid)), *number, aml.name("_CRS", resources.template(*parts)))


def _link(number: int) -> bytes:
    """A link is off while its register says so; a guest that has an I/O APIC turns all of them off."""
    register = aml.name_string(f"\\_SB.PCI0.ISA.{_PIRQ_NAMES[number]}")
    possible = resources.template(resources.shared_irqs(sum(1 << irq for irq in PCI_ISA_IRQS)))
    current = resources.template(resources.shared_irqs(0))
    buffer, mask = aml.name_string("BUFF"), aml.name_string("MASK")
    return aml.device(
        _LINK_NAMES[number],
        aml.name("_HID", aml.eisa_id("PNP0C0F")),
        aml.name("_UID", aml.integer(number + 1)),
        aml.name("_PRS", possible),
        aml.name("BUFF", current),
        aml.method(
            "_STA",
            0,
            aml.if_(aml.and_(register, aml.integer(_DISABLED)), aml.return_(aml.integer(_IS_OFF))),
            aml.return_(aml.integer(_IS_THERE)),
        ),
        aml.method("_DIS", 0, aml.or_(register, aml.integer(_DISABLED), register)),
        aml.method(
            "_CRS",
            0,
            aml.word_field(buffer, 1, "MASK"),
            aml.store(aml.shift_left(aml.ONE, aml.and_(register, aml.integer(15))), mask),
            aml.return_(buffer),
        ),
        aml.method(
            "_SRS",
            1,
            aml.word_field(aml.ARG0, 1, "MASK"),
            aml.store(aml.subtract(aml.find_set_right_bit(mask), aml.ONE), register),
        ),
    )


def _slot(number: int) -> bytes:
    """A slot whose card a guest can ask to be taken out, by which it learns the slot's number."""
    eject = aml.store(aml.integer(1 << number), aml.name_string("B0EJ"))
    return aml.device(
        f"S{number}",
        aml.name("_ADR", aml.integer(number << 16)),
        aml.name("_SUN", aml.integer(number)),
        aml.method("_EJ0", 1, eject),
    )
