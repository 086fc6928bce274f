"""A back-end's ring while somebody listens: what is asked of it, what it answers, and what hooks make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from bivisor.events import Answer, Delay, Deny, Events, Kind, Probe, Ring, Site

_NOTHING = bytearray()


class Asked(NamedTuple):
    """What a request asks for: `ident` tells it from others under way, `size` is in bytes, -1 is no sector."""

    op: str
    ident: int
    size: int = 0
    sector: int = -1


@dataclass(slots=True)
class RingPlace:
    """One ring: `device` is its name ("vbd/1/51712"), `port` Dom0's end of its event channel, 0 until that is known.

    `describe(request)` says what a request asks for; `refuse(request, status)` answers one without carrying it out,
    with an error of the ring's own where `status` is None. `later(seconds, request)` carries it out later.
    """

    device: str
    domid: int
    describe: Callable[[bytes], Asked]
    refuse: Callable[[bytes, int | None], None]
    later: Callable[[float, bytes], None]
    port: int = 0


class WatchedRing:
    """What a ring tells while `probe` is there."""

    def __init__(self, place: RingPlace, probe: Probe) -> None:
        self._place = place
        self._probe = probe

    def asked(self, request: bytes, *, again: bool = False) -> bytes | None:
        """The request as it is to be carried out; None where it is not, for now. `again`: it has been held up."""
        place, probe = self._place, self._probe
        op, ident, size, sector = place.describe(request)
        event = Ring(
            probe.clock(), place.domid, -1, 0, place.device, "request", op, ident, size, sector, 0, place.port, _NOTHING
        )
        if not probe.hooks or again:
            probe.tell(event)
            return request
        event.entry = bytearray(request)
        verdict = probe.ask(event)
        if not isinstance(verdict, Delay):
            probe.over(event)
        match verdict:
            case None:
                return bytes(event.entry)
            case Deny():
                place.refuse(request, None)
            case Answer(value):
                place.refuse(request, value if isinstance(value, int) else None)
            case Delay(seconds):
                place.later(seconds, request)
        return None

    def answered(self, op: str, ident: int, status: int, size: int = 0) -> None:
        """A response was put into the ring."""
        place, probe = self._place, self._probe
        event = Ring(
            probe.clock(),
            place.domid,
            -1,
            0,
            place.device,
            "response",
            op,
            ident,
            size,
            -1,
            status,
            place.port,
            _NOTHING,
        )
        probe.tell(event)


def watch_ring(events: Events, place: RingPlace, install: Callable[[WatchedRing | None], None]) -> Site:
    """Tell `events` of a ring. `install` gets what the ring tells by, None while nobody listens."""

    def probed(probe: Probe | None) -> None:
        install(None if probe is None else WatchedRing(place, probe))

    return events.site(Kind.RING, probed, place.domid)
