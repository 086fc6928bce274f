"""The toolstack's half of XenBus: a device's nodes in the store, made and taken away as libxl does.

docs/misc/xenstore-paths.pandoc. Nothing here is called with the loop's lock held, for `attach` and `detach` wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.xenstore.client import StoreClient
from bivisor.errors import UsageError
from bivisor.host.loop import Loop

BACKEND_HOME = "/local/domain/0"
TIMEOUT_S = 10.0
CLOSING_S = 30.0
"""How long a back-end may take to close a disk's image whose guest has let go of it."""


@dataclass(frozen=True, slots=True)
class XenDevice:
    """Device `devid` of type `kind` ("vbd", "vif") of domain `domid`, with the nodes that each end finds. Its back-end
    may be of another type, `backend_kind`: then another driver serves it than the usual one."""

    kind: str
    domid: int
    devid: int
    backend: Mapping[str, str | int] = field(default_factory=dict)
    frontend: Mapping[str, str | int] = field(default_factory=dict)
    backend_kind: str = ""

    @property
    def backend_path(self) -> str:
        """The directory of the back-end."""
        return f"{BACKEND_HOME}/backend/{self.backend_kind or self.kind}/{self.domid}/{self.devid}"

    @property
    def frontend_path(self) -> str:
        """The directory of the front-end."""
        return f"/local/domain/{self.domid}/device/{self.kind}/{self.devid}"


def add(store: StoreClient, device: XenDevice) -> None:
    """Make the device's nodes, from which both ends find each other. With the loop's lock held.

    The back-end's directory is Dom0's and the guest may read it; the front-end's is the guest's and Dom0 may read it.
    """
    back, front = device.backend_path, device.frontend_path
    for path, owner, reader in ((front, device.domid, 0), (back, 0, device.domid)):
        store.mkdir(path)
        store.set_permissions(path, (f"n{owner}", f"r{reader}"))
    begin = int(XenbusState.INITIALISING)
    _write(store, front, {"backend": back, "backend-id": 0, **device.frontend, "state": begin})
    own = {"frontend": front, "frontend-id": device.domid, "online": 1, **device.backend, "state": begin}
    _write(store, back, own)


def remove(store: StoreClient, device: XenDevice) -> None:
    """Take the device's nodes away, whatever its state, and directories that are empty then. With the lock held."""
    for path in (device.frontend_path, device.backend_path):
        store.remove(path)
        for _ in range(2):
            path = path.rpartition("/")[0]
            if path.endswith(("/device", "/backend")) or store.names(path):
                break
            store.remove(path)


def attach(loop: Loop, store: StoreClient, device: XenDevice, *, timeout: float = TIMEOUT_S) -> None:
    """Add a device and wait until its back-end has it open. UsageError where it cannot, or the time is up."""
    with loop.lock:
        if store.get(f"{device.backend_path}/state") is not None:
            raise UsageError(f"domain {device.domid} has a {device.kind} {device.devid} already")
        add(store, device)
    ready = {XenbusState.INIT_WAIT, XenbusState.INITIALISED, XenbusState.CONNECTED}
    found = wait_for_state(loop, store, device, ready | {XenbusState.CLOSING, XenbusState.CLOSED}, timeout)
    if found in ready:
        return
    with loop.lock:
        reason = store.get(f"{BACKEND_HOME}/error/{device.backend_path[len(BACKEND_HOME) + 1 :]}/error")
        remove(store, device)
    text = reason.partition(" ")[2] if reason else f"its back-end did not answer in {timeout:g} s"
    raise UsageError(f"{device.kind} {device.devid} of domain {device.domid}: {text}")


def detach(
    loop: Loop, store: StoreClient, device: XenDevice, *, timeout: float = TIMEOUT_S, force: bool = False
) -> None:
    """Have a device closed, and take it away then. UsageError where the guest does not let go within `timeout` seconds;
    with `force` it is taken away none the less."""
    with loop.lock:
        if store.get(f"{device.backend_path}/state") is None:
            raise UsageError(f"domain {device.domid} has no {device.kind} {device.devid}")
        order_to_close(store, device)
    closed = wait_for_state(loop, store, device, {XenbusState.CLOSED}, timeout) is not None
    if not closed:
        with loop.lock:
            front = store.get(f"{device.frontend_path}/state")
        if front == str(int(XenbusState.CLOSED)):  # the guest has let go; what is behind the device still closes
            closed = wait_for_state(loop, store, device, {XenbusState.CLOSED}, CLOSING_S) is not None
    if not closed and not force:
        raise UsageError(f"domain {device.domid} does not let go of {device.kind} {device.devid}: it is in use")
    with loop.lock:
        remove(store, device)


def order_to_close(store: StoreClient, device: XenDevice) -> None:
    """Tell both ends that the device is going. With the loop's lock held."""
    path = device.backend_path
    store.write(f"{path}/online", 0)
    if store.get(f"{path}/state") not in (None, str(int(XenbusState.CLOSED))):
        store.write(f"{path}/state", int(XenbusState.CLOSING))


def wait_for_state(
    loop: Loop, store: StoreClient, device: XenDevice, wanted: Collection[XenbusState], timeout: float
) -> XenbusState | None:
    """Wait until the back-end's state is one of `wanted`, which is returned; None once `timeout` seconds are over."""
    path = f"{device.backend_path}/state"
    changed = threading.Event()
    with loop.lock:
        token = store.watch(path, lambda _: changed.set())
    deadline = time.monotonic() + timeout
    try:
        while True:
            changed.clear()
            with loop.lock:
                text = store.get(path)
            if text is not None and text in {str(int(state)) for state in wanted}:
                return XenbusState(int(text))
            if not changed.wait(max(0.0, deadline - time.monotonic())):
                return None
    finally:
        with loop.lock:
            store.unwatch(path, token)


def _write(store: StoreClient, path: str, nodes: Mapping[str, str | int]) -> None:
    for name, value in nodes.items():
        store.write(f"{path}/{name}", value)
