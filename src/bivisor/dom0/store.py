"""The store of a Xen host: the server with the domains that Dom0's `Control` reaches."""

from __future__ import annotations

from collections.abc import Callable

from bivisor.dom0.control import Control
from bivisor.dom0.xenstore.domains import XenDomains
from bivisor.dom0.xenstore.server import Server
from bivisor.dom0.xenstore.watched import watch_store


def start(control: Control) -> Server:
    """A store for the domains of `control`'s hypervisor."""
    server = Server(XenDomains(control))
    watch_store(control.events, server, lambda seconds, work: _call_later(control, seconds, work))
    return server


def _call_later(control: Control, seconds: float, work: Callable[[], None]) -> None:
    control.loop.call_at(control.loop.now() + seconds, work)
