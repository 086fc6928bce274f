"""A back-end as a service of Dom0: one `Link` for each node backend/<type>/<domid>/<devid> of the store.

It begins with what is there and follows what comes and goes. `close()` is also what killing it comes to: mappings and
ports are given back, the store is left as it is, and front-ends wait until a service is there again.
"""

from __future__ import annotations

from collections.abc import Callable

from bivisor.dom0.control import Control
from bivisor.dom0.xenbus.link import Device, Link
from bivisor.dom0.xenbus.node import Node, Refused
from bivisor.dom0.xenstore.client import StoreClient

Driver = Callable[[Node, Callable[[Refused], None]], Device]
"""Makes the device of a node. It is handed what to call when the front-end breaks its ring: `Link.fail`."""

_Key = tuple[str, str]


class Service:
    """The back-ends of type `kind` ("vbd", "vif") by `driver`. Made and closed with the loop's lock held."""

    def __init__(self, control: Control, store: StoreClient, kind: str, driver: Driver) -> None:
        self._control = control
        self._store = store
        self.kind = kind
        self._driver = driver
        self._base = f"/local/domain/{control.domain.domid}/backend/{kind}"
        self.links: dict[_Key, Link] = {}
        self._watches: dict[_Key, tuple[str, str]] = {}
        self._due: set[_Key] = set()
        self._look_everywhere = self._is_scheduled = self._is_closed = False
        self._watch = store.watch(self._base, self._changed)

    def _changed(self, path: str) -> None:
        """A node of ours has changed. Looked at later: this may be in the middle of a change of our own."""
        parts = path[len(self._base) + 1 :].split("/")
        if len(parts) > 1:
            self._due.add((parts[0], parts[1]))
        else:
            self._look_everywhere = True
        self._schedule()

    def _front_changed(self, key: _Key) -> None:
        self._due.add(key)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._control.loop.call_soon(self._look)

    def _look(self) -> None:
        self._is_scheduled = False
        if self._is_closed:
            return
        if self._look_everywhere:
            self._look_everywhere = False
            self._due.update(self.links)
            for domid in self._store.names(self._base):
                self._due.update((domid, devid) for devid in self._store.names(f"{self._base}/{domid}"))
        due, self._due = sorted(self._due), set()
        for key in due:
            self._look_at(key)

    def _look_at(self, key: _Key) -> None:
        path = f"{self._base}/{key[0]}/{key[1]}"
        front = self._store.get(f"{path}/frontend")
        link = self.links.get(key)
        if front is None or self._store.get(f"{path}/state") is None:
            if link is not None:
                self._drop(key)
            return
        if link is None:
            if not key[0].isdigit() or not key[1].isdigit():
                return
            node = Node(self._control, self._store, self.kind, int(key[0]), int(key[1]), front)
            link = self.links[key] = Link(node, self._driver)
            state = f"{front}/state"
            self._watches[key] = state, self._store.watch(state, lambda _: self._front_changed(key))
        link.step()

    def _drop(self, key: _Key) -> None:
        self._store.unwatch(*self._watches.pop(key))
        link = self.links.pop(key)
        link.close()
        link.node.forget_error()

    def close(self) -> None:
        """Give everything back and leave the store as it is."""
        self._is_closed = True
        self._store.unwatch(self._base, self._watch)
        for key, link in list(self.links.items()):
            self._store.unwatch(*self._watches.pop(key))
            link.close()
        self.links.clear()
