"""What commands and host say to each other: a line of JSON for a request, a line for its answer, one after the other.

A request is {"method": ..., "params": {...}}; its answer {"result": ...} or {"error": {"kind": ..., "message": ...}}.
After the answer to `console` the connection carries the console's bytes instead.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from bivisor import errors
from bivisor.errors import BivisorError, HostError

LINE_MAX = 1 << 20
_KINDS = ("UsageError", "ImageError", "HostError", "EngineError", "GuestMemoryError")


class HostDied(HostError):
    """The connection ended in the middle: the host is gone."""

    status = 1


class LineReader:
    """Lines from a socket; `rest` is what came after the last of them."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.rest = b""

    def line(self) -> bytes | None:
        """The next line without its end, or None where there is none any more. HostError for one without end."""
        while (at := self.rest.find(b"\n")) < 0:
            if len(self.rest) > LINE_MAX:
                raise HostError(f"a message of more than {LINE_MAX} bytes")
            data = self._end.recv(1 << 16)
            if not data:
                return None
            self.rest += data
        line, self.rest = self.rest[:at], self.rest[at + 1 :]
        return line


def encode(message: dict[str, Any]) -> bytes:
    """A message as a line."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """A line's message. HostError for what is none."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise HostError("that is not a message")
    return message


def error_message(error: BivisorError) -> dict[str, Any]:
    """An answer that says what went wrong."""
    kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS), "BivisorError")
    return {"error": {"kind": kind, "message": str(error)}}


def raise_error(error: Any) -> None:
    """Raise what `error_message` said."""
    if not isinstance(error, dict):
        raise HostError("the host answers what is no answer")
    kind = error.get("kind")
    raise getattr(errors, kind if kind in _KINDS else "BivisorError")(str(error.get("message")))
