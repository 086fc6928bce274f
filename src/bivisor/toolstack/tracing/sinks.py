"""Where a trace's events go: lines of text, JSON lines, or a file for Perfetto."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TextIO

from bivisor.errors import UsageError
from bivisor.events import Event
from bivisor.toolstack.tracing.text import Lines

PERFETTO_MOST = 2_000_000
"""A Perfetto file is made at the end, of what has been kept until then."""


class Sink(Protocol):
    """What is made of a trace."""

    def put(self, event: Event) -> None:
        """One more event."""

    def pause(self) -> None:
        """Nothing happens now: whoever waits for lines should see those that there are."""

    def close(self) -> None:
        """That was the last."""


class TextSink:
    """Lines for people."""

    def __init__(self, out: TextIO, lines: Lines) -> None:
        self._out = out
        self._lines = lines

    def put(self, event: Event) -> None:
        """See `Sink`."""
        self._out.write(self._lines.line(event) + "\n")

    def pause(self) -> None:
        """See `Sink`."""
        self._out.flush()

    def close(self) -> None:
        """See `Sink`."""
        self._out.flush()


class JsonSink(TextSink):
    """Lines for programs: an object each, as `Event.to_dict` makes them; the first has the `names` of the domains."""

    def __init__(self, out: TextIO, names: Mapping[int, str]) -> None:
        super().__init__(out, Lines({}))
        out.write(json.dumps({"names": {str(number): name for number, name in names.items()}}) + "\n")

    def put(self, event: Event) -> None:
        """See `Sink`."""
        self._out.write(json.dumps(event.to_dict()) + "\n")


class PerfettoSink:
    """A file that ui.perfetto.dev opens. UsageError where it cannot be written, before there is anything to write."""

    def __init__(self, path: Path, names: Mapping[int, str]) -> None:
        self.lost = 0
        self._names = names
        self._path = path
        self._events: list[Event] = []
        self._write(b"")

    def _write(self, data: bytes) -> None:
        try:
            self._path.write_bytes(data)
        except OSError as error:
            raise UsageError(f"{self._path}: {error.strerror}") from None

    def put(self, event: Event) -> None:
        """See `Sink`. What is too much is counted in `lost`."""
        if len(self._events) < PERFETTO_MOST:
            self._events.append(event)
        else:
            self.lost += 1

    def pause(self) -> None:
        """See `Sink`: the file is written at the end."""

    def close(self) -> None:
        """See `Sink`."""
        from bivisor.toolstack.tracing.perfetto import perfetto_trace

        self._write(perfetto_trace(self._events, self._names))
