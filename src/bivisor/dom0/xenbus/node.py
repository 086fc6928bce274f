"""A device's nodes in the store, as its back-end sees them.

The back-end's own nodes are Dom0's, written by the toolstack and the back-end. The front-end's are written by a guest:
what they say is checked here.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping as Nodes

from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.control import Control
from bivisor.dom0.xenstore.client import StoreClient
from bivisor.dom0.xenstore.errors import XenStoreError

_log = logging.getLogger(__name__)


class Refused(Exception):
    """A device that cannot be, or a connection with its front-end that cannot: why, for a person, with an errno."""

    def __init__(self, reason: str, number: int = errno.EINVAL) -> None:
        super().__init__(reason)
        self.errno = number


class Node:
    """Device `devid` of type `kind` of domain `domid`: `path` is its back-end's directory, `front` its front-end's."""

    def __init__(self, control: Control, store: StoreClient, kind: str, domid: int, devid: int, front: str) -> None:
        self.control = control
        self.store = store
        self.kind = kind
        self.domid = domid
        self.devid = devid
        self.front = front
        self.name = f"backend/{kind}/{domid}/{devid}"
        self._home = f"/local/domain/{control.domain.domid}"
        self.path = f"{self._home}/{self.name}"

    def get(self, name: str) -> str | None:
        """The back-end's node `name`, or None."""
        return self.store.get(f"{self.path}/{name}")

    def write(self, nodes: Nodes[str, str | int]) -> None:
        """Write nodes of the back-end's."""
        for name, value in nodes.items():
            self.store.write(f"{self.path}/{name}", value)

    def front_get(self, name: str) -> str | None:
        """The front-end's node `name`, or None."""
        return self.store.get(f"{self.front}/{name}")

    def front_number(self, name: str, default: int | None = None, *, limit: int = 1 << 32) -> int:
        """The number below `limit` in the front-end's node `name`; without the node `default`. Refused."""
        text = self.front_get(name)
        if text is None:
            if default is None:
                raise Refused(f"the front-end has no {name}", errno.ENOENT)
            return default
        # int() of thousands of digits costs time quadratic in them
        if not text.isascii() or not text.isdigit() or len(text) > 20 or int(text) >= limit:
            raise Refused(f"the front-end's {name} is {text[:40]!r}, not a number below {limit}")
        return int(text)

    def state(self) -> XenbusState:
        """The back-end's state: the toolstack writes it too, when it creates the device and to have it closed."""
        return _state(self.get("state"))

    def front_state(self) -> XenbusState:
        """The front-end's state."""
        return _state(self.front_get("state"))

    @property
    def online(self) -> bool:
        """Whether the device is to stay when its front-end closes."""
        return self.get("online") != "0"

    def switch(self, state: XenbusState) -> None:
        """xenbus_switch_state. Nothing where the node has gone: it must not come back without the rest."""
        if self.get("state") not in (None, str(int(state))):
            self.store.write(f"{self.path}/state", int(state))

    def report(self, error: Refused) -> None:
        """xenbus_dev_error: say in the node error/… of Dom0 and in the log what is wrong."""
        _log.warning("%s: %s", self.name, error)
        try:
            self.store.write(f"{self._home}/error/{self.name}/error", f"{error.errno} {error}")
        except XenStoreError:  # a text that is too long; the log has it
            pass

    def forget_error(self) -> None:
        """Take the node error/… back."""
        self.store.remove(f"{self._home}/error/{self.name}")


def _state(text: str | None) -> XenbusState:
    try:
        return XenbusState(int(text)) if text is not None and len(text) <= 2 else XenbusState.UNKNOWN
    except ValueError:
        return XenbusState.UNKNOWN
