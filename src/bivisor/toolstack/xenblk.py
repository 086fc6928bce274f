"""The disks of a Xen host's domains. Nodes are those of docs/misc/xenstore-paths.pandoc, as libxl writes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.block.image import Image, Offer
from bivisor.dom0.block.vbd import driver
from bivisor.dom0.control import Control
from bivisor.dom0.xenbus.service import Service
from bivisor.dom0.xenstore.client import StoreClient
from bivisor.errors import UsageError
from bivisor.host.how import QEMU_FORMATS, HowToOpen
from bivisor.host.images import DiskImage, open_image
from bivisor.toolstack import xendevices
from bivisor.toolstack.xendevices import XenDevice
from bivisor.toolstack.xlconfig.disk import DiskSpec, vdev_number

_CLOSERS = 32
"""Images that are closed at the same time."""


@dataclass(frozen=True, slots=True)
class Vbd:
    """A disk of a domain."""

    domid: int
    spec: DiskSpec

    @property
    def device(self) -> XenDevice:
        """Where its nodes are."""
        return XenDevice("vbd", self.domid, self.spec.device)


@dataclass(frozen=True, slots=True)
class VbdStatus:
    """What `xl block-list` shows of a disk; 0 for a number that its front-end has not told."""

    vbd: Vbd
    state: XenbusState
    event_channel: int
    ring_ref: int


class Disks:
    """The disks of one host's domains.

    Made and closed with the loop's lock held. `attach`, `detach` and `forget` wait, so they are called without it and
    not from the loop's thread.
    """

    def __init__(self, control: Control, store: StoreClient, offer: Offer | None = None) -> None:
        self._control = control
        self._loop = control.loop
        self._store = store
        self._offer = offer
        self._lock = threading.Lock()
        self._image: DiskImage | None = None
        self._vbds: dict[tuple[int, int], Vbd] = {}
        self._closing: set[Future[None]] = set()
        self._service = self._make_service()

    def _make_service(self) -> Service:
        self._closer = ThreadPoolExecutor(_CLOSERS, "bivisor-vbd-close")
        return Service(self._control, self._store, "vbd", driver(self._open, self._offer, self._close_beside))

    def _close_beside(self, work: Callable[[], None]) -> Future[None]:
        """Closing an image waits until its helper has written back what it has, and nobody else is to wait for that."""
        closing = self._closer.submit(work)
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return closing

    def restart(self) -> None:
        """Kill the back-end and start it again. Front-ends wait meanwhile, and their requests are carried out then."""
        with self._lock:
            with self._loop.lock:
                self._service.close()
            self._closer.shutdown()
            with self._loop.lock:
                self._service = self._make_service()

    def _open(self, params: str, read_only: bool) -> Image:
        image, self._image = self._image, None
        return open_params(params, read_only) if image is None else image

    def attach(
        self, domid: int, spec: DiskSpec, *, image: DiskImage | None = None, timeout: float = xendevices.TIMEOUT_S
    ) -> Vbd:
        """Give domain `domid` a disk, and wait until the back-end has its image open. UsageError.

        `image` is one that is open already, for another device of the domain; it is closed here whatever happens."""
        try:
            with self._lock:
                with self._loop.lock:
                    self._image = image
                return self._attach(domid, spec, timeout)
        finally:
            with self._loop.lock:
                left, self._image = self._image, None
            if left is not None:
                left.close()

    def _attach(self, domid: int, spec: DiskSpec, timeout: float) -> Vbd:
        if spec.cdrom:
            raise UsageError(f"disk {spec.vdev}: a CD-ROM drive is there from the start of an HVM domain, or never")
        vbd = Vbd(domid, spec)
        if (domid, spec.device) in self._vbds:
            raise UsageError(f"domain {domid} has a disk {spec.vdev} already")
        nodes: dict[str, str | int] = {
            "params": spec.params,
            "removable": 0,
            "bootable": 1,
            "dev": spec.vdev,
            "type": "phy" if spec.format == "raw" else "qdisk",
            "mode": "r" if spec.read_only else "w",
            "device-type": "disk",
            "discard-enable": int(spec.discard),
            "specification": "xen",
        }
        own: dict[str, str | int] = {
            "virtual-device": spec.device,
            "device-type": "disk",
            "trusted": int(spec.trusted),
        }
        device = XenDevice("vbd", domid, spec.device, nodes, own)
        xendevices.attach(self._loop, self._store, device, timeout=timeout)
        self._vbds[domid, spec.device] = vbd
        return vbd

    def detach(self, vbd: Vbd, *, timeout: float = xendevices.TIMEOUT_S, force: bool = False) -> None:
        """Take a disk away. UsageError if it is gone, or the guest does not let go within `timeout` and not `force`."""
        with self._lock:
            xendevices.detach(self._loop, self._store, vbd.device, timeout=timeout, force=force)
            self._settle()
            self._vbds.pop((vbd.domid, vbd.spec.device), None)
        wait(list(self._closing))

    def forget(self, domid: int) -> None:
        """The domain is going: close its disks and let go of its memory, without asking it. Its images can be opened
        again afterwards."""
        with self._lock:
            mine = self.vbds(domid)
            with self._loop.lock:
                for vbd in mine:
                    xendevices.remove(self._store, vbd.device)
            if mine:
                self._settle()
            for vbd in mine:
                del self._vbds[domid, vbd.spec.device]
        wait(list(self._closing))

    def find(self, domid: int, words: str) -> Vbd:
        """The disk that is called so (xvdb) or has this number, as block-detach names one. UsageError."""
        number = vdev_number(words)
        vbd = self._vbds.get((domid, number))
        if vbd is None:
            raise UsageError(f"domain {domid} has no disk {words}")
        return vbd

    def vbds(self, domid: int) -> list[Vbd]:
        """The disks of a domain, by number."""
        return [vbd for (owner, _), vbd in sorted(self._vbds.items()) if owner == domid]

    def status(self, domid: int) -> list[VbdStatus]:
        """How the disks of a domain are, by number."""
        with self._loop.lock:
            return [self._status(vbd) for vbd in self.vbds(domid)]

    def _status(self, vbd: Vbd) -> VbdStatus:
        front = vbd.device.frontend_path

        def number(*names: str) -> int:
            for name in names:
                text = self._store.get(f"{front}/{name}") or ""
                if text.isascii() and text.isdigit() and len(text) < 11:
                    return int(text)
            return 0

        state = self._store.get(f"{vbd.device.backend_path}/state") or "0"
        ring = number("ring-ref", "ring-ref0", "queue-0/ring-ref", "queue-0/ring-ref0")
        return VbdStatus(vbd, XenbusState(int(state)), number("event-channel", "queue-0/event-channel"), ring)

    def _settle(self) -> None:
        """Wait until the back-end has seen what was written into the store: it holds nothing then of what is gone."""
        done = threading.Event()
        self._loop.call_soon(done.set)  # behind what the back-end has to do, for that came first
        done.wait(xendevices.TIMEOUT_S)

    def close(self) -> None:
        """Let go of every domain, and wait until the images are closed. With the loop's lock held."""
        self._service.close()
        self._closer.shutdown()
        self._vbds.clear()


def open_params(params: str, read_only: bool) -> DiskImage:
    """`params` is a path, or FORMAT:PATH; what does not say otherwise is raw, and never guessed."""
    format_, colon, path = params.partition(":")
    if not colon or format_ not in QEMU_FORMATS:
        format_, path = "raw", params
    return open_image(path, HowToOpen(format_, read_only))
