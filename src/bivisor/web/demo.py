"""What `bivisor web --demo` shows: a Xen host of two domains, and a KVM guest, which end with the page."""

from __future__ import annotations

from contextlib import ExitStack

from bivisor.toolstack.hostd.client import HostClient, runs, stop_host
from bivisor.toolstack.hostd.place import Place
from bivisor.toolstack.hostd.spawn import spawn
from bivisor.toolstack.xenhost import with_kernel
from bivisor.toolstack.xlconfig import DomainConfig

NAMES = ("alice", "bob")


def start_demo(place: Place, stack: ExitStack) -> None:
    """Start what is not there, and have `stack` end what was started here. HostError."""
    if not runs(place):
        spawn(place, "soft")
        stack.callback(stop_host, place, 3.0, True)
    with HostClient(place) as host:
        known = {row["name"] for row in host.call("list")}
        for name in NAMES:
            if name not in known:
                host.call("create", config=with_kernel(DomainConfig(name=name)).completed().to_json())
                stack.callback(_destroy, place, name)


def _destroy(place: Place, name: str) -> None:
    if runs(place):
        with HostClient(place) as host:
            if name in {row["name"] for row in host.call("list")}:
                host.call("destroy", domain=name)
