"""Further consoles of a domain: devices of type "console" on XenBus, which Linux shows as /dev/hvc1 and on.

Node names are those of xen/include/public/io/console.h's users (`ring-ref`, `port`), as docs/misc/channel.txt has them
for channels: a console that belongs to a program and not to a person.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from bivisor.dom0.console import ConsoleRing
from bivisor.dom0.xenbus.link import Device
from bivisor.dom0.xenbus.node import Node, Refused
from bivisor.dom0.xenbus.service import Driver
from bivisor.xen.errors import GrantError, XenError

Open = Callable[[Node], "Channel | None"]
"""Who has the other end of a device's channel, None for nobody."""


class Channel:
    """The host's end: `sink` gets what the guest writes, with the loop's lock held; `send` is what it reads. It goes on
    when the guest's driver closes and begins anew."""

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self.sink = sink
        self._ring: ConsoleRing | None = None
        self._waiting = bytearray()

    def send(self, data: bytes) -> None:
        """Queue `data`. With the loop's lock held, or before the domain runs."""
        if self._ring is None:
            self._waiting += data
        else:
            self._ring.send(data)

    def connected(self, ring: ConsoleRing | None) -> None:
        """The guest's driver is there, or (None) no more."""
        self._ring = ring
        if ring is not None and self._waiting:
            data, self._waiting = bytes(self._waiting), bytearray()
            ring.send(data)


def driver(open_channel: Open) -> Driver:
    """The driver of type "console" for a `Service`."""

    def make(node: Node, fail: Callable[[Refused], None]) -> Device:
        del fail
        return _Console(node, open_channel)

    return make


class _Console:
    """See `xenbus.link.Device`."""

    def __init__(self, node: Node, open_channel: Open) -> None:
        self._node = node
        self._open = open_channel
        self._undo = ExitStack()
        self._channel: Channel | None = None

    def offer(self) -> Mapping[str, str | int]:
        """See `Device.offer`."""
        self._channel = self._open(self._node)
        if self._channel is None:
            raise Refused("nobody is at the other end of this console")
        return {}

    def connect(self) -> Mapping[str, str | int]:
        """See `Device.connect`."""
        node, channel = self._node, self._channel
        assert channel is not None
        control = node.control
        ref, port = node.front_number("ring-ref"), node.front_number("port")
        try:
            mapped = control.map_grants(node.domid, [ref])
        except GrantError as error:
            raise Refused(f"the front-end's ring cannot be mapped: {error}") from None
        self._undo.callback(control.unmap_grants, mapped)
        try:
            ring = ConsoleRing(
                control, mapped[0].view, lambda handler: control.bind(node.domid, port, handler), channel.sink
            )
        except XenError as error:
            raise Refused(f"the front-end's event channel {port} cannot be bound: {error}") from None
        self._undo.callback(ring.close)
        channel.connected(ring)
        self._undo.callback(channel.connected, None)
        return {}

    def disconnect(self) -> None:
        """See `Device.disconnect`."""
        self._undo.close()

    def close(self, then: Callable[[], None]) -> bool:
        """See `Device.close`."""
        self._channel = None
        return True
