"""What commands can have a host do: one method for each request, by its name. Results are what JSON has."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from bivisor.abi.xen.domctl import Trigger
from bivisor.errors import UsageError
from bivisor.host.logfile import LogFile
from bivisor.toolstack.domu import DomU
from bivisor.toolstack.feed import Feed
from bivisor.toolstack.hostd import rows
from bivisor.toolstack.hostd.picture import picture, store_nodes
from bivisor.toolstack.hostd.place import Place
from bivisor.toolstack.hostd.server import Peer
from bivisor.toolstack.hostd.stream import ConsoleStream
from bivisor.toolstack.hostd.tail import offer_tail
from bivisor.toolstack.lifecycle import LifeCycle
from bivisor.toolstack.tracing.counts import Counts
from bivisor.toolstack.tracing.stream import TraceStreams
from bivisor.toolstack.xenhost import XenHost
from bivisor.toolstack.xlconfig import DiskSpec, DomainConfig, VifSpec

ACKNOWLEDGE_S = 10.0
"""How long a guest has for taking an order; a kernel that listens does so at once."""
_LOOK_S = 0.1
_PAUSED = 2  # where "p" is in what xl list shows as a state
_TRIGGERS = {"nmi": Trigger.NMI, "power": Trigger.POWER}


class Methods:
    """The requests that a host answers. Public names without underscore are the methods' names."""

    def __init__(self, host: XenHost, place: Place, stop: Callable[[], None]) -> None:
        self._host = host
        self._place = place
        self._stop = stop
        self._life = LifeCycle(host)
        self._began = time.time()
        self._stopping = False
        self._traces = TraceStreams(host.events)
        self.trace = self._traces.trace
        self._counts = Counts(host.events)

    def table(self) -> dict[str, Callable[..., Any]]:
        """Name to method."""
        names = (name for name in dir(self) if not name.startswith("_") and name not in ("table", "close"))
        return {name: getattr(self, name) for name in names}

    def close(self) -> None:
        """End what goes on in the background."""
        self._traces.close()
        self._counts.close()
        self._life.close()

    # ---------------------------------------------------------------- the host

    def status(self, peer: Peer) -> dict[str, Any]:
        """Who the host is and since when."""
        del peer
        return {
            "pid": os.getpid(),
            "engine": self._host.why or self._host.engine.name,
            "since": self._began,
            "domains": len(self._host.domains),
            "state": str(self._place.folder),
            "xenstored": str(self._place.xenstored),
        }

    def stop(self, peer: Peer, timeout: float, force: bool = False) -> dict[str, Any]:
        """Shut the domains down within `timeout` seconds (with `force`: do not), destroy who is left, and end. One that
        is paused would hear of it never, so it is destroyed."""
        self._stopping = True
        self._life.no_more_restarts()
        paused = {row["domid"] for row in rows.domain_rows(self._host) if row["state"][_PAUSED] == "p"}
        able = [domain for domain in self._host.domains.values() if domain.domid not in paused]
        waiting = [] if force else [domain for domain in able if self._ask_off(domain)]
        deadline = time.monotonic() + timeout
        while waiting and time.monotonic() < deadline and not peer.is_gone():
            waiting = [domain for domain in waiting if not domain.stopped.wait(_LOOK_S)]
        destroyed = [domain.name for domain in self._host.domains.values() if not domain.stopped.is_set()]
        self._stop()
        return {"destroyed": destroyed}

    @staticmethod
    def _ask_off(domain: DomU) -> bool:
        try:
            domain.shutdown()
        except UsageError:
            return False
        return True

    def info(self, peer: Peer) -> dict[str, Any]:
        """See `rows.info_fields`."""
        del peer
        return rows.info_fields(self._host)

    def top(self, peer: Peer) -> dict[str, Any]:
        """What the domains have done so far, as far as somebody asks; see `Counts.look`."""
        del peer
        found = self._counts.look()
        return {**found, "domains": rows.domain_rows(self._host), "engine": self._host.engine.name}

    def dmesg(self, peer: Peer, clear: bool = False) -> str:
        """The hypervisor's console ring."""
        del peer
        return self._host.control.domains.read_console(clear=clear)[0].decode(errors="replace")

    # ---------------------------------------------------------------- looking

    def list(self, peer: Peer) -> list[dict[str, Any]]:
        """See `rows.domain_rows`."""
        del peer
        return rows.domain_rows(self._host)

    def vcpu_list(self, peer: Peer, domains: Iterable[str] = ()) -> Any:
        """See `rows.vcpu_rows`."""
        del peer
        return rows.vcpu_rows(
            self._host, [0 if words in ("0", "Domain-0") else self._find(words).domid for words in domains]
        )

    def _find(self, domain: str) -> DomU:
        return self._host.find(domain)

    def picture(self, peer: Peer) -> dict[str, Any]:
        """See `picture.picture`."""
        del peer
        return picture(self._host)

    def store_nodes(self, peer: Peer, path: str) -> Any:
        """The nodes right below `path` in the store: name, value, and whether there are more below."""
        del peer
        return store_nodes(self._host, path)

    # ---------------------------------------------------------------- life

    def create(self, peer: Peer, config: dict[str, Any], paused: bool = False) -> dict[str, Any]:
        """A domain of this configuration, unless who wants it has gone meanwhile."""
        if self._stopping:
            raise UsageError("the host is about to stop")
        wanted = DomainConfig.from_json(config).completed()
        log = LogFile(self._place.console_log(wanted.name))
        domain = self._host.create_from(wanted, feed=Feed(log.write, log.close), paused=True, records=False)
        if peer.is_gone():
            domain.destroy()
        elif not paused:
            domain.unpause()
        return {"domid": domain.domid, "name": domain.name}

    def destroy(self, peer: Peer, domain: str) -> None:
        """At once, whatever it does."""
        del peer
        self._find(domain).destroy()

    def pause(self, peer: Peer, domain: str) -> None:
        """Hold its processors."""
        del peer
        self._find(domain).pause()

    def unpause(self, peer: Peer, domain: str) -> None:
        """Let them go on."""
        del peer
        self._find(domain).unpause()

    def order(self, peer: Peer, domain: str, order: str) -> dict[str, Any]:
        """Ask the guest's kernel to shut down or reboot. UsageError where it does not take the order."""
        found = self._find(domain)
        found.shutdown(order)
        deadline = time.monotonic() + ACKNOWLEDGE_S
        while not (found.stopped.is_set() or found.acknowledged()):
            if time.monotonic() > deadline or peer.is_gone():
                raise UsageError(
                    f"domain {found.name} does not take the order within {ACKNOWLEDGE_S:g} s: its kernel does not"
                    " listen (xl destroy ends it all the same)"
                )
            found.stopped.wait(_LOOK_S / 5)
        return {"domid": found.domid}

    def wait(self, peer: Peer, domain: str, death: bool = False) -> dict[str, Any]:
        """Wait until it has shut down, or until it is gone."""
        found = self._find(domain)
        event: threading.Event = found.gone if death else found.stopped
        while not event.wait(_LOOK_S) and not peer.is_gone():
            pass
        return {"domid": found.domid, "reason": None if found.reason is None else int(found.reason)}

    def rename(self, peer: Peer, domain: str, name: str) -> None:
        """Give it another name."""
        del peer
        self._host.rename(self._find(domain), name)

    def config_update(self, peer: Peer, domain: str, config: dict[str, Any]) -> None:
        """What it is made of when it reboots."""
        del peer
        found = self._find(domain)
        found.next_config = DomainConfig.from_json(config | {"name": found.name, "uuid": found.uuid}).completed()

    # ---------------------------------------------------------------- what it has

    def mem_set(self, peer: Peer, domain: str, size: int) -> None:
        """The target of its balloon driver, in bytes."""
        del peer
        self._find(domain).set_memory(size)

    def mem_max(self, peer: Peer, domain: str, size: int) -> None:
        """Its limit, in bytes."""
        del peer
        self._find(domain).set_memory_limit(size)

    def vcpu_set(self, peer: Peer, domain: str, count: int) -> None:
        """How many processors its kernel is to use."""
        del peer
        self._find(domain).set_vcpus(count)

    def sysrq(self, peer: Peer, domain: str, letter: str) -> None:
        """A magic SysRq key."""
        del peer
        self._find(domain).sysrq(letter)

    def trigger(self, peer: Peer, domain: str, trigger: str, vcpu: int = 0) -> None:
        """An NMI, or what the orders come to for a domain without ACPI buttons."""
        del peer
        found = self._find(domain)
        if trigger not in _TRIGGERS or (trigger == "power" and found.config.type != "hvm"):
            kind = found.config.type.upper()
            has = "an HVM domain has a power button alone" if kind == "HVM" else f"a {kind} domain has no ACPI buttons"
            raise UsageError(f"trigger {trigger}: {has}; xl shutdown and xl reboot ask its kernel")
        self._host.control.domains.trigger(found.domid, _TRIGGERS[trigger], vcpu)

    # ---------------------------------------------------------------- devices

    def block_attach(self, peer: Peer, domain: str, disk: dict[str, Any]) -> None:
        """Another disk."""
        del peer
        found = self._find(domain)
        self._host.disks.attach(found.domid, DiskSpec.from_json(disk))
        found.devices_changed()

    def block_detach(self, peer: Peer, domain: str, device: str, force: bool = False) -> None:
        """Take away the one that is called so or has this number."""
        del peer
        found = self._find(domain)
        self._host.disks.detach(self._host.disks.find(found.domid, device), force=force)
        found.devices_changed()

    def block_list(self, peer: Peer, domain: str) -> Any:
        """See `rows.block_rows`."""
        del peer
        return rows.block_rows(self._host, self._find(domain).domid)

    def network_attach(self, peer: Peer, domain: str, vif: dict[str, Any]) -> dict[str, Any]:
        """Another network interface."""
        del peer
        found = self._find(domain)
        made = self._host.networks.attach(found.domid, VifSpec.from_json(vif))
        found.devices_changed()
        return {"devid": made.devid, "mac": made.mac}

    def network_detach(self, peer: Peer, domain: str, device: str, force: bool = False) -> None:
        """Take away the one with this number or address."""
        del peer
        found = self._find(domain)
        vif = self._host.networks.find(found.domid, device)
        self._host.networks.detach(found.domid, vif.devid, force=force)
        found.devices_changed()

    def network_list(self, peer: Peer, domain: str) -> Any:
        """See `rows.network_rows`."""
        del peer
        return rows.network_rows(self._host, self._find(domain).domid)

    # ---------------------------------------------------------------- events

    def events(self, peer: Peer, **wanted: Any) -> None:
        """The connection carries the newest events from now on: see `tail.offer_tail`."""
        offer_tail(self._host.events, peer, **wanted)

    # ---------------------------------------------------------------- console

    def console(self, peer: Peer, domain: str) -> None:
        """The connection is the domain's console from now on."""
        feed = self._find(domain).feed

        def take(end: socket.socket, typed: bytes) -> None:
            with self._host.loop.lock:
                ConsoleStream(self._host.loop, feed, end, typed)

        peer.take = take

    def screen(self, peer: Peer, domain: str) -> None:
        """The connection carries the RFB protocol from now on: the domain's screen, keyboard and mouse."""
        screen = self._find(domain).screen

        def take(end: socket.socket, _: bytes) -> None:
            screen.adopt(end)

        peer.take = take

    def screenshot(self, peer: Peer, domain: str) -> str:
        """A picture of its screen: a PNG file, in base64."""
        del peer
        return base64.b64encode(self._find(domain).screen.png()).decode()

    def keys(self, peer: Peer, domain: str, words: Iterable[str], text: bool = False) -> None:
        """Press chords, or with `text` type the words as a line."""
        del peer
        screen = self._find(domain).screen
        if text:
            screen.type(" ".join(words) + "\n")
        else:
            screen.press([*words])
