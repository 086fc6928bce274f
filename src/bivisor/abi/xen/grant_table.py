"""xen/include/public/grant_table.h: entries of a grant table, and what grant_table_op is handed.

Structures are `struct.Struct` of the 64-bit ABI, named as in the header; a comment gives their fields in order.
"""

from __future__ import annotations

import struct
from enum import IntEnum


class GrantTableOp(IntEnum):
    """GNTTABOP_*."""

    MAP_GRANT_REF = 0
    UNMAP_GRANT_REF = 1
    SETUP_TABLE = 2
    DUMP_TABLE = 3
    TRANSFER = 4
    COPY = 5
    QUERY_SIZE = 6
    UNMAP_AND_REPLACE = 7
    SET_VERSION = 8
    GET_STATUS_FRAMES = 9
    GET_VERSION = 10
    SWAP_GRANT_REF = 11
    CACHE_FLUSH = 12


class GrantStatus(IntEnum):
    """GNTST_*."""

    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_GNTREF = -3
    BAD_HANDLE = -4
    BAD_VIRT_ADDR = -5
    BAD_DEV_ADDR = -6
    NO_DEVICE_SPACE = -7
    PERMISSION_DENIED = -8
    BAD_PAGE = -9
    BAD_COPY_ARG = -10
    ADDRESS_TOO_BIG = -11
    EAGAIN = -12
    NO_SPACE = -13


RESERVED_ENTRIES = 8
RESERVED_CONSOLE = 0
RESERVED_XENSTORE = 1

# struct grant_entry_v1: flags, domid, frame
GRANT_ENTRY_V1 = struct.Struct("<HHI")
# union grant_entry_v2
GRANT_ENTRY_V2_FULL_PAGE = struct.Struct("<HH4xQ")  # flags, domid, frame
GRANT_ENTRY_V2_SUB_PAGE = struct.Struct("<HHHHQ")  # flags, domid, page_off, length, frame
GRANT_ENTRY_V2_TRANSITIVE = struct.Struct("<HHH2xI4x")  # flags, domid, trans_domid, gref
GRANT_STATUS_SIZE = 2

# The type of an entry
GTF_INVALID, GTF_PERMIT_ACCESS, GTF_ACCEPT_TRANSFER, GTF_TRANSITIVE = range(4)
GTF_TYPE_MASK = 3
# and its flags: the reader's and writer's are set by the hypervisor, the others by the guest.
GTF_READONLY = 1 << 2
GTF_READING = 1 << 3
GTF_WRITING = 1 << 4
GTF_PWT = 1 << 5
GTF_PCD = 1 << 6
GTF_PAT = 1 << 7
GTF_SUB_PAGE = 1 << 8
GTF_TRANSFER_COMMITTED = 1 << 2
GTF_TRANSFER_COMPLETED = 1 << 3

# Flags of gnttab_map_grant_ref
GNTMAP_DEVICE_MAP = 1 << 0
GNTMAP_HOST_MAP = 1 << 1
GNTMAP_READONLY = 1 << 2
GNTMAP_APPLICATION_MAP = 1 << 3
GNTMAP_CONTAINS_PTE = 1 << 4

GNTCOPY_SOURCE_GREF = 1 << 0
GNTCOPY_DEST_GREF = 1 << 1

CACHE_CLEAN = 1 << 0
CACHE_INVAL = 1 << 1
CACHE_SOURCE_GREF = 1 << 31

STATUS = struct.Struct("<h")
MAP_GRANT_REF = struct.Struct("<QIIHhIQ")  # host_addr, flags, ref, dom, status, handle, dev_bus_addr
UNMAP_GRANT_REF = struct.Struct("<QQIh2x")  # host_addr, dev_bus_addr, handle, status
UNMAP_AND_REPLACE = struct.Struct("<QQIh2x")  # host_addr, new_addr, handle, status
SETUP_TABLE = struct.Struct("<H2xIh6xQ")  # dom, nr_frames, status, frame_list
DUMP_TABLE = struct.Struct("<Hh")  # dom, status
TRANSFER = struct.Struct("<QH2xIh6x")  # mfn, domid, ref, status
COPY = struct.Struct("<QHH4xQHH4xHHh2x")  # source (ref or gmfn, domid, offset), dest (the same), len, flags, status
QUERY_SIZE = struct.Struct("<H2xIIh2x")  # dom, nr_frames, max_nr_frames, status
SET_VERSION = struct.Struct("<I")  # version
GET_STATUS_FRAMES = struct.Struct("<IHhQ")  # nr_frames, dom, status, frame_list
GET_VERSION = struct.Struct("<H2xI")  # dom, version
SWAP_GRANT_REF = struct.Struct("<IIh2x")  # ref_a, ref_b, status
CACHE_FLUSH = struct.Struct("<QHHI")  # dev_bus_addr or ref, offset, length, op
