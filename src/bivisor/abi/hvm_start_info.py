"""struct hvm_start_info: what a PVH guest finds at the address in EBX.

Specification: Xen public header arch-x86/hvm/start_info.h, docs/misc/pvh.pandoc.
"""

from __future__ import annotations

from struct import Struct

XEN_HVM_START_MAGIC_VALUE = 0x336E_C578
VERSION = 1

HVM_START_INFO = Struct("<4I4Q2I")
"""magic, version, flags, nr_modules, modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr, memmap_entries,
reserved."""

HVM_MODLIST_ENTRY = Struct("<4Q")
"""paddr, size, cmdline_paddr, reserved."""

HVM_MEMMAP_TABLE_ENTRY = Struct("<2Q2I")
"""addr, size, type (as in e820), reserved."""
