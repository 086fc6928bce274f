"""Grants while somebody listens: what one domain maps, unmaps and copies of others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bivisor.abi.xen.grant_table import GrantStatus
from bivisor.events import Delay, Grant, Kind, Probe, Site
from bivisor.events import Deny as Denied
from bivisor.xen.errors import GrantError

if TYPE_CHECKING:
    from bivisor.xen.domain import Domain
    from bivisor.xen.hypervisor import Xen


def watch_grants(xen: Xen, domain: Domain) -> Site:
    """Tell the hypervisor's stream of what `domain` does with grants of others."""
    table = domain.grants

    def install(probe: Probe | None) -> None:
        table.probe = probe

    return xen.events.site(Kind.GRANT, install, domain.domid)


def begin(probe: Probe, domain: int, op: str, granter: int, ref: int, *, readonly: bool, handle: int = -1) -> Grant:
    """The event of an operation that is about to happen, as hooks want it. GrantError where they refuse it.

    A delay is spent here, with the hypervisor's lock held: everybody waits.
    """
    event = Grant(probe.clock(), domain, -1, 0, op, granter, ref, readonly, handle)
    if probe.hooks:
        match probe.ask(event):
            case None:
                pass
            case Delay(seconds):
                time.sleep(seconds)
            case Denied(number):
                raise failed(probe, event, GrantError(_status(number)))
            case _:
                raise failed(probe, event, GrantError(GrantStatus.GENERAL_ERROR))
    return event


def _status(number: int) -> GrantStatus:
    try:
        return GrantStatus(-abs(number))
    except ValueError:
        return GrantStatus.GENERAL_ERROR


def failed(probe: Probe, event: Grant, error: GrantError) -> GrantError:
    """It failed so: the error, which is told."""
    event.status = int(error.status)
    event.duration = probe.clock() - event.time
    probe.tell(event)
    return error


def done(probe: Probe, event: Grant, handle: int = -1) -> None:
    """It is done."""
    event.handle = handle if handle >= 0 else event.handle
    event.duration = probe.clock() - event.time
    probe.over(event)
