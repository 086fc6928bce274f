"""A Xen host in this process: the hypervisor, Dom0 with its store, and domains to create, talk to and destroy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from bivisor import boot
from bivisor.abi.xen.xen import ShutdownReason, Virq
from bivisor.cpu.contract import Engine
from bivisor.cpu.select import open_engine
from bivisor.dom0 import store
from bivisor.dom0.control import Control
from bivisor.dom0.xenbus.service import Driver, Service
from bivisor.dom0.xenstore.client import StoreClient
from bivisor.errors import UsageError
from bivisor.events import Events
from bivisor.host.loop import EventLoop
from bivisor.image import ProgressFactory, default_guest, quiet
from bivisor.image.place import default_root
from bivisor.toolstack import domnodes
from bivisor.toolstack.agent import SCRIPT
from bivisor.toolstack.domu import DomU
from bivisor.toolstack.faults import Eventful
from bivisor.toolstack.feed import Feed
from bivisor.toolstack.options import parse_memory
from bivisor.toolstack.xenblk import Disks
from bivisor.toolstack.xenchannel import Channels
from bivisor.toolstack.xennet import Networks
from bivisor.toolstack.xlconfig import Action, DiskSpec, DomainConfig, VifSpec
from bivisor.toolstack.xlconfig.config import check_name
from bivisor.xen.domain import State
from bivisor.xen.hypervisor import Xen

DEFAULT_CMDLINE = "console=hvc0 panic=-1"
_SETTLE_S = 10.0
_log = logging.getLogger(__name__)


class XenHost(Eventful):
    """Hypervisor and Dom0. `with` closes it, and with it every domain. `engine` is one, or "auto", "kvm" or "soft".

    `events` is the stream of what happens in it (docs/events.md).
    `on_end(domain, reason)` is called in the loop's thread when a domain has shut down; it must not wait.
    """

    def __init__(self, engine: Engine | str = "auto") -> None:
        self._owns_engine = isinstance(engine, str)
        self.engine, self.why = open_engine(engine) if isinstance(engine, str) else (engine, "")
        self.error: BaseException | None = None
        self.began = time.time()
        self.loop = EventLoop(self._failed)
        self.xen = Xen()
        self.xen.physical.khz = self.engine.tsc_khz
        self.control = Control(self.xen, self.loop)
        version = self.control.version()
        number = f"{version.major}.{version.minor}{version.extra}"
        for words in (f"Xen version {number} ({version.compiler})", f"Engine {self.why or self.engine.name}"):
            self.xen.log.write(f"(XEN) {words}\n".encode())
        self.server = store.start(self.control)
        self.store = StoreClient(self.server)
        self.domains: dict[int, DomU] = {}
        self._backends: list[Service] = []
        self.on_end: Callable[[DomU, ShutdownReason | None], None] = lambda _, __: None
        self.on_failure: Callable[[BaseException], None] = lambda _: None
        self._lock = threading.RLock()
        self._making: set[str] = set()
        self._cache = boot.PayloadCache(default_root() / "kernels")
        with self.loop.lock:
            domnodes.write_dom0(self.store, self.control.domain.pages * 4)
            self.disks = Disks(self.control, self.store)
            self.networks = Networks(self.control, self.store)
            self.channels = Channels(self.control, self.store)
            self._exceptions = self.control.bind_virq(Virq.DOM_EXC, self._look_for_ends)
        self.loop.start()

    @property
    def events(self) -> Events:
        """See `Eventful.events`: those of all its domains."""
        return self.xen.events

    def _failed(self, error: BaseException) -> None:
        self.error = error
        _log.error("Dom0 cannot go on", exc_info=error)
        for domain in list(self.domains.values()):
            domain.ended(None)
        self.on_failure(error)

    def _look_for_ends(self) -> None:
        """VIRQ_DOM_EXC: some domain has shut down, or is gone."""
        for domain in list(self.domains.values()):
            xen = self.xen.domains.get(domain.domid)
            if xen is None or xen.state is not State.SHUTDOWN or domain.stopped.is_set():
                continue
            self.server.shut_down(domain.domid)
            domain.ended(xen.shutdown_reason)
            self.on_end(domain, xen.shutdown_reason)

    # ---------------------------------------------------------------- domains

    def create(
        self,
        name: str,
        kernel: str | Path | None = None,
        *,
        type: str = "pvh",
        memory: str | int = 256,
        vcpus: int = 1,
        initrd: str | Path | None = None,
        cmdline: str = DEFAULT_CMDLINE,
        disks: Iterable[str | DiskSpec] = (),
        vifs: Iterable[str | VifSpec] = (),
        console: Callable[[bytes], None] | None = None,
        cache: boot.Cache | None = None,
        paused: bool = False,
        gdb: str = "",
        agent: bool = False,
    ) -> DomU:
        """A running domain, "pvh" or "pv"; without `kernel`, the default guest. `console` gets what it says.

        `memory` is in MiB, or a text with a unit ("2G"); `disks` and `vifs` are as in xl.cfg(5). When the domain
        has shut down it is kept until it is destroyed. gdb may attach at `gdb`, [HOST:]PORT[,wait]. With `agent` it
        runs commands (`DomU.run`), which is waited for; its initramfs has to be one of ours then. UsageError,
        ImageError, HostError.
        """
        keep, here = Action.PRESERVE, Path.cwd()
        config = DomainConfig(
            name=name,
            type=type,
            kernel=None if kernel is None else Path(kernel),
            ramdisk=None if initrd is None else Path(initrd),
            cmdline=cmdline,
            memory=parse_memory(memory),
            vcpus=vcpus,
            disks=tuple((DiskSpec.parse(each) if isinstance(each, str) else each).absolute(here) for each in disks),
            vifs=tuple(VifSpec.parse(each) if isinstance(each, str) else each for each in vifs),
            on_poweroff=keep,
            on_reboot=keep,
            on_crash=keep,
            on_watchdog=keep,
            gdb=gdb,
        )
        feed = Feed()
        if console is not None:
            feed.listen(console)
        domain = self.create_from(config, feed=feed, cache=cache, paused=paused, agent=agent)
        if agent and not paused and "wait" not in gdb:
            try:
                domain.wait_until_up()
            except BaseException:
                domain.destroy()
                raise
        return domain

    def create_from(
        self,
        config: DomainConfig,
        *,
        feed: Feed | None = None,
        cache: boot.Cache | None = None,
        paused: bool = False,
        records: bool = True,
        agent: bool = False,
    ) -> DomU:
        """The domain that a configuration describes. UsageError where there is one of that name; ImageError."""
        config = with_kernel(config.completed())
        if agent:
            config = with_agent(config)
        with self._reserved(config.name):
            domain = DomU(self, config, cache=cache or self._cache, feed=feed or Feed(), records=records, agent=agent)
            try:
                domain.attach_devices()
                if config.gdb:
                    domain.serve_gdb(config.gdb)
            except BaseException:
                domain.close()
                raise
            with self._lock:
                self.domains[domain.domid] = domain
        if not paused:
            domain.start()
        return domain

    @contextmanager
    def _reserved(self, name: str) -> Iterator[None]:
        """Hold a name that no domain has while one that is to have it is made."""
        with self._lock:
            if name in self._making or any(domain.name == name for domain in self.domains.values()):
                raise UsageError(f"there is a domain {name} already")
            self._making.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._making.discard(name)

    def find(self, words: str) -> DomU:
        """The domain of this name or number. UsageError where there is none."""
        with self._lock:
            for domain in self.domains.values():
                if words == domain.name or words == str(domain.domid):
                    return domain
        if words in ("0", "Domain-0"):
            raise UsageError("Domain-0 is the host itself: that cannot be done to it")
        raise UsageError(f"there is no domain {words}")

    def rename(self, domain: DomU, name: str) -> None:
        """Give a domain another name. UsageError where another has it."""
        with self._reserved(check_name(name)):
            domain.rename(name)

    def destroy(self, domain: DomU, *, comes_back: bool = False) -> None:
        """See `DomU.destroy`. One that is gone is no error. Who listens to one that `comes_back` goes on doing so."""
        with self._lock:
            mine = self.domains.pop(domain.domid, None)
        if mine is None:
            domain.gone.wait()
            return
        mine.close()
        if not comes_back:
            with self.loop.lock:
                mine.feed.close()

    def add_backend(self, kind: str, driver: Driver) -> None:
        """Serve devices whose back-ends are of type `kind` by `driver(node, fail)`, which makes a `xenbus.link.Device`
        of each: a class that derives from `RingBackend`, for example. UsageError where there is one of that type."""
        with self.loop.lock:
            if any(service.kind == kind for service in self._backends) or kind in ("vbd", "vif", "console"):
                raise UsageError(f"there is a back-end of type {kind!r} already")
            self._backends.append(Service(self.control, self.store, kind, driver))

    def settle(self) -> None:
        """Wait until Dom0 has done what there was to do when this was called. Not from the loop's thread."""
        done = threading.Event()
        self.loop.call_soon(done.set)
        done.wait(_SETTLE_S)

    def destroy_all(self) -> None:
        """Destroy every domain."""
        for domain in list(self.domains.values()):
            domain.destroy()

    def close(self) -> None:
        """Destroy every domain and give everything back."""
        self.destroy_all()
        with self.loop.lock:
            self.control.unbind(self._exceptions)
            self.networks.close()
            self.disks.close()
            self.channels.close()
            for service in self._backends:
                service.close()
            self.store.close()
            self.server.close()
        self.loop.close()
        self.control.close()
        self.xen.close()
        if self._owns_engine:
            self.engine.close()

    def __enter__(self) -> XenHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def xen_host(engine: Engine | str = "auto") -> XenHost:
    """A Xen host in this process, to be used with `with`."""
    return XenHost(engine)


def with_kernel(config: DomainConfig, also: str = "", progress: ProgressFactory = quiet) -> DomainConfig:
    """`config` with the default guest where it names no kernel, which is told `also`. HostError."""
    if config.kernel is not None or config.type == "hvm":
        return config
    guest = default_guest(progress)
    usual = "" if "console=" in config.cmdline else DEFAULT_CMDLINE
    words = " ".join(filter(None, (usual, also, config.cmdline)))
    return replace(config, kernel=guest.kernel, ramdisk=config.ramdisk or guest.initrd, cmdline=words)


def with_agent(config: DomainConfig) -> DomainConfig:
    """`config` with the script of an agent behind its initramfs, which is made for its kernel where it has none."""
    from bivisor.image.cache import Cache
    from bivisor.image.initramfs import append_exec
    from bivisor.image.prepare import guest_of

    assert config.kernel is not None
    cache = Cache()
    ramdisk = config.ramdisk
    if ramdisk is None:
        with quiet() as report:
            ramdisk = guest_of(cache, report, config.kernel).initrd
    tail = append_exec(SCRIPT)
    key = f"agent {cache.digest(ramdisk)} {sha256(tail).hexdigest()}"
    made = cache.file(key, lambda out: out.write(ramdisk.read_bytes() + tail))
    return replace(config, ramdisk=made)
