"""A whole trace, from where it comes to where it goes: what `bivisor trace` does."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bivisor.events import Event
from bivisor.toolstack.tracing.sinks import JsonSink, PerfettoSink, Sink, TextSink
from bivisor.toolstack.tracing.source import Live, Recorded, socket_of
from bivisor.toolstack.tracing.text import Lines
from bivisor.toolstack.tracing.wanted import Wanted


@dataclass(frozen=True, slots=True)
class Shown:
    """How many events there were, and how many were lost."""

    events: int
    lost: int


def show(
    wanted: Wanted,
    *,
    target: str | None = None,
    source: Path | None = None,
    seconds: float | None = None,
    count: int | None = None,
    as_json: bool = False,
    perfetto: Path | None = None,
    colour: bool = False,
) -> Shown:
    """Trace a host or machine (`target`, see `socket_of`) or take a file's events (`source`), until they end, for
    `seconds`, or for `count` of them; or until Ctrl-C. UsageError, HostError."""
    with ExitStack() as stack:
        live: Live | None = None
        names: Mapping[int, str] = {}
        events: Iterator[Event | None]
        if source is None:
            live = Live(socket_of(target), wanted, seconds)
            stack.callback(live.close)
            events, names = iter(live), live.names
        else:
            file = Recorded(source, wanted)
            events, names = iter(file), file.names
        sink = _sink(names, as_json=as_json, perfetto=perfetto, colour=colour)
        number = 0
        try:
            number = _carry(events, sink, count)
        finally:
            sink.close()
        lost = live.dropped if live is not None else 0
        return Shown(number, lost + (sink.lost if isinstance(sink, PerfettoSink) else 0))


def _sink(names: Mapping[int, str], *, as_json: bool, perfetto: Path | None, colour: bool) -> Sink:
    if perfetto is not None:
        return PerfettoSink(perfetto, names)
    return JsonSink(sys.stdout, names) if as_json else TextSink(sys.stdout, Lines(names, colour=colour))


def _carry(events: Iterator[Event | None], sink: Sink, count: int | None) -> int:
    number = 0
    try:
        for event in events:
            if event is None:
                sink.pause()
                continue
            sink.put(event)
            number += 1
            if number == count:
                break
    except KeyboardInterrupt:
        pass
    return number
