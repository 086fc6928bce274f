"""A TCP socket that listens on this machine alone unless it is told otherwise."""

from __future__ import annotations

import socket

from bivisor.errors import HostError, UsageError


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of "1234", ":1234" or "host:1234"; without a host, the loopback address. UsageError."""
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        raise UsageError(f"{text!r}: a port (0 to 65535), or HOST:PORT")
    return (host.strip("[]") if colon and host else "127.0.0.1"), int(port)


def listen(host: str, port: int, backlog: int = 1) -> socket.socket:
    """A socket that takes connections there, with room for `backlog` that nobody has accepted yet; port 0 takes a free
    one. HostError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind | socket.SOCK_CLOEXEC)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(backlog)
    except OSError as error:
        raise HostError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return found
