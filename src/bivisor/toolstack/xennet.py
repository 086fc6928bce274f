"""The networks of a Xen host: its bridges, and the virtual interfaces of domains that are plugged into them.

An interface is on a bridge among this host's domains, which comes into being when it is first named; or on a network of
its own, in user mode or a TAP device. Nodes are those of docs/misc/xenstore-paths.pandoc, as libxl writes them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.control import Control
from bivisor.dom0.net.bridge import Bridge
from bivisor.dom0.net.counters import Counters
from bivisor.dom0.net.netback import Netback
from bivisor.dom0.net.wire import Wire
from bivisor.dom0.xenbus.node import Node, Refused
from bivisor.dom0.xenbus.service import Service
from bivisor.dom0.xenstore.client import StoreClient
from bivisor.errors import UsageError
from bivisor.host.loop import Loop
from bivisor.host.passt import Passt
from bivisor.host.tap import Tap
from bivisor.platform.virtio.net import NetBackend
from bivisor.toolstack import xendevices
from bivisor.toolstack.xendevices import XenDevice
from bivisor.toolstack.xlconfig.vif import VifSpec

OUI = bytes.fromhex("00163e")
"""The first bytes of addresses that are made up: the Xen project's own."""

MAX_VIFS = 256


class OwnedWire(NetBackend, Protocol):
    """A wire that somebody opened and has to close."""

    def close(self) -> None:
        """Hang up."""


@dataclass(frozen=True, slots=True)
class Vif:
    """Interface `devid` of a domain: what it was made as, and its address."""

    domid: int
    devid: int
    mac: str
    spec: VifSpec

    @property
    def device(self) -> XenDevice:
        """Where its nodes are."""
        return XenDevice("vif", self.domid, self.devid)


@dataclass(frozen=True, slots=True)
class VifStatus:
    """What `xl network-list` shows of an interface; 0 for a number that its front-end has not told."""

    vif: Vif
    state: XenbusState
    event_channel: int
    tx_ring_ref: int
    rx_ring_ref: int
    sent: Counters
    received: Counters


class Networks:
    """The bridges and interfaces of one host. `tap(name)` and `user()` open the wires that lead out of it.

    Made and closed with the loop's lock held. `attach`, `detach` and `forget` wait, so they are called without it and
    not from the loop's thread.
    """

    def __init__(
        self,
        control: Control,
        store: StoreClient,
        *,
        tap: Callable[[Loop, str], OwnedWire] = Tap,
        user: Callable[[Loop], OwnedWire] = Passt,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._control = control
        self._loop = control.loop
        self._store = store
        self._tap = tap
        self._user = user
        self._random = random
        self._lock = threading.Lock()
        self._bridges: dict[str, Bridge] = {}
        self._wires: dict[str, tuple[Wire, OwnedWire]] = {}
        self._vifs: dict[tuple[int, int], Vif] = {}
        self._service = Service(control, store, "vif", self._netback)

    def _netback(self, node: Node, fail: Callable[[Refused], None]) -> Netback:
        return Netback(node, fail, self._bridges.get)

    # ---------------------------------------------------------------- bridges

    def bridge(self, name: str, *, patient: bool = False) -> Bridge:
        """The bridge called `name`, made if there is none. With the loop's lock held."""
        bridge = self._bridges.get(name)
        if bridge is None:
            bridge = self._bridges[name] = Bridge(name, self._loop, patient=patient)
        return bridge

    def plug(self, name: str, wire: OwnedWire) -> None:
        """Lead bridge `name` out of this host through `wire`, which is closed with it. UsageError if one does already.

        With the loop's lock held.
        """
        if name in self._wires:
            raise UsageError(f"bridge {name} has a way out already")
        self._wires[name] = Wire(self.bridge(name), wire), wire

    def unplug(self, name: str) -> None:
        """Close the wire of bridge `name`; none is no error. It may wait, so it is called without the loop's lock."""
        with self._loop.lock:
            pair = self._wires.pop(name, None)
            if pair is not None:
                pair[0].close()
        if pair is not None:
            pair[1].close()

    # ---------------------------------------------------------------- interfaces

    def attach(self, domid: int, spec: VifSpec, *, timeout: float = xendevices.TIMEOUT_S) -> Vif:
        """Give domain `domid` an interface, and wait until the back-end has it. UsageError, HostError.

        Without `spec.devid` it gets the lowest number that is free, without `spec.mac` an address of the Xen project's.
        """
        with self._lock:
            vif = self._number(domid, spec)
            name = self._network(vif)
            nodes: dict[str, str | int] = {
                "mac": vif.mac,
                "bridge": name,
                "handle": vif.devid,
                "type": "vif",
                "hotplug-status": "connected",
            }
            own: dict[str, str | int] = {
                "handle": vif.devid,
                "mac": vif.mac,
                "mtu": spec.mtu,
                "trusted": int(spec.trusted),
            }
            try:
                device = XenDevice("vif", domid, vif.devid, nodes, own)
                xendevices.attach(self._loop, self._store, device, timeout=timeout)
            except BaseException:
                self._leave(vif)
                raise
            self._vifs[domid, vif.devid] = vif
            return vif

    def join(self, vif: Vif, wire: OwnedWire) -> Callable[[], None]:
        """Put another wire, of an emulated card, on the network of an interface, with the loop's lock held. What is
        returned takes it off and closes it."""
        port = Wire(self.bridge(_network_of(vif)), wire)

        def leave() -> None:
            port.close()
            wire.close()

        return leave

    def detach(self, domid: int, devid: int, *, timeout: float = xendevices.TIMEOUT_S, force: bool = False) -> None:
        """Take interface `devid` away. UsageError if there is none, or the guest does not let go and not `force`."""
        with self._lock:
            vif = self._vifs.get((domid, devid))
            if vif is None:
                raise UsageError(f"domain {domid} has no vif {devid}")
            xendevices.detach(self._loop, self._store, vif.device, timeout=timeout, force=force)
            self._settle()
            del self._vifs[domid, devid]
            self._leave(vif)

    def forget(self, domid: int) -> None:
        """The domain is going: take all its interfaces away and let go of its memory, without asking it."""
        with self._lock:
            mine = [vif for vif in self._vifs.values() if vif.domid == domid]
            with self._loop.lock:
                for vif in mine:
                    xendevices.remove(self._store, vif.device)
            self._settle()
            for vif in mine:
                del self._vifs[domid, vif.devid]
                self._leave(vif)

    def find(self, domid: int, words: str) -> Vif:
        """The interface that has this number or address, as network-detach names one. UsageError."""
        for vif in self.vifs(domid):
            if words in (str(vif.devid), vif.mac):
                return vif
        raise UsageError(f"domain {domid} has no vif {words}")

    def vifs(self, domid: int) -> list[Vif]:
        """The interfaces of a domain, by number."""
        return [vif for (owner, _), vif in sorted(self._vifs.items()) if owner == domid]

    def status(self, domid: int) -> list[VifStatus]:
        """How the interfaces of a domain are, by number."""
        with self._loop.lock:
            return [self._status(vif) for vif in self.vifs(domid)]

    def _status(self, vif: Vif) -> VifStatus:
        front, queue = vif.device.frontend_path, ""
        if self._store.get(f"{front}/queue-0/tx-ring-ref") is not None:
            queue = "queue-0/"

        def number(name: str) -> int:
            text = self._store.get(f"{front}/{queue}{name}") or ""
            return int(text) if text.isascii() and text.isdigit() and len(text) < 11 else 0

        state = self._store.get(f"{vif.device.backend_path}/state") or "0"
        link = self._service.links.get((str(vif.domid), str(vif.devid)))
        device = link.device if link is not None else None
        sent, received = (device.sent, device.received) if isinstance(device, Netback) else (Counters(), Counters())
        return VifStatus(
            vif,
            XenbusState(int(state)),
            number("event-channel-tx") or number("event-channel"),
            number("tx-ring-ref"),
            number("rx-ring-ref"),
            sent,
            received,
        )

    def _number(self, domid: int, spec: VifSpec) -> Vif:
        taken = {devid for owner, devid in self._vifs if owner == domid}
        devid = spec.devid
        if devid < 0:
            devid = next((number for number in range(MAX_VIFS) if number not in taken), -1)
        if devid in taken or devid < 0:
            raise UsageError(f"domain {domid} has a vif {devid} already" if devid >= 0 else "that are too many vifs")
        macs = {vif.mac for vif in self._vifs.values()}
        if spec.mac in macs:
            raise UsageError(f"MAC address {spec.mac}: another interface of this host has it")
        mac = spec.mac
        while not mac or mac in macs:
            mac = ":".join(f"{byte:02x}" for byte in OUI + self._random(3))
        return Vif(domid, devid, mac, spec)

    def _network(self, vif: Vif) -> str:
        """The name of the bridge that the interface is on, which is there then."""
        spec = vif.spec
        name = _network_of(vif)
        with self._loop.lock:
            self.bridge(name, patient=spec.kind != "vif")
            if spec.kind != "vif":
                try:
                    wire = self._tap(self._loop, spec.vifname) if spec.kind == "tap" else self._user(self._loop)
                except BaseException:
                    del self._bridges[name]
                    raise
                self.plug(name, wire)
        return name

    def _leave(self, vif: Vif) -> None:
        """The interface is gone: a network that was its own goes with it."""
        if vif.spec.kind != "vif":
            self.unplug(_own_bridge(vif))
            with self._loop.lock:
                del self._bridges[_own_bridge(vif)]

    def _settle(self) -> None:
        """Wait until the back-end has seen what was written into the store: it holds nothing then of what is gone."""
        done = threading.Event()
        self._loop.call_soon(done.set)  # behind what the back-end has to do, for that came first
        done.wait(xendevices.TIMEOUT_S)

    def close(self) -> None:
        """Let go of every domain and close every wire. With the loop's lock held."""
        self._service.close()
        for name in list(self._wires):
            self.unplug(name)
        self._bridges.clear()
        self._vifs.clear()


def _network_of(vif: Vif) -> str:
    return vif.spec.bridge if vif.spec.kind == "vif" else _own_bridge(vif)


def _own_bridge(vif: Vif) -> str:
    return f"vif{vif.domid}.{vif.devid}"
