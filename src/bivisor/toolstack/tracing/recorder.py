"""Records a machine of this process into a file: `bivisor run --trace FILE`, where the file's name says the format."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from bivisor.errors import OutputError, UsageError
from bivisor.events import Event, Events, Subscription
from bivisor.toolstack.tracing.sinks import JsonSink, PerfettoSink, Sink
from bivisor.toolstack.tracing.wanted import Wanted

_GLANCE_S = 0.1
_JSON, _PERFETTO = ".jsonl", (".pftrace", ".perfetto-trace")
_NAMES = {0: "machine"}


def is_recording(name: str) -> bool:
    """Whether a file of this name is to have events (`.jsonl`, `.pftrace`), rather than lines for people."""
    return Path(name).suffix in (_JSON, *_PERFETTO)


class Recorder:
    """Writes what happens to `path` while the context lasts. UsageError where it cannot be written, OutputError at the
    end where it took not all of it: the machine is not held up by its record."""

    def __init__(self, path: Path) -> None:
        self.dropped = 0
        self._path = path
        self._failure = ""
        self._stack = ExitStack()
        self._sink = self._open(path)
        self._subscription: Subscription | None = None
        self._thread: threading.Thread | None = None

    def _open(self, path: Path) -> Sink:
        if path.suffix in _PERFETTO:
            return PerfettoSink(path, _NAMES)
        try:
            return JsonSink(self._stack.enter_context(open(path, "w", encoding="utf-8")), _NAMES)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None

    def begin(self, events: Events) -> None:
        """Record these."""
        self._subscription = Wanted().subscribe(events)
        self._thread = threading.Thread(target=self._write, args=(self._subscription,), name="bivisor-recorder")
        self._thread.start()

    def _write(self, subscription: Subscription) -> None:
        while True:
            is_last = subscription.closed
            subscription.wait_until_some(_GLANCE_S)
            events = subscription.take()
            if not self._failure:
                self._put(events)
            if is_last:
                return

    def _put(self, events: Iterable[Event]) -> None:
        try:
            for event in events:
                self._sink.put(event)
        except OSError as error:
            self._failure = error.strerror or str(error)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._stack:
                if self._subscription is not None and self._thread is not None:
                    self._subscription.close()
                    self._thread.join()
                    self.dropped = self._subscription.dropped
                self._sink.close()
        except OSError as error:
            self._failure = error.strerror or str(error)
        if self._failure:
            raise OutputError(f"cannot write all of {self._path}: {self._failure}")
