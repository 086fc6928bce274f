"""Events of one domain while somebody listens: what it sends, and what the hypervisor raises for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bivisor.abi.xen.errno import Errno
from bivisor.events import Delay, Deny, EventSend, Kind, Probe, Site
from bivisor.xen.errors import XenError
from bivisor.xen.upcalls import Channel

if TYPE_CHECKING:
    from bivisor.xen.domain import Domain
    from bivisor.xen.hypervisor import Xen


def watch_events(xen: Xen, domain: Domain) -> Site:
    """Tell the hypervisor's stream of the events that `domain` sends."""
    channels = domain.events

    def install(probe: Probe | None) -> None:
        channels.on_send = None if probe is None else _Watched(xen, domain, probe).on_send

    return xen.events.site(Kind.EVENT, install, domain.domid)


class _Watched:
    def __init__(self, xen: Xen, domain: Domain, probe: Probe) -> None:
        self._xen = xen
        self._domid = domain.domid
        self._probe = probe

    def on_send(self, cause: str, port: int, to: Channel) -> bool:
        """See `EventChannels.on_send`. What is denied is XenError; what is delayed comes later by itself."""
        probe = self._probe
        event = EventSend(probe.clock(), self._domid, -1, 0, cause, port, to.owner.domid, to.port)
        if probe.hooks:
            match probe.ask(event):
                case None:
                    pass
                case Deny(number):
                    raise XenError(_errno(number))
                case Delay(seconds):
                    self._xen.call_later(seconds, lambda: self._later(to))
                    return False
                case _:
                    return False
        probe.over(event)
        return True

    def _later(self, to: Channel) -> None:
        with self._xen.lock:
            to.owner.events.arrive(to)


def _errno(number: int) -> Errno:
    try:
        return Errno(abs(number))
    except ValueError:
        return Errno.EPERM
