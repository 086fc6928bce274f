"""How the store reaches the domains that are introduced to it: their page by a foreign mapping, their event channel
bound, both by Dom0's hypercalls.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from bivisor.dom0.xenstore.connection import Connection
from bivisor.dom0.xenstore.errors import XenStoreError
from bivisor.dom0.xenstore.ring import Ring
from bivisor.dom0.xenstore.server import Server
from bivisor.host.loop import Loop
from bivisor.xen.errors import XenError


class Hypercalls(Protocol):
    """What of Dom0's `Control` is needed here."""

    @property
    def loop(self) -> Loop:
        """The loop of Dom0's thread."""

    def exists(self, domid: int) -> bool:
        """Whether there is a domain of that number."""

    def map_foreign(self, domid: int, gfn: int) -> memoryview:
        """A frame of another domain. XenError."""

    def bind(self, domid: int, remote_port: int, handler: Callable[[], None]) -> int:
        """Bind an interdomain event channel. XenError."""

    def unbind(self, port: int) -> None:
        """Close a port."""

    def notify(self, port: int) -> None:
        """Signal the other end. XenError."""


class XenDomains:
    """The domains of a Xen host (`server.Domains`)."""

    def __init__(self, control: Hypercalls) -> None:
        self._control = control

    def exists(self, domid: int) -> bool:
        """See `server.Domains`."""
        return self._control.exists(domid)

    def attach(self, server: Server, connection: Connection, gfn: int, port: int) -> Ring:
        """See `server.Domains`. EINVAL where the domain has no such frame or port."""
        control = self._control
        rings: list[Ring] = []
        try:
            page = control.map_foreign(connection.domid, gfn)
        except XenError:
            raise XenStoreError(errno.EINVAL) from None
        try:
            ours = control.bind(connection.domid, port, lambda: rings[0].handle_event())
        except XenError:
            page.release()
            raise XenStoreError(errno.EINVAL) from None

        def notify() -> None:
            # A domain may close its end at any time; then nobody waits there.
            try:
                control.notify(ours)
            except XenError:
                pass

        def close() -> None:
            control.unbind(ours)
            page.release()

        rings.append(Ring(server, connection, page, notify, control.loop.call_soon, close))
        return rings[0]
