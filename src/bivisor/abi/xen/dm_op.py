"""xen/include/public/hvm/dm_op.h: what a device model asks Xen for. Structures of the 64-bit ABI; a comment gives their
fields in order."""

from __future__ import annotations

import struct
from enum import IntEnum


class DmOp(IntEnum):
    """XEN_DMOP_*."""

    CREATE_IOREQ_SERVER = 1
    GET_IOREQ_SERVER_INFO = 2
    MAP_IO_RANGE_TO_IOREQ_SERVER = 3
    UNMAP_IO_RANGE_FROM_IOREQ_SERVER = 4
    SET_IOREQ_SERVER_STATE = 5
    DESTROY_IOREQ_SERVER = 6
    TRACK_DIRTY_VRAM = 7
    SET_PCI_INTX_LEVEL = 8
    SET_ISA_IRQ_LEVEL = 9
    SET_PCI_LINK_ROUTE = 10
    MODIFIED_MEMORY = 11
    SET_MEM_TYPE = 12
    INJECT_EVENT = 13
    INJECT_MSI = 14
    MAP_MEM_TYPE_TO_IOREQ_SERVER = 15
    REMOTE_SHUTDOWN = 16
    RELOCATE_MEMORY = 17
    PIN_MEMORY_CACHEATTR = 18
    SET_IRQ_LEVEL = 19
    NR_VCPUS = 20


HEADER = struct.Struct("<I4x")  # op
BUF = struct.Struct("<QQ")  # h, size
SIZE = 40
"""`struct xen_dm_op`."""

CREATE_IOREQ_SERVER = struct.Struct("<B3xH")  # handle_bufioreq, id
GET_IOREQ_SERVER_INFO = struct.Struct("<HHIQQ")  # id, flags, bufioreq_port, ioreq_gfn, bufioreq_gfn
NO_GFNS = 1
IO_RANGE = struct.Struct("<H2xIQQ")  # id, type, start, end
IO_RANGE_PORT, IO_RANGE_MEMORY, IO_RANGE_PCI = range(3)
SET_IOREQ_SERVER_STATE = struct.Struct("<HBx")  # id, enabled
DESTROY_IOREQ_SERVER = struct.Struct("<Hxx")  # id
SET_PCI_INTX_LEVEL = struct.Struct("<HBBBB")  # domain, bus, device, intx, level
SET_ISA_IRQ_LEVEL = struct.Struct("<BB")  # isa_irq, level
SET_PCI_LINK_ROUTE = struct.Struct("<BB")  # link, isa_irq
MODIFIED_MEMORY = struct.Struct("<II")  # nr_extents, opaque
MODIFIED_MEMORY_EXTENT = struct.Struct("<I4xQ")  # nr, first_pfn
INJECT_MSI = struct.Struct("<I4xQ")  # data, addr
REMOTE_SHUTDOWN = struct.Struct("<I")  # reason
SET_IRQ_LEVEL = struct.Struct("<IB3x")  # irq, level
NR_VCPUS = struct.Struct("<I")  # vcpus

BUFIOREQ_OFF, BUFIOREQ_LEGACY, BUFIOREQ_ATOMIC = range(3)
"""HVM_IOREQSRV_BUFIOREQ_*."""
FRAME_BUFIOREQ, FRAME_IOREQ = 0, 1
"""XENMEM_resource_ioreq_server_frame_*."""
