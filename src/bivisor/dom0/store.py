"""The store of a Xen host: the server with the domains that Dom0's `Control` reaches."""

from __future__ import annotations

from bivisor.dom0.control import Control
from bivisor.dom0.xenstore.domains import XenDomains
from bivisor.dom0.xenstore.server import Server


def start(control: Control) -> Server:
    """A store for the domains of `control`'s hypervisor."""
    return Server(XenDomains(control))
