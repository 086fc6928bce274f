"""The DSDT of the board: the PCI host bridge with its windows and interrupt routing, and the ISA devices.

Specification: ACPI 6.5, sections 6.1 (identification objects), 6.2.13 (_PRT) and 7.4.2.6 (_S5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bivisor.platform import acpi_pm, pvpanic, rtc
from bivisor.platform.acpi import aml, resources
from bivisor.platform.pci import bus as pci

_PINS = 4
_USES_APIC = "\\PICF"


def board(*, com_ports: Iterable[tuple[int, int]], pci_slots: Sequence[int], has_pvpanic: bool) -> bytes:
    """The definition block. `com_ports` has the (base port, IRQ) of each UART, `pci_slots` the slots that are taken."""
    sleep = aml.package(aml.integer(acpi_pm.S5_TYPE), aml.integer(acpi_pm.S5_TYPE), aml.ZERO, aml.ZERO)
    devices = [_host_bridge(pci_slots), _rtc()]
    devices += [_uart(number, base, irq) for number, (base, irq) in enumerate(com_ports, 1)]
    if has_pvpanic:
        devices.append(_pvpanic())
    return b"".join((aml.name("\\_S5", sleep), *_interrupt_model(), aml.scope("\\_SB", *devices)))


def _interrupt_model() -> tuple[bytes, bytes]:
    """A flag that the guest sets through _PIC when it uses the I/O APIC (6.2.13, and 5.8.1 "_PIC Method")."""
    flag = aml.name(_USES_APIC, aml.ZERO)
    return flag, aml.method("\\_PIC", 1, aml.store(aml.ARG0, aml.name_string(_USES_APIC)))


def _host_bridge(slots: Sequence[int]) -> bytes:
    windows = resources.host_bridge(0, (pci.MMIO_START, pci.MMIO_END - 1))
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.ZERO),
        aml.name("_BBN", aml.ZERO),
        aml.name("_CRS", windows),
        aml.name("PRTA", _routes(slots, pci.gsi_of)),
        aml.name("PRTP", _routes(slots, pci.isa_line_of)),
        aml.method(
            "_PRT",
            0,
            aml.if_(aml.name_string(_USES_APIC), aml.return_(aml.name_string("PRTA"))),
            aml.return_(aml.name_string("PRTP")),
        ),
    )


def _routes(slots: Sequence[int], line_of: Callable[[int, int], int]) -> bytes:
    """A routing table: for each slot and pin (0 to 3) the interrupt line."""
    return aml.package(
        *(
            aml.package(
                aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), aml.ZERO, aml.integer(line_of(slot, pin + 1))
            )
            for slot in slots
            for pin in range(_PINS)
        )
    )


def _uart(number: int, base: int, irq: int) -> bytes:
    return aml.device(
        f"COM{number}",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(number)),
        aml.name("_CRS", resources.template(resources.io(base, 8), resources.irq(irq))),
    )


def _rtc() -> bytes:
    return aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", resources.template(resources.io(rtc.BASE_PORT, 2), resources.irq(rtc.IRQ))),
    )


def _pvpanic() -> bytes:
    return aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_STA", aml.integer(0x0F)),
        aml.name("_CRS", resources.template(resources.io(pvpanic.PORT, 1))),
    )
