"""What the store refuses, as the errno that the client is told (io/xs_wire.h, xsd_errors)."""

from __future__ import annotations

import errno

from bivisor.errors import BivisorError


class XenStoreError(BivisorError):
    """A request was refused: `errno` is one of `xs_wire.XSD_ERRORS`. It never leaves the server."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number

    def __str__(self) -> str:
        return errno.errorcode[self.errno]


class ProtocolError(BivisorError):
    """A client broke the framing, after which nothing it sends can be understood: it is disconnected."""
