"""Multiboot 1: the header in the kernel and the information structure for it.

Specification: Multiboot Specification version 0.6.96, sections 3.1 "OS image format" and 3.3 "Boot information format".
"""

from __future__ import annotations

from struct import Struct

HEADER_MAGIC = 0x1BAD_B002
BOOTLOADER_MAGIC = 0x2BAD_B002
SEARCH = 8192
"""The header lies, 32-bit aligned, wholly within this many bytes from the start of the image."""

PAGE_ALIGN = 1 << 0
MEMORY_INFO = 1 << 1
VIDEO_MODE = 1 << 2
AOUT_KLUDGE = 1 << 16
REQUIRED = 0xFFFF
"""Flags in these bits ask for something that a loader which does not know them has to refuse."""

HEADER = Struct("<3I")
"""magic, flags, checksum: the three add up to zero in 32 bits."""
HEADER_ADDRESSES = Struct("<5I")
"""With AOUT_KLUDGE, after `HEADER`: header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr."""

INFO_MEMORY = 1 << 0
INFO_CMDLINE = 1 << 2
INFO_MODS = 1 << 3
INFO_MEM_MAP = 1 << 6
INFO_BOOT_LOADER_NAME = 1 << 9

INFO_SIZE = 88
"""Up to and with vbe_interface_len; all that is not filled in is zero and has no flag."""
INFO = Struct("<17I")
"""flags, mem_lower, mem_upper (KiB), boot_device, cmdline, mods_count, mods_addr, syms (4 words), mmap_length,
mmap_addr, drives_length, drives_addr, config_table, boot_loader_name."""

MODULE = Struct("<4I")
"""mod_start, mod_end (the first byte after it), string, reserved."""
MEMORY_MAP_ENTRY = Struct("<I2QI")
"""size (of the rest of the entry), base_addr, length, type (as in e820)."""
