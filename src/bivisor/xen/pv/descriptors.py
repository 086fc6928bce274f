"""Segment descriptors of a PV guest: what may stand in its GDT (Intel SDM volume 3, 3.4.5, 3.5 and 5.8.3)."""

from __future__ import annotations

from typing import Final

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.pv import FIRST_RESERVED_GDT_ENTRY, Descriptor
from bivisor.xen.errors import XenError

_P, _S, _DPL, _ACCESSED = (int(bit) for bit in (Descriptor.P, Descriptor.S, Descriptor.DPL, Descriptor.ACCESSED))
_TYPE: Final = 0xF << 40
_CALL_GATE: Final = 0xC << 40
_GATE_RESERVED: Final = 0xFF << 32
_PROGRAMS_CS: Final = 0xE033
_RPL: Final = 3


def checked_descriptor(descriptor: int) -> int:
    """`descriptor` as it may stand in a table: code and data for programs' privilege, and call gates to such code. What
    is not present can be anything. XenError(EINVAL) for other gates, task states and local tables, which could lead to
    a higher privilege."""
    if not descriptor & _P:
        return descriptor
    if descriptor & _S:
        return descriptor | _DPL | _ACCESSED  # a table that is read-only to the processor too
    kind = descriptor & _TYPE
    if not kind:  # the second half of a gate
        return descriptor
    selector = descriptor >> 16 & 0xFFFF | _RPL
    allowed = selector >> 3 < FIRST_RESERVED_GDT_ENTRY or selector == _PROGRAMS_CS
    if kind != _CALL_GATE or descriptor & _GATE_RESERVED or not allowed:
        raise XenError(Errno.EINVAL)
    return descriptor | _RPL << 16
