"""struct boot_params, the "zero page", and the setup header of a bzImage.

Specification: Linux Documentation/arch/x86/boot.rst (protocol 2.15) and Documentation/arch/x86/zero-page.rst. Offsets
are from the start of the zero page; those of the setup header hold in a bzImage file too.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

BOOT_PARAMS_SIZE = 4096

ACPI_RSDP_ADDR = 0x070
EXT_RAMDISK_IMAGE = 0x0C0
EXT_RAMDISK_SIZE = 0x0C4
EXT_CMD_LINE_PTR = 0x0C8
E820_ENTRIES = 0x1E8
SETUP_HEADER_START = 0x1F1
BOOT_FLAG_AT = 0x1FE
JUMP_LENGTH = 0x201
"""The operand of the short jump at 0x200: the setup header ends that many bytes after 0x202."""
HEADER_AT = 0x202
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
CMD_LINE_PTR = 0x228
SETUP_HEADER_LIMIT = 0x290
"""Where the zero page's room for the setup header ends (edd_mbr_sig_buffer begins)."""
E820_TABLE = 0x2D0
E820_MAX_ENTRIES_ZEROPAGE = 128

BOOT_FLAG = 0xAA55
HEADER = b"HdrS"
LOADER_UNDEFINED = 0xFF
COMMAND_LINE_SIZE = 2048
"""The kernel's own limit on x86, with the terminating zero; `cmdline_size` in the header is without it."""

LOADED_HIGH = 1 << 0
"""loadflags: the protected-mode code belongs at 1 MiB, which makes a bzImage of a zImage."""

XLF_KERNEL_64 = 1 << 0
"""xloadflags: there is a 64-bit entry 0x200 bytes into the protected-mode code."""
XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1
"""xloadflags: kernel, boot_params, command line and initrd may be above 4 GiB."""
ENTRY64_OFFSET = 0x200

E820_TYPE_RAM = 1
E820_TYPE_RESERVED = 2
E820_TYPE_ACPI = 3
E820_TYPE_NVS = 4

E820_ENTRY = Struct("<QQI")
"""struct boot_e820_entry: addr, size, type."""


class SetupHeader(NamedTuple):
    """struct setup_header, from offset 0x1f1 on, in the file's order."""

    setup_sects: int
    root_flags: int
    syssize: int
    ram_size: int
    vid_mode: int
    root_dev: int
    boot_flag: int
    jump: int
    header: bytes
    version: int
    realmode_swtch: int
    start_sys_seg: int
    kernel_version: int
    type_of_loader: int
    loadflags: int
    setup_move_size: int
    code32_start: int
    ramdisk_image: int
    ramdisk_size: int
    bootsect_kludge: int
    heap_end_ptr: int
    ext_loader_ver: int
    ext_loader_type: int
    cmd_line_ptr: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable_kernel: int
    min_alignment: int
    xloadflags: int
    cmdline_size: int
    hardware_subarch: int
    hardware_subarch_data: int
    payload_offset: int
    payload_length: int
    setup_data: int
    pref_address: int
    init_size: int
    handover_offset: int
    kernel_info_offset: int


SETUP_HEADER = Struct("<BHIHHHHH4sHIHHBBHIIIIHBBIIIBBHIIQIIQQIII")
"""The layout of `SetupHeader`."""
