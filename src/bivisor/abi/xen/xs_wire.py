"""The wire protocol of XenStore: message types, errors, limits and the page that a domain shares with the store.

Specification: Xen public header io/xs_wire.h, docs/misc/xenstore.txt, docs/misc/xenstore-ring.txt. Names are the
header's; an error travels as its name and a NUL.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from struct import Struct
from typing import Final


class MessageType(IntEnum):
    """enum xsd_sockmsg_type, without the prefix XS_."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


TYPE_COUNT: Final = 23

SOCKMSG: Final = Struct("<4I")
"""struct xsd_sockmsg: type, req_id, tx_id, len of the payload that follows."""

XENSTORE_PAYLOAD_MAX: Final = 4096
XENSTORE_ABS_PATH_MAX: Final = 3072
XENSTORE_REL_PATH_MAX: Final = 2048

XSD_ERRORS: Final[dict[int, bytes]] = {
    getattr(errno, name): name.encode() + b"\0"
    for name in (
        "EINVAL",
        "EACCES",
        "EEXIST",
        "EISDIR",
        "ENOENT",
        "ENOMEM",
        "ENOSPC",
        "EIO",
        "ENOTEMPTY",
        "ENOSYS",
        "EROFS",
        "EBUSY",
        "EAGAIN",
        "EISCONN",
        "E2BIG",
        "EPERM",
    )
}
"""The payload of an ERROR reply by the host's errno number."""

# struct xenstore_domain_interface
XENSTORE_RING_SIZE: Final = 1024
REQ: Final = 0
RSP: Final = 1024
INDICES: Final = 2048
"""Where the 32-bit words after the two rings begin; their numbers follow."""
REQ_CONS: Final = 0
REQ_PROD: Final = 1
RSP_CONS: Final = 2
RSP_PROD: Final = 3
SERVER_FEATURES: Final = 4
CONNECTION: Final = 5
ERROR: Final = 6
INTERFACE_WORDS: Final = 7
INTERFACE_SIZE: Final = INDICES + 4 * INTERFACE_WORDS

XENSTORE_SERVER_FEATURE_RECONNECTION: Final = 1
XENSTORE_SERVER_FEATURE_ERROR: Final = 2
XENSTORE_SERVER_FEATURE_WATCHDEPTH: Final = 4
"""Later than Xen 4.17: WATCH takes a third string, the depth."""

XENSTORE_CONNECTED: Final = 0
XENSTORE_RECONNECT: Final = 1

XENSTORE_ERROR_NONE: Final = 0
XENSTORE_ERROR_COMM: Final = 1
XENSTORE_ERROR_RINGIDX: Final = 2
XENSTORE_ERROR_PROTO: Final = 3
