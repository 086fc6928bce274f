"""xen/include/public/io/ring.h: the layout of a ring that a front-end shares with its back-end.

The four indices (32 bits, free-running) stand first, then private bytes up to 64, then the entries: requests, and
responses in their place. There are as many entries as fit, rounded down to a power of two.
"""

from __future__ import annotations

# Indices of 32-bit fields of struct *_sring
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = range(4)

ENTRIES_AT = 64
"""The offset of the first entry in bytes."""


def ring_size(entry_size: int, length: int) -> int:
    """__RING_SIZE: how many entries of `entry_size` bytes a ring of `length` bytes has."""
    return 1 << ((length - ENTRIES_AT) // entry_size).bit_length() - 1
