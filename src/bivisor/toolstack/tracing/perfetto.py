"""Events as a Perfetto trace: a process for each domain, a thread for each processor, a track for each service of Dom0
and each device, and arrows that follow a request through all of them.

The way of a request of a domain: the hypercall by which the front-end sends its event → the request in the back-end,
until its response → the event by which the back-end tells → the upcall in the guest. That of a virtio request: the
exit by which the driver notifies → the request, until its response → the interrupt.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from bivisor.events import (
    DeviceAccess,
    Entry,
    Event,
    EventSend,
    Exit,
    Grant,
    Hypercall,
    Interrupt,
    Life,
    Ring,
    XenBus,
    XenStore,
)
from bivisor.toolstack.tracing.protobuf import Mark, Track, trace_bytes

_LATE_NS = 5_000_000_000
"""An event or interrupt so long after its cause has another one."""


def perfetto_trace(events: Iterable[Event], names: Mapping[int, str]) -> bytes:
    """A trace file of these events; `names` are those of the domains."""
    drawing = _Drawing(names)
    kept = sorted(events, key=lambda event: event.time)
    for event in kept:
        drawing.draw(event)
    drawing.finish(kept[-1].time if kept else 0)
    return trace_bytes(drawing.tracks.values(), drawing.marks)


class _Timeline:
    """Marks in the order of their times, to be asked for those near a time."""

    def __init__(self) -> None:
        self._times: list[int] = []
        self._marks: list[Mark] = []

    def add(self, mark: Mark) -> None:
        self._times.append(mark.time)
        self._marks.append(mark)

    def last_before(self, time: int) -> Mark | None:
        """The last one at `time` or earlier."""
        at = bisect_right(self._times, time) - 1
        return self._marks[at] if at >= 0 and time - self._times[at] < _LATE_NS else None

    def first_after(self, time: int) -> Mark | None:
        """The first one at `time` or later."""
        at = bisect_left(self._times, time)
        return self._marks[at] if at < len(self._marks) and self._times[at] - time < _LATE_NS else None

    def around(self, time: int) -> Mark | None:
        """The one that was under way at `time`."""
        mark = self.last_before(time)
        return mark if mark is not None and time <= mark.time + (mark.duration or 0) else None


class _Drawing:
    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = dict(names)
        self.tracks: dict[tuple[Any, ...], Track] = {}
        self.marks: list[Mark] = []
        self._asked: dict[tuple[int, str, str, int], list[tuple[Ring, Mark]]] = defaultdict(list)
        self._requests: list[tuple[Ring, Mark]] = []
        self._lanes: dict[str, list[int]] = defaultdict(list)
        self._states: dict[tuple[str, str], Mark] = {}
        self._sends: dict[tuple[int, int, int], _Timeline] = defaultdict(_Timeline)
        self._calls: dict[int, _Timeline] = defaultdict(_Timeline)
        self._upcalls: dict[int, _Timeline] = defaultdict(_Timeline)
        self._accesses: dict[int, _Timeline] = defaultdict(_Timeline)
        self._drawers = {
            Exit: self._exit,
            Entry: self._entry,
            Hypercall: self._hypercall,
            EventSend: self._send,
            Grant: self._grant,
            XenStore: self._xenstore,
            XenBus: self._xenbus,
            Ring: self._ring,
            Interrupt: self._interrupt,
            DeviceAccess: self._device,
            Life: self._life,
        }

    # ---------------------------------------------------------------- tracks

    def _track(self, *key: Any, name: str, parent: int = 0, pid: int = 0, tid: int = 0) -> int:
        track = self.tracks.get(key)
        if track is None:
            track = self.tracks[key] = Track(len(self.tracks) + 1, name, parent, pid, tid)
        return track.uuid

    def _domain(self, domid: int) -> int:
        name = self._names.get(domid, "Domain-0" if not domid else "domain")
        return self._track("domain", domid, name=f"{name} ({domid})", pid=domid + 1)

    def _vcpu(self, domid: int, vcpu: int) -> int:
        """The processor's track; processor 0's where an event does not say which."""
        parent = self._domain(domid)
        vcpu = max(0, vcpu)
        tid = (domid + 1 << 12) + vcpu + 1
        return self._track("vcpu", domid, vcpu, name=f"vCPU {vcpu}", parent=parent, pid=domid + 1, tid=tid)

    def _service(self, name: str, lane: int = 0, domid: int = 0) -> int:
        return self._track("service", domid, name, lane, name=name, parent=self._domain(domid))

    def _mark(self, event: Event, track: int, name: str, *, duration: int | None, **details: int | str) -> Mark:
        mark = Mark(event.time, track, name, event.kind.value, duration, details)
        self.marks.append(mark)
        return mark

    # ---------------------------------------------------------------- events

    def draw(self, event: Event) -> None:
        """Put one event on its track; they come in the order of their times."""
        self._drawers[type(event)](event)  # type: ignore[operator]

    def _exit(self, event: Exit) -> None:
        duration = None if event.ended else event.duration
        mark = self._mark(event, self._vcpu(event.domain, event.vcpu), event.reason, duration=duration)
        if event.size:
            mark.details = {"address": hex(event.address), "size": event.size, "value": hex(event.value)}
            mark.details["direction"] = "write" if event.is_write else "read"
        if event.device:
            mark.details["device"] = event.device
            self._accesses[event.domain].add(mark)

    def _entry(self, event: Entry) -> None:
        """Drawn by the end of the exit before it."""

    def _hypercall(self, event: Hypercall) -> None:
        track = self._vcpu(event.domain, event.vcpu)
        details: dict[str, int | str] = {name: hex(value) for name, value in event.details.items()}
        details["result"] = "preempted" if event.result is None else event.result
        self._calls[event.domain].add(self._mark(event, track, event.name, duration=event.duration, **details))

    def _send(self, event: EventSend) -> None:
        call = self._calls[event.domain].around(event.time)
        if call is None:
            track = self._service("event channels", domid=event.domain)
            name = f"{event.cause} {event.from_port} → {self._names.get(event.to, event.to)}:{event.port}"
            call = self._mark(event, track, name, duration=0, port=event.port, to=event.to, from_port=event.from_port)
        self._sends[event.domain, event.to, event.port if event.to == 0 else event.from_port].add(
            Mark(event.time, call.track, call.name, call.category, 0, flows=call.flows)
        )

    def _grant(self, event: Grant) -> None:
        track = self._service("grants", domid=event.domain)
        name = f"{event.op} {self._names.get(event.granter, event.granter)}:{event.ref}"
        self._mark(event, track, name, duration=event.duration, handle=event.handle, status=event.status)

    def _xenstore(self, event: XenStore) -> None:
        track = self._service("XenStore")
        mark = self._mark(event, track, f"{event.op} {event.path}", duration=event.duration, client=event.domain)
        mark.details |= {"value": event.value, "reply": event.reply, "error": event.error}

    def _xenbus(self, event: XenBus) -> None:
        key = event.device, event.end
        before = self._states.pop(key, None)
        if before is not None:
            before.duration = event.time - before.time
        if event.new:
            track = self._service(f"XenBus {event.device} {event.end}-end")
            self._states[key] = self._mark(event, track, event.new, duration=0)

    def _ring(self, event: Ring) -> None:
        key = event.domain, event.device, event.op, event.ident
        if event.end == "request":
            mark = self._mark(event, 0, event.op, duration=None, size=event.size, id=event.ident)
            if event.sector >= 0:
                mark.details["sector"] = event.sector
            self._asked[key].append((event, mark))
            self._requests.append((event, mark))
        elif self._asked[key]:
            asked, mark = self._asked[key].pop(0)
            mark.duration = event.time - asked.time
            mark.details["status"] = event.status

    def _interrupt(self, event: Interrupt) -> None:
        track = self._vcpu(event.domain, event.vcpu)
        name = f"{event.source} {event.number}" + ("" if event.level else " down")
        self._upcalls[event.domain].add(self._mark(event, track, name, duration=0 if event.level else None))

    def _device(self, event: DeviceAccess) -> None:
        track = self._service(event.device, domid=event.domain)
        what = f"{'write' if event.is_write else 'read'} +{event.offset:#x}"
        self._mark(event, track, what, duration=event.duration, value=hex(event.value), size=event.size)

    def _life(self, event: Life) -> None:
        if event.what == "created":
            self._names.setdefault(event.domain, event.detail)
        self._mark(event, self._service("life", domid=event.domain), event.what, duration=None, detail=event.detail)

    # ---------------------------------------------------------------- arrows

    def finish(self, end: int) -> None:
        """After the last event: put requests on lanes, so that slices of a track do not overlap, and draw arrows."""
        for mark in self._states.values():
            mark.duration = end - mark.time
        for flow, (event, mark) in enumerate(self._requests, 1):
            mark.track = self._service(event.device, self._lane(event.device, mark))
            self._follow(flow, event, mark)

    def _lane(self, device: str, mark: Mark) -> int:
        lanes = self._lanes[device]
        over = mark.time + max(1, mark.duration or 0)
        for lane, busy_until in enumerate(lanes):
            if busy_until <= mark.time:
                lanes[lane] = over
                return lane
        lanes.append(over)
        return len(lanes) - 1

    def _follow(self, flow: int, event: Ring, mark: Mark) -> None:
        mark.flows.append(flow)
        answered = mark.time + (mark.duration or 0)
        if event.port:
            cause = self._sends[event.domain, 0, event.port].last_before(mark.time)
            told = self._sends[0, event.domain, event.port].first_after(answered)
        else:
            cause, told = self._accesses[event.domain].around(mark.time), None
        if cause is not None:
            cause.flows.append(flow)
        if mark.duration is None:
            return
        if told is not None:
            told.flows.append(flow)
            answered = told.time
        if told is not None or not event.port:
            upcall = self._upcalls[event.domain].first_after(answered)
            if upcall is not None:
                upcall.ends.append(flow)
