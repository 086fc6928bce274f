"""Offsets and bits of the configuration space header, type 0.

Specification: PCI Local Bus Specification 3.0, section 6.1 (header), 6.2.5.1 (base addresses), 6.8.2 (MSI-X).
"""

from __future__ import annotations

VENDOR_ID, DEVICE_ID = 0x00, 0x02
COMMAND, STATUS = 0x04, 0x06
REVISION, CLASS_CODE = 0x08, 0x09
CACHE_LINE, HEADER_TYPE = 0x0C, 0x0E
BAR0, BARS = 0x10, 6
ROM, ROM_BAR = 0x30, 8  # it works like a base address register, and stands where the ninth would be
SUBSYSTEM_VENDOR, SUBSYSTEM_ID = 0x2C, 0x2E
CAPABILITIES = 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
HEADER_END, CONFIG_SIZE = 0x40, 0x100

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_INTX_OFF = 0x0001, 0x0002, 0x0004, 0x0400
STATUS_INTX, STATUS_CAPABILITIES = 0x08, 0x10
HEADER_MULTIFUNCTION = 0x80

BAR_IO, BAR_64, BAR_PREFETCH = 0x1, 0x4, 0x8

CAP_MSIX = 0x11
MSIX_ENABLE, MSIX_FUNCTION_MASK = 0x8000, 0x4000
