"""One domain of a host, from Python: its console, its orders, its memory, and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from bivisor.abi.xen.xen import ShutdownReason
from bivisor.boot.cache import Cache, uncached
from bivisor.debug.server import Server
from bivisor.debug.target import Target, target_of
from bivisor.dom0.console import Console
from bivisor.errors import GuestTimeout, UsageError
from bivisor.events import Event, Events, Life
from bivisor.events.probe import now
from bivisor.toolstack import domnodes, xendevices
from bivisor.toolstack.agent import Agent
from bivisor.toolstack.builders import build
from bivisor.toolstack.faults import Eventful
from bivisor.toolstack.feed import Feed
from bivisor.toolstack.gdb import serve
from bivisor.toolstack.hvm import HvmDomain
from bivisor.toolstack.hvmdevices import plug_in_card, plug_in_disk
from bivisor.toolstack.inside import Inside
from bivisor.toolstack.inspect import Inspected, Inspector
from bivisor.toolstack.xendevices import XenDevice
from bivisor.toolstack.xlconfig import DomainConfig
from bivisor.xen.errors import XenError

if TYPE_CHECKING:
    from types import TracebackType

    from bivisor.toolstack.domscreen import DomScreen
    from bivisor.toolstack.xenhost import XenHost

Nodes = Mapping[str, str | int]
ORDERS = ("poweroff", "reboot", "halt", "suspend")
KIB = 1 << 10
_SLACK_KIB = 1024
"""What a domain may have beyond its target, as libxl grants it (LIBXL_MAXMEM_CONSTANT)."""


class DomU(Inside, Inspected, Eventful):
    """A domain. `path` is its directory in the store; `feed` what it says; `config` what it is made of.

    Made by `XenHost.create`; `with` destroys it. With `records` all that it says is kept for `wait_for` and `output`.
    With `agent`, its initramfs is one with the script of an agent, which runs commands.
    """

    def __init__(
        self,
        host: XenHost,
        config: DomainConfig,
        *,
        cache: Cache | None,
        feed: Feed,
        records: bool = True,
        agent: bool = False,
    ) -> None:
        self._host = host
        self.config = config
        self.kernel = config.kernel
        self.name = config.name
        self.uuid = config.uuid
        self.feed = feed
        self.stopped = threading.Event()
        self.gone = threading.Event()
        self.reason: ShutdownReason | None = None
        self.began = time.time()
        self.next_config: DomainConfig | None = None
        """What it is made of when it reboots, where that is to be something else than `config`."""
        self._gdb: Server | None = None
        self._screen: DomScreen | None = None
        self._screens = threading.Lock()
        self._plugged: list[XenDevice] = []
        self._news = threading.Condition()
        self._said = bytearray()
        self._seen = 0
        self._built = build(host.control, host.engine, config, cache, feed)
        self.domid = self._built.domid
        self.path = f"/local/domain/{self.domid}"
        self._tell("created", self.name)
        host.control.domains.set_handle(self.domid, UUID(config.uuid))
        with host.loop.lock:
            domnodes.write_domain(host.store, self._person(), self.rings)
            host.store.introduce(self.domid, self._built.store_gfn, self._built.store_port)
            hvm = self._built if isinstance(self._built, HvmDomain) else None
            said = Feed() if hvm else feed  # the console of an HVM domain is its COM1; hvc0 is one more
            self.console = Console(host.control, self.domid, self._built.console_gfn, self._built.console_port, said)
            if records:
                feed.listen(self._hear)
            feed.input = self.console.send if hvm is None else hvm.type_serial
            feed.untaken = lambda: self.console.untaken
            if agent:
                self._agent = self._connect_agent()
        self._inspector = Inspector(self.target, config.kernel, cache or uncached)

    def _connect_agent(self) -> Agent:
        """With the loop's lock held."""

        def send(data: bytes) -> None:
            with self._host.loop.lock:
                channel.send(data)

        agent = Agent(send, self.stopped.is_set, self.name)
        channel = self._host.channels.attach(self.domid, agent.hear)
        return agent

    def attach_devices(self) -> None:
        """Give it the disks and networks of its configuration, before it runs for the first time. UsageError."""
        built, host = self._built, self._host
        for spec in self.config.vifs:  # cards come first, as libxl gives them to its device model
            vif = host.networks.attach(self.domid, spec)
            if isinstance(built, HvmDomain):
                plug_in_card(host, built, vif)
        for disk in self.config.disks:
            if isinstance(built, HvmDomain):
                plug_in_disk(host, built, disk, self.config.hdtype)
            else:
                host.disks.attach(self.domid, disk)
        if isinstance(built, HvmDomain):
            built.power_on()
            if self.config.vnc is not None:
                port = self.screen.port
                with host.loop.lock:
                    host.store.write(f"{self.path}/console/vnc-listen", self.config.vnc.listen)
                    host.store.write(f"{self.path}/console/vnc-port", str(port))
        self.devices_changed()

    @property
    def screen(self) -> DomScreen:
        """Its screen, keyboard and mouse. UsageError where it has none."""
        from bivisor.toolstack.domscreen import DomScreen

        built = self._built
        if not isinstance(built, HvmDomain) or built.board is None:
            raise UsageError(f"domain {self.name} has no screen: it is no HVM domain")
        with self._screens:
            if self._screen is None:
                self._screen = DomScreen(built.board, self.name, self.config.vnc)
            return self._screen

    @property
    def target(self) -> Target:
        """Its processors and memory, for a debugger."""
        guest = self._built.guest
        seen = guest.debugged
        return target_of(self._host.engine, seen or guest.vcpus, guest.memory, guest.control, traps_int3=bool(seen))

    def serve_gdb(self, text: str) -> None:
        """Let gdb attach, before it runs for the first time: [HOST:]PORT[,wait]. UsageError."""
        self._gdb = serve(self.target, text, self._kill)

    @property
    def gdb_port(self) -> int:
        """The TCP port that gdb may attach to. UsageError where it was created without `gdb`."""
        if self._gdb is None:
            raise UsageError(f"domain {self.name} was created without gdb")
        return self._gdb.port

    @property
    def events(self) -> Events:
        """See `Eventful.events`: those of its host."""
        return self._host.events

    def _concerns(self, event: Event) -> bool:
        return self.domid in (event.domain, getattr(event, "granter", -1))

    def plug(
        self,
        kind: str,
        devid: int,
        *,
        backend: str = "",
        backend_nodes: Nodes | None = None,
        frontend_nodes: Nodes | None = None,
    ) -> XenDevice:
        """Give it one more device of type `kind`, served by the back-end of type `backend` (see `XenHost.add_backend`),
        and wait until that has it open. UsageError where it cannot."""
        device = XenDevice(kind, self.domid, devid, backend_nodes or {}, frontend_nodes or {}, backend)
        xendevices.attach(self._host.loop, self._host.store, device)
        self._plugged.append(device)
        return device

    def _kill(self) -> None:
        self._host.xen.shutdown(self._built.domain, ShutdownReason.POWEROFF)

    def devices_changed(self) -> None:
        """Devices came or went: when it reboots it has those that it has now, under the same numbers and addresses."""
        vifs = self._host.networks.vifs(self.domid)
        specs = tuple(replace(vif.spec, mac=vif.mac, devid=vif.devid) for vif in vifs)
        discs = [disk for disk in self.config.disks if disk.cdrom]
        disks = [vbd.spec for vbd in self._host.disks.vbds(self.domid)]
        self.config = replace(self.config, vifs=specs, disks=(*disks, *discs))

    def _person(self) -> domnodes.Person:
        config = self.config
        return domnodes.Person(
            self.domid,
            self.name,
            self.uuid,
            config.memory // KIB,
            config.maxmem // KIB,
            config.vcpus,
            config.maxvcpus,
        )

    @property
    def rings(self) -> domnodes.Rings:
        """Where the rings of its console and of the store are, which it is created with."""
        built = self._built
        return domnodes.Rings(built.console_gfn, built.console_port, built.store_gfn, built.store_port)

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Let a domain that was created paused run."""
        self.unpause()

    def pause(self) -> None:
        """Hold its processors, until as many `unpause`. When it returns, no code of the guest's runs."""
        self._host.control.domains.pause(self.domid)
        self._built.guest.wait_until_still()
        self._tell("paused")

    def _tell(self, what: str, detail: str = "") -> None:
        events = self._host.events
        events.names[self.domid] = self.name
        events.tell(Life(now(), self.domid, -1, 0, what, detail))

    def unpause(self) -> None:
        """Undo one `pause`, or the one that a domain is created with. UsageError where it is not paused."""
        try:
            self._host.control.domains.unpause(self.domid)
        except XenError:
            raise UsageError(f"domain {self.name} is not paused") from None
        self._tell("unpaused")

    def shutdown(self, order: str = "poweroff") -> None:
        """Ask the guest's kernel, through its node control/shutdown. `order` is one of `ORDERS`."""
        if order not in ORDERS:
            raise UsageError(f"order {order!r} is none of {', '.join(ORDERS)}")
        self._control("shutdown", order)

    def acknowledged(self) -> bool:
        """Whether the guest has taken the last order: it empties the node."""
        with self._host.loop.lock:
            return not self._host.store.get(f"{self.path}/control/shutdown")

    def sysrq(self, letter: str) -> None:
        """Send a magic SysRq key to the guest's kernel."""
        if len(letter) != 1 or not letter.isascii() or not letter.isalnum():
            raise UsageError(f"sysrq {letter!r}: it is one letter or digit")
        self._control("sysrq", letter)

    def _control(self, node: str, value: str) -> None:
        with self._host.loop.lock:
            if self.stopped.is_set():
                raise UsageError(f"domain {self.name} has shut down already")
            self._host.store.write(f"{self.path}/control/{node}", value)

    def wait(self, timeout: float | None = None) -> ShutdownReason | None:
        """Wait until it has shut down; None after `timeout` seconds. An error of the host's is raised here."""
        if not self.stopped.wait(timeout):
            return None
        error = self._host.error or self._built.guest.error
        if error is not None:
            raise error
        return self.reason or self._built.domain.shutdown_reason

    def destroy(self) -> None:
        """End it and give back everything that it had. From any thread but the loop's and its own."""
        self._host.destroy(self)

    def close(self) -> None:
        """What `destroy` does once the host has forgotten the domain."""
        host = self._host
        self._tell("destroyed", self.name)
        host.events.names.pop(self.domid, None)
        self._built.guest.stop()
        if self._gdb is not None:
            self._gdb.ended(int(self.reason or 0))
            self._gdb.close()
        self._inspector.close()
        if self._screen is not None:
            self._screen.close()
        host.networks.forget(self.domid)
        host.disks.forget(self.domid)
        with host.loop.lock:
            host.channels.forget(self.domid)
            for device in self._plugged:
                xendevices.remove(host.store, device)
        if self._plugged:
            host.settle()
        with host.loop.lock:
            self.console.close()
            self.feed.leave(self._hear)
            host.store.release(self.domid)
            domnodes.remove_domain(host.store, self._person())
        self._built.close()
        self.stopped.set()
        self.gone.set()

    def ended(self, reason: ShutdownReason | None) -> None:
        """The host tells that it has shut down."""
        self.reason = reason
        self._tell("shutdown", "" if reason is None else reason.name.lower())
        with self._news:
            self.stopped.set()
            self._news.notify_all()
        if self._agent is not None:
            self._agent.ended()

    @property
    def error(self) -> BaseException | None:
        """What went wrong in the host while it ran the domain."""
        return self._built.guest.error

    # ---------------------------------------------------------------- console

    def send(self, text: bytes | str) -> None:
        """Type `text` on its console; a line ends with "\\n"."""
        with self._host.loop.lock:
            self.feed.input(text.encode() if isinstance(text, str) else text)

    def _hear(self, data: bytes) -> None:
        with self._news:
            self._said += data
            self._news.notify_all()

    @property
    def output(self) -> bytes:
        """All that it has said since it was created."""
        with self._news:
            return bytes(self._said)

    def wait_for(self, words: bytes | str, timeout: float = 60.0) -> bytes:
        """Wait until it says `words`, and give what it said since the last such call, up to and with them.

        GuestTimeout after `timeout` seconds, or when the domain ends without having said them.
        """
        wanted = words.encode() if isinstance(words, str) else words
        deadline = time.monotonic() + timeout
        with self._news:
            while (at := self._said.find(wanted, self._seen)) < 0:
                left = deadline - time.monotonic()
                if left <= 0 or self.stopped.is_set():
                    rest = bytes(self._said[self._seen :])[-200:]
                    why = "ended" if self.stopped.is_set() else f"ran for {timeout:g} s"
                    raise GuestTimeout(f"{self.name} {why} without saying {wanted!r}; it ended with {rest!r}")
                self._news.wait(left)
            start, self._seen = self._seen, at + len(wanted)
            return bytes(self._said[start : self._seen])

    # ---------------------------------------------------------------- what it has

    def rename(self, name: str) -> None:
        """Its name is another now. The host has checked that it can be."""
        self.name = name
        self.config = replace(self.config, name=name)
        with self._host.loop.lock:
            self._host.store.write(f"{self.path}/name", name)
            self._host.store.write(f"{self._person().vm}/name", name)

    @property
    def memory_target(self) -> int:
        """The bytes that its balloon driver was asked to come to."""
        with self._host.loop.lock:
            return int(self._host.store.read(f"{self.path}/memory/target")) * KIB

    def set_memory(self, size: int) -> None:
        """Ask its balloon driver to come to `size` bytes, and let it have no more. UsageError above maxmem."""
        most = self.config.maxmem
        if size > most:
            raise UsageError(f"domain {self.name} has at most {most >> 20} MiB (maxmem), so not {size >> 20} MiB")
        if size < 1 << 20:
            raise UsageError(f"{size} bytes are too little for a domain")
        self._host.control.domains.set_max_mem(self.domid, size // KIB + _SLACK_KIB)
        with self._host.loop.lock:
            self._host.store.write(f"{self.path}/memory/target", size // KIB)

    def set_memory_limit(self, size: int) -> None:
        """How much it may have at most, in bytes, whatever its balloon driver asks for. UsageError below its target."""
        if size < self.memory_target:
            raise UsageError(
                f"domain {self.name} is to have {self.memory_target >> 20} MiB, so its limit cannot be"
                f" {size >> 20} MiB: mem-set it first"
            )
        self._host.control.domains.set_max_mem(self.domid, size // KIB + _SLACK_KIB)

    def set_vcpus(self, count: int) -> None:
        """Ask its kernel to use `count` processors, the first ones. UsageError for none, and above maxvcpus."""
        most = self.config.maxvcpus
        if not 1 <= count <= most:
            raise UsageError(f"domain {self.name} has 1 to {most} processors (maxvcpus), so not {count}")
        with self._host.loop.lock:
            for number in range(most):
                state = "online" if number < count else "offline"
                self._host.store.write(f"{self.path}/cpu/{number}/availability", state)

    @property
    def counters(self) -> dict[str, int]:
        """Exits of its processor by reason."""
        return dict(self._built.guest.vcpu.counters)

    def __enter__(self) -> DomU:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()
