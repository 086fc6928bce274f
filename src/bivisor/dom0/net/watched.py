"""Frames of one queue of a virtual interface while somebody listens, both ways."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from bivisor.dom0.net.frame import HEAD_MAX, Frame
from bivisor.events import Delay, Events, Kind, Probe, Ring, Site
from bivisor.host.loop import Loop

Carry = Callable[[Frame], object]


class WatchedFrames:
    """What a queue tells while `probe` is there. A frame that a hook drops or denies is lost, as on any wire."""

    def __init__(self, device: str, domid: int, port: int, loop: Loop, probe: Probe) -> None:
        self._device = device
        self._domid = domid
        self._port = port
        self._loop = loop
        self._probe = probe
        self._numbers = itertools.count(1)

    def frame(self, op: str, frame: Frame, carry: Carry) -> None:
        """A frame that the guest sends ("tx") or is to get ("rx"), which `carry` takes farther."""
        probe = self._probe
        number = next(self._numbers)
        event = Ring(probe.clock(), self._domid, -1, 0, self._device, "request", op, number, frame.size)
        event.port = self._port
        if probe.hooks:
            data = b"".join(frame.parts)
            event.entry = bytearray(data)
            verdict = probe.ask(event)
            if isinstance(verdict, Delay):
                kept = frame.copy()
                self._loop.call_at(self._loop.now() + verdict.seconds, lambda: self._carry(op, number, kept, carry))
                return
            probe.over(event)
            if verdict is not None:
                return
            if event.entry != data:
                frame = _with(frame, bytes(event.entry))
        else:
            probe.tell(event)
        self._carry(op, number, frame, carry)

    def _carry(self, op: str, number: int, frame: Frame, carry: Carry) -> None:
        probe, size = self._probe, frame.size
        carry(frame)
        event = Ring(probe.clock(), self._domid, -1, 0, self._device, "response", op, number, size)
        event.port = self._port
        probe.tell(event)


def _with(frame: Frame, data: bytes) -> Frame:
    return Frame(
        data[:HEAD_MAX],
        (memoryview(data),),
        len(data),
        blank=frame.blank,
        validated=frame.validated,
        gso_type=frame.gso_type,
        gso_size=frame.gso_size,
    )


def watch_frames(
    events: Events, device: str, domid: int, port: int, loop: Loop, install: Callable[[WatchedFrames | None], None]
) -> Site:
    """Tell `events` of a queue's frames. `install` gets what it tells them by, None while nobody listens."""

    def probed(probe: Probe | None) -> None:
        install(None if probe is None else WatchedFrames(device, domid, port, loop, probe))

    return events.site(Kind.RING, probed, domid)
