"""What `bivisor web --demo` shows: a Xen host of two domains, and a KVM guest, which end with the page."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from bivisor.toolstack.hostd.client import HostClient, runs, stop_host
from bivisor.toolstack.hostd.place import VARIABLE, Place
from bivisor.toolstack.hostd.spawn import spawn
from bivisor.toolstack.presence import machine_sockets
from bivisor.toolstack.xenhost import with_kernel
from bivisor.toolstack.xlconfig import DiskSpec, DomainConfig, VifSpec

NAMES = ("alice", "bob")
DISK_SIZE = 256 << 20


def start_demo(place: Place, stack: ExitStack) -> None:
    """Start what is not there, and have `stack` end what was started here. HostError."""
    if not runs(place):
        spawn(place, "soft")
        stack.callback(stop_host, place, 3.0, True)
    with HostClient(place) as host:
        known = {row["name"] for row in host.call("list")}
        for name in NAMES:
            if name not in known:
                config = DomainConfig(name=name, disks=(_disk(name, stack),), vifs=(VifSpec.parse(""),))
                host.call("create", config=with_kernel(config).completed().to_json())
                stack.callback(_destroy, place, name)
    name = "kim"
    if name not in machine_sockets(place):
        _start_guest(place, name, stack)


def _disk(name: str, stack: ExitStack) -> DiskSpec:
    """A disk to write to, which goes with the domain."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="bivisor-demo-")))
    image = folder / f"{name}.img"
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    return DiskSpec.parse(f"{image},raw,xvda,rw")


def _start_guest(place: Place, name: str, stack: ExitStack) -> None:
    """`bivisor run` in a process of its own, whose input stays open and whose output is on the page's console."""
    guest = subprocess.Popen(
        [sys.executable, "-m", "bivisor", "run", "--name", name, "--quiet"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {VARIABLE: str(place.folder)},
        start_new_session=True,
    )
    stack.callback(guest.wait)
    stack.callback(guest.terminate)


def _destroy(place: Place, name: str) -> None:
    if runs(place):
        with HostClient(place) as host:
            if name in {row["name"] for row in host.call("list")}:
                host.call("destroy", domain=name)
