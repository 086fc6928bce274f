"""xen/include/public/io/netif.h: the rings of a virtual network interface, slot by slot, and its nodes in XenStore.

Structures are `struct.Struct`; a comment gives their fields in order. A slot of the transmit ring has room for 12
bytes, one of the receive ring for 8, whatever is in it.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

TX_RING_SIZE: Final = 256
RX_RING_SIZE: Final = 256
"""Slots of a ring of one page: the largest power of two that fits behind its indices."""

TX_REQUEST: Final = struct.Struct("<IHHHH")  # gref, offset, flags, id, size
TX_RESPONSE: Final = struct.Struct("<Hh")  # id, status
RX_REQUEST: Final = struct.Struct("<HxxI")  # id, gref
RX_RESPONSE: Final = struct.Struct("<HHHh")  # id, offset, flags, status
EXTRA_INFO: Final = struct.Struct("<BB6s")  # type, flags, what the type says
EXTRA_GSO: Final = struct.Struct("<BBHBBH")  # type, flags, size, gso type, pad, features
TX_SLOT: Final = TX_REQUEST.size
RX_SLOT: Final = RX_RESPONSE.size

XEN_NETIF_NR_SLOTS_MIN: Final = 18
"""Slots of one packet that every back-end has to take."""

XEN_NETIF_MAX_TX_SIZE: Final = 0xFFFF

# Flags of a transmit request
NETTXF_CSUM_BLANK: Final = 1 << 0
NETTXF_DATA_VALIDATED: Final = 1 << 1
NETTXF_MORE_DATA: Final = 1 << 2
NETTXF_EXTRA_INFO: Final = 1 << 3

# Flags of a receive response
NETRXF_DATA_VALIDATED: Final = 1 << 0
NETRXF_CSUM_BLANK: Final = 1 << 1
NETRXF_MORE_DATA: Final = 1 << 2
NETRXF_EXTRA_INFO: Final = 1 << 3
NETRXF_GSO_PREFIX: Final = 1 << 4

# Extra information
XEN_NETIF_EXTRA_FLAG_MORE: Final = 1 << 0
XEN_NETIF_GSO_TYPE_NONE: Final = 0
XEN_NETIF_GSO_TYPE_TCPV4: Final = 1
XEN_NETIF_GSO_TYPE_TCPV6: Final = 2


class ExtraType(IntEnum):
    """XEN_NETIF_EXTRA_TYPE_*; 0 is invalid, and so is what follows the last."""

    GSO = 1
    MCAST_ADD = 2
    MCAST_DEL = 3
    HASH = 4


XEN_NETIF_EXTRA_TYPE_MAX: Final = 5


class NetifStatus(IntEnum):
    """NETIF_RSP_*: the status of a response; a receive response that is not negative is a length."""

    NULL = 1
    OKAY = 0
    ERROR = -1
    DROPPED = -2
