"""xen/include/public/io/xenbus.h: the states that the two ends of a split device go through."""

from __future__ import annotations

from enum import IntEnum


class XenbusState(IntEnum):
    """enum xenbus_state, without the prefix XenbusState. A node that is not there counts as UNKNOWN."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8
