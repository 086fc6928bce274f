"""xen/include/public/io/blkif.h: requests and responses of a block ring, and what the store says of a disk.

Structures are `struct.Struct`; a comment gives their fields in order. A ring entry is a request; responses are shorter.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

SECTOR: Final = 512
MAX_SEGMENTS_PER_REQUEST: Final = 11
MAX_INDIRECT_PAGES_PER_REQUEST: Final = 8
SEGMENTS_PER_INDIRECT_PAGE: Final = 512


class BlkifOp(IntEnum):
    """BLKIF_OP_*."""

    READ = 0
    WRITE = 1
    WRITE_BARRIER = 2
    FLUSH_DISKCACHE = 3
    RESERVED_1 = 4
    DISCARD = 5
    INDIRECT = 6


class BlkifRsp(IntEnum):
    """BLKIF_RSP_*."""

    OKAY = 0
    ERROR = -1
    EOPNOTSUPP = -2


# The bits of node "info"
VDISK_CDROM, VDISK_REMOVABLE, VDISK_READONLY = 1, 2, 4

SEGMENT = struct.Struct("<IBB2x")  # gref, first_sect, last_sect


class Layout(NamedTuple):
    """The structures as a front-end of one processor architecture has them (protocols.h)."""

    entry_size: int
    request: struct.Struct  # operation, nr_segments, id, sector_number; segments follow
    indirect: struct.Struct  # operation, indirect_op, nr_segments, id, sector_number, eight indirect_grefs
    indirect_head: struct.Struct  # its fields up to sector_number
    discard: struct.Struct  # operation, flag, id, sector_number, nr_sectors
    response: struct.Struct  # id, operation, status


X86_64 = Layout(
    entry_size=112,
    request=struct.Struct("<BB6xQQ"),
    indirect=struct.Struct("<BBH4xQQ2x2x8I"),
    indirect_head=struct.Struct("<BBH4xQQ"),
    discard=struct.Struct("<BB6xQQQ"),
    response=struct.Struct("<QBxh4x"),
)
X86_32 = Layout(
    entry_size=108,
    request=struct.Struct("<BB2xQQ"),
    indirect=struct.Struct("<BBHQQ2x2x8I"),
    indirect_head=struct.Struct("<BBHQQ"),
    discard=struct.Struct("<BB2xQQQ"),
    response=struct.Struct("<QBxh"),
)
PROTOCOLS: Final = {"x86_64-abi": X86_64, "x86_32-abi": X86_32}
"""By the front-end's node "protocol"; without it the front-end is of Dom0's own architecture, X86_64."""
