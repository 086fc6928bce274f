"""What the requests in a block ring ask for, in words: for who looks at them."""

from __future__ import annotations

from bivisor.abi.xen.blkif import SECTOR, SEGMENT, BlkifOp, Layout
from bivisor.dom0.xenbus.watched import Asked

_SEGMENTS_MOST = 11
_NAMES = {operation.value: operation.name.lower() for operation in BlkifOp}


def op_name(operation: int) -> str:
    """The name of a BLKIF_OP_*."""
    return _NAMES.get(operation) or str(operation)


def describe(layout: Layout, request: bytes) -> Asked:
    """A request as it stands in the ring: nothing in it has been checked. An indirect one does not say its size."""
    operation = request[0]
    if operation == BlkifOp.INDIRECT:
        _, operation, _, ident, sector = layout.indirect_head.unpack_from(request)
        return Asked(op_name(operation), ident, 0, sector)
    if operation == BlkifOp.DISCARD:
        _, _, ident, sector, count = layout.discard.unpack_from(request)
        return Asked(op_name(operation), ident, count * SECTOR, sector)
    _, segments, ident, sector = layout.request.unpack_from(request)
    size = 0
    for index in range(min(segments, _SEGMENTS_MOST)):
        _, first, last = SEGMENT.unpack_from(request, layout.request.size + index * SEGMENT.size)
        size += max(0, last - first + 1) * SECTOR
    return Asked(op_name(operation), ident, size, sector)
