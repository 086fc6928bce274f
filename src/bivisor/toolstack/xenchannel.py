"""Byte channels between the host and its domains: second consoles, which programs use and not people."""

from __future__ import annotations

from collections.abc import Callable

from bivisor.dom0.channel import Channel, driver
from bivisor.dom0.control import Control
from bivisor.dom0.xenbus.service import Service
from bivisor.dom0.xenstore.client import StoreClient
from bivisor.toolstack import xendevices
from bivisor.toolstack.xendevices import XenDevice

_NUMBER = 1
"""Console 0 is the one that a domain is created with."""


class Channels:
    """The channels of one host's domains, one each. Made, used and closed with the loop's lock held."""

    def __init__(self, control: Control, store: StoreClient) -> None:
        self._store = store
        self._open: dict[int, Channel] = {}
        self._service = Service(control, store, "console", driver(lambda node: self._open.get(node.domid)))

    def attach(self, domid: int, sink: Callable[[bytes], None]) -> Channel:
        """Give domain `domid` /dev/hvc1, before it runs for the first time. What it writes there goes to `sink`."""
        channel = self._open[domid] = Channel(sink)
        nodes: dict[str, str | int] = {"type": "xenconsoled", "output": "pty", "limit": 1 << 20}
        xendevices.add(self._store, XenDevice("console", domid, _NUMBER, {}, nodes))
        return channel

    def forget(self, domid: int) -> None:
        """The domain is going. One that has no channel is no error."""
        if self._open.pop(domid, None) is not None:
            xendevices.remove(self._store, XenDevice("console", domid, _NUMBER))

    def close(self) -> None:
        """Let go of every domain."""
        self._service.close()
        self._open.clear()
