"""The store's server: connections, domains, and each request to its handler. It does no I/O.

A transport makes a `Connection`, hands every message to `receive`, and sends what the connection has to send. All of
it happens in one thread; a request is carried out whole before the next.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Protocol

from bivisor.dom0.xenstore import tree, wire
from bivisor.dom0.xenstore.connection import Connection, OnEvent
from bivisor.dom0.xenstore.errors import XenStoreError
from bivisor.dom0.xenstore.path import INTRODUCE_DOMAIN, RELEASE_DOMAIN, ROOT, Path, Special
from bivisor.dom0.xenstore.permissions import DOM0_ONLY, Permissions
from bivisor.dom0.xenstore.quota import QuotaHit, QuotaLog, Quotas
from bivisor.dom0.xenstore.requests import IGNORES_TRANSACTION, PRIVILEGED, REQUESTS
from bivisor.dom0.xenstore.store import Change, Store, View
from bivisor.dom0.xenstore.transaction import Transaction
from bivisor.dom0.xenstore.watches import Watches
from bivisor.dom0.xenstore.wire import Message


class Transport(Protocol):
    """What carries the bytes of a domain."""

    def reset(self) -> None:
        """Begin anew: the domain was introduced again."""

    def close(self) -> None:
        """Give page and event channel back."""


class Domains(Protocol):
    """What the server needs of the hypervisor."""

    def exists(self, domid: int) -> bool:
        """Whether there is such a domain."""

    def attach(self, server: Server, connection: Connection, gfn: int, port: int) -> Transport:
        """Map the domain's page and bind its event channel. XenStoreError where that cannot be."""


class NoHypervisor:
    """Domains where there is no hypervisor: each one exists and none can be attached."""

    def exists(self, domid: int) -> bool:
        """See `Domains.exists`."""
        return True

    def attach(self, server: Server, connection: Connection, gfn: int, port: int) -> Transport:
        """See `Domains.attach`. ENOSYS always."""
        raise XenStoreError(errno.ENOSYS)


class Domain:
    """A domain that was introduced."""

    def __init__(self, connection: Connection, transport: Transport) -> None:
        self.connection = connection
        self.transport = transport
        self.is_shut_down = False


class Server:
    """One store. `on_quota` hears of domains that hit a quota, the module's logger if it is None."""

    def __init__(
        self,
        domains: Domains | None = None,
        *,
        quotas: Quotas | None = None,
        on_quota: Callable[[QuotaHit], None] | None = None,
    ) -> None:
        self.on_request: Callable[[Connection, Message], None] | None = None
        """Somebody listens: this carries out requests, by `carry_out` and `finish`."""
        self.on_change: Callable[[Sequence[Change]], None] | None = None
        """Called with changes that everybody can see now, before watches hear of them."""
        self._on_event: OnEvent | None = None
        self.quotas = quotas or Quotas()
        self.quota_log = QuotaLog(on_quota)
        self.store = Store(self.quotas, self.quota_log)
        self.view = View(self.store)
        self.watches = Watches()
        self.connections: set[Connection] = set()
        self.domains: dict[int, Domain] = {}
        self.special: dict[Special, Permissions] = {INTRODUCE_DOMAIN: DOM0_ONLY, RELEASE_DOMAIN: DOM0_ONLY}
        self.hypervisor: Domains = domains or NoHypervisor()
        self.view.mkdir(self.connect(), Path((b"tool", b"xenstored")))
        self.connections.clear()

    @property
    def on_event(self) -> OnEvent | None:
        """`Connection.on_event` of every client."""
        return self._on_event

    @on_event.setter
    def on_event(self, value: OnEvent | None) -> None:
        self._on_event = value
        for connection in tuple(self.connections):
            connection.on_event = value

    # Clients

    def connect(self, domid: int = 0) -> Connection:
        """A new client: a tool of Dom0, or domain `domid`."""
        connection = Connection(domid, privileged=domid == 0, quotas=self.quotas, quota_log=self.quota_log)
        connection.on_event = self._on_event
        self.connections.add(connection)
        return connection

    def disconnect(self, connection: Connection) -> None:
        """The client is gone, and with it its watches and transactions."""
        self.reset(connection)
        connection.drop_output()
        self.connections.discard(connection)

    def reset(self, connection: Connection) -> None:
        """Take back the client's watches and end its transactions."""
        for watch in connection.watches.values():
            self.watches.remove(watch)
        connection.watches.clear()
        connection.transactions.clear()

    def receive(self, connection: Connection, message: Message) -> None:
        """Carry out one request, and queue its reply and the events that it caused, whoever gets them."""
        if self.on_request is None:
            self.finish(connection, self.carry_out(connection, message))
        else:
            self.on_request(connection, message)

    def carry_out(self, connection: Connection, message: Message) -> bytes:
        """What the reply to a request is; `finish` sends it."""
        type_, _, tx_id, payload = message
        try:
            request = REQUESTS.get(type_)
            if request is None:
                raise XenStoreError(errno.ENOSYS)
            handle, rules = request
            if rules & PRIVILEGED and not connection.privileged:
                raise XenStoreError(errno.EACCES)
            view = self.view
            if tx_id and not rules & IGNORES_TRANSACTION:
                transaction = connection.transactions.get(tx_id)
                if transaction is None:
                    raise XenStoreError(errno.ENOENT)
                view = transaction
            return wire.reply(message, handle(self, connection, view, payload))
        except XenStoreError as refused:
            return wire.error(message, refused.errno)

    def finish(self, connection: Connection, reply: bytes) -> None:
        """Queue the reply to a request, and the events that come after it."""
        connection.send_reply(reply)
        if connection.first_events:
            for event in connection.first_events:
                connection.send_event(event)
            connection.first_events.clear()

    def changed(self, view: View, changes: Sequence[Change]) -> None:
        """Tell of changes that were made through `view`, now or when its transaction ends."""
        if isinstance(view, Transaction):
            view.note(changes)
        else:
            if self.on_change is not None:
                self.on_change(changes)
            self.watches.fire(changes, self.store.root)

    # Domains

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """INTRODUCE: attach a domain by the page `gfn` and its event channel `port`; again: begin anew on that port.

        ENOENT where there is no such domain.
        """
        known = self.domains.get(domid)
        if known is None:
            if not self.hypervisor.exists(domid):
                raise XenStoreError(errno.ENOENT)
            connection = self.connect(domid)
            try:
                transport = self.hypervisor.attach(self, connection, gfn, port)
            except XenStoreError:
                self.disconnect(connection)
                raise
            self.domains[domid] = Domain(connection, transport)
            self._fire_special(INTRODUCE_DOMAIN, domid)
            return
        connection = known.connection
        known.transport.close()
        self.reset(connection)
        connection.drop_output()
        known.transport = self.hypervisor.attach(self, connection, gfn, port)
        known.transport.reset()

    def domain(self, domid: int) -> Domain:
        """A domain that was introduced. ENOENT."""
        domain = self.domains.get(domid)
        if domain is None:
            raise XenStoreError(errno.ENOENT)
        return domain

    def shut_down(self, domid: int) -> None:
        """The domain has shut down but is still there; @releaseDomain tells of it once. Unknown ones are no error."""
        domain = self.domains.get(domid)
        if domain is not None and not domain.is_shut_down:
            domain.is_shut_down = True
            self._fire_special(RELEASE_DOMAIN, domid)

    def release(self, domid: int) -> None:
        """RELEASE, or the domain is gone: disconnect it and remove what it owns. ENOENT."""
        domain = self.domain(domid)
        del self.domains[domid]
        domain.transport.close()
        self.disconnect(domain.connection)
        for connection in self.connections:
            if connection.target is domain.connection:
                connection.target = None
        self._disown(domid)
        self.quota_log.forget(domid)
        self._fire_special(RELEASE_DOMAIN, domid)

    def close(self) -> None:
        """Let go of every domain, telling nobody."""
        for domain in self.domains.values():
            domain.transport.close()
        self.domains.clear()
        self.connections.clear()

    def _disown(self, domid: int) -> None:
        """Remove what the domain owns and what it was granted: the next domain of this number must not inherit it."""
        store, tool = self.store, Connection(0, privileged=True, quotas=self.quotas, quota_log=self.quota_log)
        # Parents come before their children so.
        for path, _ in reversed(list(tree.walk(store.root, ROOT))):
            node = tree.find(store.root, path)
            if node is None:
                continue
            permissions = node.permissions
            if permissions.owner == domid:
                if path:
                    self.changed(self.view, self.view.prune(tool, path, node))
                    continue
                permissions = permissions.owned_by(0)
                self.view.account(((domid, -1), (0, 1)))
            if permissions != (kept := permissions.without(domid)) or permissions is not node.permissions:
                store.root = tree.set_permissions(store.root, path, kept, node.generation)
        for connection in self.connections:
            for transaction in connection.transactions.values():
                transaction.disown()
        for name, permissions in self.special.items():
            kept = permissions.without(domid)
            self.special[name] = kept.owned_by(0) if kept.owner == domid else kept

    def _fire_special(self, name: Special, domid: int) -> None:
        self.watches.fire_special(name, domid, self.special[name])
