"""CONTROL: commands to the store itself (docs/misc/xenstore.txt, "CONTROL"), which xenstore-control sends."""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bivisor.dom0.xenstore import wire
from bivisor.dom0.xenstore.errors import XenStoreError
from bivisor.dom0.xenstore.quota import Quotas

if TYPE_CHECKING:
    from bivisor.dom0.xenstore.server import Server

_LOG = logging.getLogger(__name__)
_OK: Final = b"OK\0"

_QUOTAS: Final = {field.name.replace("_", "-").encode(): field.name for field in dataclasses.fields(Quotas)}


def run(server: Server, words: list[bytes]) -> bytes:
    """Carry out a command and return the payload of its reply. EINVAL for one that is not known."""
    command = _COMMANDS.get(words[0]) if words else None
    if command is None:
        raise XenStoreError(errno.EINVAL)
    return command(server, words[1:])


def _help(server: Server, words: list[bytes]) -> bytes:
    return b"".join(name + b"\n" for name in sorted(_COMMANDS)) + b"\0"


def _check(server: Server, words: list[bytes]) -> bytes:
    """Compare the counts that quotas go by with the tree. EIO where they differ."""
    store = server.store
    if store.owners() != +store.owned:
        _LOG.error("xenstore: nodes owned are %s and were counted as %s", dict(store.owners()), dict(+store.owned))
        raise XenStoreError(errno.EIO)
    return _OK


def _print(server: Server, words: list[bytes]) -> bytes:
    if len(words) != 1:
        raise XenStoreError(errno.EINVAL)
    _LOG.info("xenstore: control: %s", words[0].decode("utf-8", "backslashreplace"))
    return _OK


def _memreport(server: Server, words: list[bytes]) -> bytes:
    watches = sum(len(connection.watches) for connection in server.connections)
    transactions = sum(len(connection.transactions) for connection in server.connections)
    nodes = server.store.owned.total()
    return b"nodes: %d\nwatches: %d\ntransactions: %d\n\0" % (nodes, watches, transactions)


def _quota(server: Server, words: list[bytes]) -> bytes:
    """`quota`: the limits. `quota|<domid>`: what a domain has. `quota|set|<name>|<value>`: set a limit."""
    match words:
        case []:
            lines = [b"%-18s%8d\n" % (name + b":", getattr(server.quotas, field)) for name, field in _QUOTAS.items()]
            return b"Quota settings:\n" + b"".join(lines) + b"\0"
        case [b"set", name, value] if name in _QUOTAS:
            setattr(server.quotas, _QUOTAS[name], wire.number(value))
            return _OK
        case [domid]:
            connection = server.domain(wire.number(domid)).connection
            return b"Domain %d:\nnodes           : %8d\nwatches         : %8d\ntransactions    : %8d\n\0" % (
                connection.domid,
                server.store.owned[connection.domid],
                len(connection.watches),
                len(connection.transactions),
            )
        case _:
            raise XenStoreError(errno.EINVAL)


_COMMANDS: Final[dict[bytes, Callable[[Server, list[bytes]], bytes]]] = {
    b"check": _check,
    b"help": _help,
    b"memreport": _memreport,
    b"print": _print,
    b"quota": _quota,
}
