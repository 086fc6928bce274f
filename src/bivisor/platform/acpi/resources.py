"""Resource descriptors: what a device of the DSDT occupies, as the buffers that `_CRS` gives.

Specification: ACPI 6.5, section 6.4 "Resource Data Types for ACPI".
"""

from __future__ import annotations

import struct

from bivisor.platform.acpi import aml
from bivisor.platform.pci.bus import ADDRESS_PORT, PORTS

_IO = struct.Struct("<BBHHBB")
_IRQ = struct.Struct("<BH")
_WORD_SPACE = struct.Struct("<BHBBBHHHHH")
_DWORD_SPACE = struct.Struct("<BHBBBIIIII")
_END_TAG = b"\x79\x00"

_MEMORY, _IO_RANGE, _BUS = 0, 1, 2
_FIXED_PRODUCER = 0x0C  # minimum and maximum are fixed; the device hands the range on
_ENTIRE_RANGE, _READ_WRITE = 0x03, 0x01


def template(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { descriptors }"""
    return aml.buffer(b"".join(descriptors) + _END_TAG)


def io(base: int, length: int) -> bytes:
    """IO (Decode16, base, base, 1, length)"""
    return _IO.pack(0x47, 1, base, base, 1, length)


def irq(number: int) -> bytes:
    """IRQNoFlags () { number }: edge-triggered, active high, not shared."""
    return _IRQ.pack(0x22, 1 << number)


def shared_irqs(mask: int) -> bytes:
    """IRQ (Level, ActiveLow, Shared): those whose bits are set in `mask`."""
    return struct.pack("<BHB", 0x23, mask, 0x18)


def memory(base: int, length: int) -> bytes:
    """Memory32Fixed (ReadWrite, base, length)"""
    return struct.pack("<BHBII", 0x86, 9, 1, base, length)


def bus_numbers(first: int, last: int) -> bytes:
    """WordBusNumber: the buses behind a host bridge."""
    return _word_space(_BUS, 0, first, last)


def io_window(first: int, last: int) -> bytes:
    """WordIO: ports that a host bridge hands on."""
    return _word_space(_IO_RANGE, _ENTIRE_RANGE, first, last)


def memory_window(first: int, last: int) -> bytes:
    """DWordMemory: addresses that a host bridge hands on, not cacheable."""
    body = (_MEMORY, _FIXED_PRODUCER, _READ_WRITE, 0, first, last, 0, last - first + 1)
    return _DWORD_SPACE.pack(0x87, _DWORD_SPACE.size - 3, *body)


def host_bridge(last_bus: int, *memory_windows: tuple[int, int]) -> bytes:
    """What a PCI host bridge occupies, and hands on: its buses up to `last_bus`, all ports but its own two registers,
    and `memory_windows`, each by its first and last address."""
    return template(
        bus_numbers(0, last_bus),
        io(ADDRESS_PORT, PORTS),
        io_window(0x0000, ADDRESS_PORT - 1),
        io_window(ADDRESS_PORT + PORTS, 0xFFFF),
        *(memory_window(first, last) for first, last in memory_windows),
    )


def _word_space(kind: int, flags: int, first: int, last: int) -> bytes:
    body = (kind, _FIXED_PRODUCER, flags, 0, first, last, 0, last - first + 1)
    return _WORD_SPACE.pack(0x88, _WORD_SPACE.size - 3, *body)
