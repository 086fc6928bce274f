"""One function for each request (docs/misc/xenstore.txt), and the table of them.

A handler takes the server, the connection, the view that the request's tx_id names and the payload, and returns the
payload of the reply; it refuses by `XenStoreError`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bivisor.abi.xen.xs_wire import XENSTORE_PAYLOAD_MAX, MessageType
from bivisor.dom0.xenstore import control, permissions, wire
from bivisor.dom0.xenstore.connection import Connection
from bivisor.dom0.xenstore.errors import XenStoreError
from bivisor.dom0.xenstore.path import Path, domain_path, parse, parse_watchable
from bivisor.dom0.xenstore.store import View
from bivisor.dom0.xenstore.transaction import Transaction

if TYPE_CHECKING:
    from bivisor.dom0.xenstore.server import Server

Handler = Callable[["Server", Connection, View, bytes], bytes]

OK: Final = b"OK\0"
DOMID_LIMIT: Final = 1 << 16
DOMID_SELF: Final = 0x7FF0

IGNORES_TRANSACTION: Final = 1
PRIVILEGED: Final = 2


def _read(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    return view.read(connection, parse(wire.only_string(payload), connection.home))


def _directory(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    return view.directory(connection, parse(wire.only_string(payload), connection.home)).names


def _directory_part(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    """The generation, and the names from an offset on, as many as fit; one more NUL says that these were the last."""
    match wire.strings(payload):
        case [path, offset]:
            node = view.directory(connection, parse(path, connection.home))
        case _:
            raise XenStoreError(errno.EINVAL)
    head = b"%d\0" % node.generation
    rest = node.names[wire.number(offset) :]
    room = XENSTORE_PAYLOAD_MAX - len(head) - 1
    if len(rest) <= room:
        return head + rest + b"\0"
    return head + rest[: rest.rfind(b"\0", 0, room) + 1]


def _get_perms(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    return view.permissions(connection, parse(wire.only_string(payload), connection.home)).wire


def _write(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    path, value = wire.path_and_value(payload)
    server.changed(view, view.write(connection, parse(path, connection.home), value))
    return OK


def _mkdir(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    server.changed(view, view.mkdir(connection, parse(wire.only_string(payload), connection.home)))
    return OK


def _rm(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    server.changed(view, view.remove(connection, parse(wire.only_string(payload), connection.home)))
    return OK


def _set_perms(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    match wire.strings(payload):
        case [where, *entries] if entries:
            granted = permissions.parse(entries)
        case _:
            raise XenStoreError(errno.EINVAL)
    exists = server.hypervisor.exists
    # A domain that is not there yet must not find rights that were meant for an earlier one of its number.
    if not exists(granted.owner):
        raise XenStoreError(errno.ENOENT)
    granted = permissions.Permissions((granted[0], *(entry for entry in granted[1:] if exists(entry.domid))))
    path = parse_watchable(where, connection.home)
    if isinstance(path, Path):
        server.changed(view, view.set_permissions(connection, path, granted))
        return OK
    if not connection.privileged:
        raise XenStoreError(errno.EACCES)
    if path not in server.special:
        raise XenStoreError(errno.EINVAL)
    server.special[path] = granted
    return OK


def _watch(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    depth = None
    match wire.strings(payload):
        case [where, token]:
            pass
        case [where, token, levels]:
            depth = wire.number(levels) if levels else None
        case _:
            raise XenStoreError(errno.EINVAL)
    path = parse_watchable(where, connection.home)
    if (path, token) in connection.watches:
        raise XenStoreError(errno.EEXIST)
    if not connection.privileged and len(connection.watches) >= server.quotas.watches:
        raise server.store.refuse(connection, "watches", errno.E2BIG)
    skip = len(connection.home) if isinstance(path, Path) and where[:1] != b"/" else 0
    watch = server.watches.add(connection, path, token, skip=skip, depth=depth)
    connection.watches[path, token] = watch
    event = watch.event(path)
    if event is not None:
        connection.first_events.append(event)
    return OK


def _unwatch(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    match wire.strings(payload):
        case [where, token]:
            pass
        case _:
            raise XenStoreError(errno.EINVAL)
    try:
        path = parse_watchable(where, connection.home)
    except XenStoreError:
        raise XenStoreError(errno.ENOENT) from None  # what is no path has no watch
    watch = connection.watches.pop((path, token), None)
    if watch is None:
        raise XenStoreError(errno.ENOENT)
    server.watches.remove(watch)
    return OK


def _reset_watches(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    server.reset(connection)
    return OK


def _transaction_start(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    if isinstance(view, Transaction):
        raise XenStoreError(errno.EBUSY)
    if not connection.privileged and len(connection.transactions) >= server.quotas.transactions:
        raise server.store.refuse(connection, "transactions", errno.ENOSPC)
    number = connection.new_transaction_id()
    connection.transactions[number] = Transaction(server.store, number)
    return b"%d\0" % number


def _transaction_end(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    if payload not in (b"T\0", b"F\0"):
        raise XenStoreError(errno.EINVAL)
    if not isinstance(view, Transaction):
        raise XenStoreError(errno.ENOENT)
    del connection.transactions[view.number]
    if payload == b"T\0":
        server.changed(server.view, view.commit(connection))
    return OK


def _domid(payload: bytes) -> int:
    return wire.number(wire.only_string(payload), DOMID_LIMIT)


def _introduce(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    match wire.strings(payload):
        case [domid, gfn, port, *_]:
            server.introduce(wire.number(domid, DOMID_LIMIT), wire.number(gfn, 1 << 52), wire.number(port))
        case _:
            raise XenStoreError(errno.EINVAL)
    return OK


def _release(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    server.release(_other_domid(payload))
    return OK


def _resume(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    server.domain(_other_domid(payload)).is_shut_down = False
    return OK


def _other_domid(payload: bytes) -> int:
    """A domain other than Dom0."""
    domid = _domid(payload)
    if domid == 0:
        raise XenStoreError(errno.EINVAL)
    return domid


def _get_domain_path(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    return domain_path(wire.number(wire.only_string(payload))).wire + b"\0"


def _is_domain_introduced(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    domid = _domid(payload)
    return b"T\0" if domid in (0, DOMID_SELF) or domid in server.domains else b"F\0"


def _set_target(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    match wire.strings(payload):
        case [domid, target, *_]:
            domain = server.domain(wire.number(domid, DOMID_LIMIT))
            domain.connection.target = server.domain(wire.number(target, DOMID_LIMIT)).connection
        case _:
            raise XenStoreError(errno.EINVAL)
    return OK


def _control(server: Server, connection: Connection, view: View, payload: bytes) -> bytes:
    return control.run(server, wire.strings(payload))


REQUESTS: Final[dict[int, tuple[Handler, int]]] = {
    MessageType.CONTROL: (_control, PRIVILEGED),
    MessageType.DIRECTORY: (_directory, 0),
    MessageType.READ: (_read, 0),
    MessageType.GET_PERMS: (_get_perms, 0),
    MessageType.WATCH: (_watch, IGNORES_TRANSACTION),
    MessageType.UNWATCH: (_unwatch, IGNORES_TRANSACTION),
    MessageType.TRANSACTION_START: (_transaction_start, 0),
    MessageType.TRANSACTION_END: (_transaction_end, 0),
    MessageType.INTRODUCE: (_introduce, PRIVILEGED),
    MessageType.RELEASE: (_release, PRIVILEGED),
    MessageType.GET_DOMAIN_PATH: (_get_domain_path, 0),
    MessageType.WRITE: (_write, 0),
    MessageType.MKDIR: (_mkdir, 0),
    MessageType.RM: (_rm, 0),
    MessageType.SET_PERMS: (_set_perms, 0),
    MessageType.IS_DOMAIN_INTRODUCED: (_is_domain_introduced, PRIVILEGED),
    MessageType.RESUME: (_resume, PRIVILEGED),
    MessageType.SET_TARGET: (_set_target, PRIVILEGED),
    MessageType.RESET_WATCHES: (_reset_watches, 0),
    MessageType.DIRECTORY_PART: (_directory_part, 0),
}
"""Each request that a client may send, with its handler and its rules."""
