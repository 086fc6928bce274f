"""What is fuzzed: the devices by name, the places where they answer, and how each is brought to life first."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from bivisor.abi import virtio as abi
from bivisor.platform.ahci import registers as ahci
from bivisor.platform.e1000 import registers as e1000
from fuzz.machine import SCRATCH, FuzzMachine, run


@dataclass(frozen=True, slots=True)
class Target:
    """`names` are how the device's claims on the buses begin, `function` its PCI function in the machine."""

    names: tuple[str, ...]
    function: str = ""
    prepare: Callable[[FuzzMachine], None] = lambda _: None


def _bar(machine: FuzzMachine, name: str, index: int) -> int:
    address = machine.functions[name].bars[index].mapped
    assert address is not None
    return address


def _ide(machine: FuzzMachine) -> None:
    machine.memory.write(SCRATCH, struct.pack("<IIII", SCRATCH + 0x1000, 0x200, SCRATCH + 0x2000, 0x8000_0200))
    base = _bar(machine, "ide", 4)
    for master in (0, 8):
        machine.ports.write(base + master + 4, 4, SCRATCH)


def _ahci(machine: FuzzMachine) -> None:
    base = _bar(machine, "ahci", 5)
    machine.mmio.write(base + ahci.GHC, 4, ahci.GHC_IE)
    for port in range(2):
        at = base + ahci.PORT_BASE + port * ahci.PORT_SIZE
        for register, value in ((ahci.CLB, SCRATCH), (ahci.FB, SCRATCH + 0x1000), (ahci.CMD, ahci.CMD_FRE | 1)):
            machine.mmio.write(at + register, 4, value)
    fis = struct.pack("<BBBB", ahci.FIS_H2D, ahci.FIS_IS_COMMAND, ahci.READ_DMA_EXT, 0)
    for slot, code in enumerate((0x25, 0x35, 0x60, 0x61, 0xEC, 0xA0, 0x2F, 0xC4)):
        table = SCRATCH + 0x2000 + slot * 0x200
        flags = 5 | (ahci.FLAG_ATAPI if code == 0xA0 else 0)
        machine.memory.write(SCRATCH + slot * ahci.HEADER_STRIDE, ahci.HEADER.pack(flags, 2, 0, table))
        machine.memory.write(table, fis[:2] + bytes((code,)) + bytes(4) + b"\x40" + bytes(4) + b"\1")
        prds = [ahci.PRD.pack(SCRATCH + 0x8000 + slot * 0x400 + n * 0x200, 0, 0x1FF) for n in range(2)]
        machine.memory.write(table + ahci.TABLE_PRDT, b"".join(prds))


def _e1000(machine: FuzzMachine) -> None:
    base = _bar(machine, "e1000", 0)
    for low, place in ((e1000.TDBAL, SCRATCH), (e1000.RDBAL, SCRATCH + 0x1000)):
        machine.mmio.write(base + low, 4, place)
        machine.mmio.write(base + low + 8, 4, 0x100)
    machine.mmio.write(base + e1000.TCTL, 4, e1000.TCTL_EN)
    machine.mmio.write(base + e1000.RCTL, 4, e1000.RCTL_EN | e1000.RCTL_BAM | e1000.RCTL_UPE)
    for at in range(16):
        machine.memory.write(SCRATCH + 16 * at, e1000.TX_LEGACY.pack(SCRATCH + 0x4000, 60, 0, 0x09, 0, 0, 0))
        machine.memory.write(SCRATCH + 0x1000 + 16 * at, struct.pack("<QQ", SCRATCH + 0x8000, 0))


def _virtio(name: str) -> Callable[[FuzzMachine], None]:
    """Every queue of the device is in the scratch pages and has two descriptors that are ready to be taken."""

    def prepare(machine: FuzzMachine) -> None:
        base = _bar(machine, name, 0)

        def write(offset: int, size: int, value: int) -> None:
            machine.mmio.write(base + offset, size, value)

        for status in (0, abi.STATUS_ACKNOWLEDGE, abi.STATUS_ACKNOWLEDGE | abi.STATUS_DRIVER):
            write(0x14, 1, status)
        for half in range(2):
            write(0x00, 4, half)
            features = machine.mmio.read(base + 0x04, 4)
            write(0x08, 4, half)
            write(0x0C, 4, features)
        write(0x14, 1, 0x0B)
        for queue in range(machine.mmio.read(base + 0x12, 2)):
            place = SCRATCH + queue % 5 * 0x3000
            write(0x16, 2, queue)
            write(0x18, 2, min(16, machine.mmio.read(base + 0x18, 2)))
            for register, address in ((0x20, place), (0x28, place + 0x800), (0x30, place + 0x900)):
                write(register, 4, address)
            write(0x1C, 2, 1)
            descriptors = (abi.DESC.pack(place + 0xA00, 64, 1, 1), abi.DESC.pack(place + 0x1000, 512, 2, 0))
            machine.memory.write(place, b"".join(descriptors))
            machine.memory.write(place + 0x800, struct.pack("<HHHH", 0, 1, 0, 1))
        write(0x14, 1, 0x0F)

    return prepare


def _fw_cfg(machine: FuzzMachine) -> None:
    machine.memory.write(SCRATCH, struct.pack(">IIQ", 0x19 << 16 | 0x0A, 0x40, SCRATCH + 0x1000))


def _power(machine: FuzzMachine) -> None:
    for register, value in ((0x40, 0xB000), (0x80, 1)):  # PMBASE, PMREGMISC
        machine.ports.write(0xCF8, 4, 0x8000_0B00 | register)
        machine.ports.write(0xCFC, 4, value)


_VIRTIO = ("virtio-blk", "virtio-net", "virtio-console", "virtio-rng", "virtio-balloon")
TARGETS: dict[str, Target] = {
    "ide": Target(("IDE", "PIIX3 IDE"), "ide", _ide),
    "ahci": Target(("AHCI",), "ahci", _ahci),
    "e1000": Target(("e1000",), "e1000", _e1000),
    "vga": Target(("VGA", "vga", "Bochs"), "vga"),
    "flash": Target(("flash",)),
    "fw_cfg": Target(("firmware",), "", _fw_cfg),
    "hpet": Target(("HPET",)),
    "timers": Target(("8254", "port 0x61", "RTC", "HPET")),
    "interrupts": Target(("8259", "ELCR", "I/O APIC")),
    "ps2": Target(("8042", "port 0x92")),
    "serial": Target(("COM1",)),
    "power": Target(("ACPI", "PCI configuration", "port 0x92", "debug exit", "8237", "DMA"), "", _power),
    **{name: Target((name,), name, _virtio(name)) for name in _VIRTIO},
}


def play(name: str, data: bytes) -> None:
    """Run one input against the target `name`; AssertionError or whatever the device raises."""
    target = TARGETS[name]
    machine = FuzzMachine(target.function)
    try:
        target.prepare(machine)
        run(machine, target.names, machine.functions.get(target.function), data)
    finally:
        machine.close()
