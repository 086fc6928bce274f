"""A Xen host in this process: the hypervisor, Dom0 with its store, and domains to create, talk to and destroy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from bivisor import boot
from bivisor.abi.xen.xen import ShutdownReason
from bivisor.cpu.contract import Engine
from bivisor.cpu.select import open_engine
from bivisor.dom0 import store
from bivisor.dom0.console import Console
from bivisor.dom0.control import Control
from bivisor.dom0.xenstore.client import StoreClient
from bivisor.host.loop import EventLoop
from bivisor.toolstack.pvh import PvhDomain
from bivisor.xen.hypervisor import Xen

MIB = 1 << 20


class XenHost:
    """Hypervisor and Dom0. `with` closes it, and with it every domain."""

    def __init__(self, engine: Engine | str = "soft") -> None:
        self._owns_engine = isinstance(engine, str)
        self.engine = open_engine(engine)[0] if isinstance(engine, str) else engine
        self.error: BaseException | None = None
        self.loop = EventLoop(self._failed)
        self.xen = Xen()
        self.control = Control(self.xen, self.loop)
        self.server = store.start(self.control)
        self.store = StoreClient(self.server)
        self.domains: dict[int, DomU] = {}
        self.loop.start()

    def _failed(self, error: BaseException) -> None:
        self.error = error
        for domain in list(self.domains.values()):
            domain.stopped.set()

    def create(
        self,
        name: str,
        kernel: Path,
        *,
        memory: int = 256 * MIB,
        initrd: Path | None = None,
        cmdline: str = "console=hvc0",
        console: Callable[[bytes], None] = lambda _: None,
        cache: boot.Cache | None = None,
    ) -> DomU:
        """A running PVH domain. `console` gets what it writes to its console."""
        domain = DomU(self, name, kernel, memory, initrd, cmdline, console, cache)
        self.domains[domain.domid] = domain
        domain.start()
        return domain

    def close(self) -> None:
        """Destroy every domain and give everything back."""
        for domain in list(self.domains.values()):
            domain.destroy()
        with self.loop.lock:
            self.store.close()
            self.server.close()
        self.loop.close()
        self.control.close()
        if self._owns_engine:
            self.engine.close()

    def __enter__(self) -> XenHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DomU:
    """One domain: its place in the store, its console, and its end."""

    def __init__(
        self,
        host: XenHost,
        name: str,
        kernel: Path,
        memory: int,
        initrd: Path | None,
        cmdline: str,
        console: Callable[[bytes], None],
        cache: boot.Cache | None,
    ) -> None:
        self._host = host
        self.name = name
        self.stopped = threading.Event()
        self._built = PvhDomain(
            host.control, host.engine, kernel, memory=memory, initrd=initrd, cmdline=cmdline, cache=cache
        )
        self.domid = self._built.domid
        self.path = f"/local/domain/{self.domid}"
        self._built.guest.on_stop = self.stopped.set
        with host.loop.lock:
            self._write_store(memory)
            host.store.introduce(self.domid, self._built.store_gfn, self._built.store_port)
            self.console = Console(host.control, self.domid, self._built.console_gfn, self._built.console_port, console)

    def _write_store(self, memory: int) -> None:
        """The nodes that a toolstack gives a new domain (docs/misc/xenstore-paths.pandoc)."""
        client, path = self._host.store, self.path
        client.mkdir(path)
        client.set_permissions(path, ("n0", f"r{self.domid}"))
        kib = memory >> 10
        nodes: dict[str, str | int] = {
            "name": self.name,
            "domid": self.domid,
            "memory/target": kib,
            "memory/static-max": kib,
            "cpu/0/availability": "online",
            "console/type": "xenconsoled",
            "console/ring-ref": self._built.console_gfn,
            "console/port": self._built.console_port,
            "console/limit": 1 << 20,
            "store/ring-ref": self._built.store_gfn,
            "store/port": self._built.store_port,
        }
        for node, value in nodes.items():
            client.write(f"{path}/{node}", value)
        for own in ("data", "drivers", "feature", "attr", "error", "control", "device"):
            client.mkdir(f"{path}/{own}")
            client.set_permissions(f"{path}/{own}", (f"n{self.domid}",))
        client.write(f"{path}/control/shutdown", "")
        client.set_permissions(f"{path}/control/shutdown", (f"n{self.domid}",))

    def start(self) -> None:
        """Let it run."""
        self._built.start()

    def send(self, data: bytes) -> None:
        """Type on its console."""
        self.console.send(data)

    def shutdown(self, order: str = "poweroff") -> None:
        """Ask the guest's kernel to shut down, through its node control/shutdown."""
        with self._host.loop.lock:
            self._host.store.write(f"{self.path}/control/shutdown", order)

    def wait(self, timeout: float | None = None) -> ShutdownReason | None:
        """Wait until it has shut down; None after `timeout` seconds. An error of the host's is raised here."""
        if not self.stopped.wait(timeout):
            return None
        error = self._host.error or self._built.guest.error
        if error is not None:
            raise error
        return self._built.domain.shutdown_reason

    @property
    def counters(self) -> dict[str, int]:
        """Exits of its processor by reason."""
        return dict(self._built.guest.vcpu.counters)

    def destroy(self) -> None:
        """End it and give back everything that it had."""
        if self._host.domains.pop(self.domid, None) is None:
            return
        self._built.guest.stop()
        with self._host.loop.lock:
            self.console.close()
            self._host.store.release(self.domid)
            self._host.store.remove(self.path)
        self._built.close()
