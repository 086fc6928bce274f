"""A bridge among virtual interfaces and wires: a learning switch (IEEE 802.1D, sections 7.7 and 7.8).

What the toolstack says of a port (the address of its interface) cannot be taken over by another; addresses beyond
those are learned, so many for a port, and forgotten when they have been silent for five minutes.

The network of a single guest may be `patient`: who sends to a port that has no room now waits for it, and nothing is
lost. On one that guests share, a guest that takes nothing would stop the others.
"""

from __future__ import annotations

from typing import Protocol

from bivisor.dom0.net.frame import Frame
from bivisor.host.loop import Clock

AGEING_TIME = 300.0
LEARNED_MAX = 256
"""Addresses that are learned of one port."""

_RESERVED = bytes.fromhex("0180c20000")  # and one byte below 0x10: for bridges themselves, never forwarded (7.12.6)


class Port(Protocol):
    """What takes frames at the end of a bridge. Nothing here blocks or raises for what is in a frame."""

    @property
    def busy(self) -> bool:
        """Whether frames wait in it for room. When none does any more it calls `Bridge.relieved`."""

    @property
    def takes_long(self) -> bool:
        """Whether packets that are still to be cut go farther from here as they are."""

    def deliver(self, frame: Frame) -> None:
        """Take a frame or drop it; its bytes are good only until this returns."""

    def flush(self) -> None:
        """The frames that were delivered were all for now: tell whoever waits for them."""

    def resume(self) -> None:
        """The bridge takes frames again. It may be called from within anything: go on later."""


class _Learned:
    __slots__ = ("port", "seen")

    def __init__(self, port: Port, seen: float) -> None:
        self.port = port
        self.seen = seen


class Bridge:
    """The bridge called `name`. Everything is called with the loop's lock held."""

    def __init__(self, name: str, clock: Clock, *, patient: bool = False) -> None:
        self.name = name
        self._clock = clock
        self._patient = patient
        self._full: set[Port] = set()
        self._ports: dict[Port, bytes | None] = {}
        self._fixed: dict[bytes, Port] = {}
        self._learned: dict[bytes, _Learned] = {}
        self._count: dict[Port, int] = {}
        self._delivered: dict[Port, None] = {}

    @property
    def ports(self) -> tuple[Port, ...]:
        """What is plugged in."""
        return tuple(self._ports)

    def takes_long(self, source: Port) -> bool:
        """Whether `source` does well to put segments together: there is a port where they stay so."""
        return any(port.takes_long for port in self._ports if port is not source)

    def is_full(self, source: Port) -> bool:
        """Whether `source` should keep its frames if it can, until `Port.resume`: another port has no room."""
        full = self._full
        return bool(full) and full != {source}

    def relieved(self, port: Port) -> None:
        """What waited in `port` has found room."""
        if port in self._full:
            self._full.discard(port)
            for each in tuple(self._ports):
                each.resume()

    def attach(self, port: Port, mac: bytes | None = None) -> None:
        """Plug `port` in. Frames for `mac` go to it and to no other, as long as it is there."""
        self._ports[port] = mac
        self._count[port] = 0
        if mac is not None:
            self._forget(mac)
        self._fix()

    def detach(self, port: Port) -> None:
        """Unplug `port`; one that is not there is no error."""
        if port not in self._ports:
            return
        del self._ports[port]
        del self._count[port]
        self._delivered.pop(port, None)
        self._learned = {mac: entry for mac, entry in self._learned.items() if entry.port is not port}
        self._fix()
        self.relieved(port)

    def _fix(self) -> None:
        """Of two ports with the same address the first that came has it."""
        self._fixed = {mac: port for port, mac in reversed(self._ports.items()) if mac is not None}

    def forward(self, source: Port, frame: Frame) -> None:
        """Send `frame`, which came in at `source`, where it belongs: to one port, or to all others."""
        head = frame.head
        self._learn(head[6:12], source)
        target = head[:6]
        if target[0] & 1:
            if target[:5] == _RESERVED and target[5] < 16:
                return
        else:
            port = self._fixed.get(target) or self._find(target)
            if port is not None:
                if port is not source:
                    self._delivered[port] = None
                    port.deliver(frame)
                    if self._patient and port.busy:
                        self._full.add(port)
                return
        for port in tuple(self._ports):
            if port is not source:
                self._delivered[port] = None
                port.deliver(frame)

    def flush(self) -> None:
        """Whoever forwarded some frames has no more for now."""
        while self._delivered:
            port, _ = self._delivered.popitem()
            port.flush()

    def where(self, mac: bytes) -> Port | None:
        """The port behind which `mac` is known to be."""
        return self._fixed.get(mac) or self._find(mac)

    def _find(self, mac: bytes) -> Port | None:
        entry = self._learned.get(mac)
        if entry is None:
            return None
        if self._clock.now() - entry.seen > AGEING_TIME:
            self._forget(mac)
            return None
        return entry.port

    def _forget(self, mac: bytes) -> None:
        entry = self._learned.pop(mac, None)
        if entry is not None:
            self._count[entry.port] -= 1

    def _learn(self, mac: bytes, source: Port) -> None:
        if mac in self._fixed or mac[0] & 1:  # no station has a group's address
            return
        entry = self._learned.get(mac)
        if entry is not None and entry.port is source:
            entry.seen = self._clock.now()
            return
        if source not in self._ports:
            return
        self._forget(mac)
        # A guest that makes addresses up fills its own share of the table and no more.
        if self._count[source] >= LEARNED_MAX and not self._expire(source):
            return
        self._count[source] += 1
        self._learned[mac] = _Learned(source, self._clock.now())

    def _expire(self, source: Port) -> bool:
        """Forget what has been silent for long behind `source`; whether there is room now."""
        oldest = self._clock.now() - AGEING_TIME
        silent = [mac for mac, entry in self._learned.items() if entry.port is source and entry.seen < oldest]
        for mac in silent:
            self._forget(mac)
        return bool(silent)
