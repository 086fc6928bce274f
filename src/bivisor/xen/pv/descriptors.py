"""Segment descriptors of a PV guest: what may stand in its GDT (Intel SDM volume 3, 3.4.5 and 3.5)."""

from __future__ import annotations

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.pv import Descriptor
from bivisor.xen.errors import XenError

_P, _S, _DPL, _ACCESSED = (int(bit) for bit in (Descriptor.P, Descriptor.S, Descriptor.DPL, Descriptor.ACCESSED))


def checked_descriptor(descriptor: int) -> int:
    """`descriptor` as it may stand in a table: code and data for programs' privilege. What is not present can be
    anything. XenError(EINVAL) for gates, task states and local tables, which could lead to a higher privilege."""
    if not descriptor & _P:
        return descriptor
    if not descriptor & _S:
        raise XenError(Errno.EINVAL)
    return descriptor | _DPL | _ACCESSED  # a table that is read-only to the processor too
