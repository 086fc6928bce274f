"""The nodes of the store that a toolstack gives a domain (docs/misc/xenstore-paths.pandoc), as libxl writes them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bivisor.dom0.xenstore.client import StoreClient

OWN_NODES = ("data", "drivers", "feature", "attr", "error")
OWN_CONTROLS = ("shutdown", "feature-poweroff", "feature-reboot", "feature-suspend", "sysrq")
CONSOLE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Rings:
    """Where a domain's two rings are: frame numbers and its own event-channel ports."""

    console_gfn: int
    console_port: int
    store_gfn: int
    store_port: int


@dataclass(frozen=True, slots=True)
class Person:
    """What the store says about a domain. `target` and `most` memory in KiB; `online` of `vcpus` processors."""

    domid: int
    name: str
    uuid: str
    target: int
    most: int
    online: int
    vcpus: int

    @property
    def path(self) -> str:
        """The domain's directory."""
        return f"/local/domain/{self.domid}"

    @property
    def vm(self) -> str:
        """The directory of what stays the same when the domain reboots."""
        return f"/vm/{self.uuid}"


def write_dom0(client: StoreClient, memory_kib: int) -> None:
    """Domain-0's own."""
    home = "/local/domain/0"
    client.write(f"{home}/domid", 0)
    client.write(f"{home}/name", "Domain-0")
    for node in ("target", "static-max"):
        client.write(f"{home}/memory/{node}", memory_kib)
    client.write("/local/pool/0/name", "Pool-0")


def write_domain(client: StoreClient, who: Person, rings: Rings) -> None:
    """A new domain's. Its directory is Dom0's, which it may read; a few nodes are its own."""
    path, domid = who.path, who.domid
    for directory in (path, who.vm):
        client.mkdir(directory)
        client.set_permissions(directory, ("n0", f"r{domid}"))
    nodes: dict[str, str | int] = {
        "vm": who.vm,
        "name": who.name,
        "domid": domid,
        **{f"cpu/{n}/availability": "online" if n < who.online else "offline" for n in range(who.vcpus)},
        "memory/static-max": who.most,
        "memory/target": who.target,
        "memory/videoram": 0,
        "control/platform-feature-multiprocessor-suspend": 1,
        "control/platform-feature-xs_reset_watches": 1,
        "store/port": rings.store_port,
        "store/ring-ref": rings.store_gfn,
        "console/backend-id": 0,
        "console/limit": CONSOLE_LIMIT,
        "console/type": "xenconsoled",
        "console/port": rings.console_port,
        "console/ring-ref": rings.console_gfn,
    }
    for node, value in nodes.items():
        client.write(f"{path}/{node}", value)
    client.mkdir(f"{path}/device")
    for own in (*OWN_NODES, *(f"control/{name}" for name in OWN_CONTROLS)):
        client.write(f"{path}/{own}", "")
        client.set_permissions(f"{path}/{own}", (f"n{domid}",))
    client.write(f"{who.vm}/name", who.name)
    client.write(f"{who.vm}/uuid", who.uuid)
    client.write(f"{who.vm}/start_time", f"{time.time():.2f}")


def remove_domain(client: StoreClient, who: Person) -> None:
    """Take them away, and the back-end's that are left."""
    client.remove(who.path)
    client.remove(who.vm)
    for kind in client.names("/local/domain/0/backend"):
        directory = f"/local/domain/0/backend/{kind}"
        client.remove(f"{directory}/{who.domid}")
        if not client.names(directory):
            client.remove(directory)
