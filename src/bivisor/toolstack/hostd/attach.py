"""A domain's console on this process's own standard streams, through a connection to its host."""

from __future__ import annotations

import os
import select
import socket
import sys

from bivisor.host.tty import LEAVE, raw_terminal, terminal_size
from bivisor.toolstack.hostd.client import HostClient
from bivisor.toolstack.words import terminal_words

_PIECE = 1 << 16


def attach(host: HostClient, domain: str, *, quiet: bool = False) -> bool:
    """Until the domain is gone (True), or Ctrl-] is typed on a terminal (False).

    Where the input is no terminal it is sent as it is, and its end ends nothing. The connection is used up by it.
    """
    end, first = host.console(domain)
    is_terminal = os.isatty(0)
    if is_terminal and not quiet:
        print(f"bivisor: the console of {domain}; Ctrl-] leaves", file=sys.stderr, flush=True)
    with raw_terminal(0):
        _write(first)
        return _carry(end, is_terminal)


def own_terminal() -> str:
    """What the default guest has to know of the terminal that this process is on; "" where it is on none."""
    size = terminal_size(1)
    return terminal_words(size) if size is not None else ""


def _carry(end: socket.socket, is_terminal: bool) -> bool:
    sources = [end.fileno(), 0]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if end.fileno() in ready:
            data = end.recv(_PIECE)
            if not data:
                return True
            _write(data)
        if 0 in ready:
            typed = os.read(0, _PIECE)
            if not typed:
                if is_terminal:
                    return False
                sources.remove(0)
            if is_terminal and LEAVE in typed:
                end.sendall(typed[: typed.index(LEAVE)])
                return False
            end.sendall(typed)


def _write(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]
