"""A byte stream in memory: the program's own end of a console port."""

from __future__ import annotations

from collections.abc import Callable

from bivisor.host.loop import Callback, Loop

LIMIT = 1 << 20


class MemoryStream:
    """What the guest writes goes to `sink(bytes)`, or is kept for `take()`; `send()` is what it reads.

    At most `limit` bytes are kept; then the guest has to wait until somebody takes them. All but `send`, `end` and
    `take` is called with the device lock held; those take it.
    """

    def __init__(self, loop: Loop, sink: Callable[[bytes], None] | None = None, *, limit: int = LIMIT) -> None:
        self._loop = loop
        self._sink = sink
        self._limit = limit
        self._input = bytearray()
        self._output = bytearray()
        self._ended = False
        self._waking = False
        self._readable: Callback | None = None
        self._writable: Callback | None = None

    def send(self, data: bytes) -> None:
        """Queue `data` for the guest to read. From any thread."""
        with self._loop.lock:
            self._input += data
        self._soon()

    def end(self) -> None:
        """Nothing more will be sent. From any thread."""
        with self._loop.lock:
            self._ended = True
        self._soon()

    def take(self) -> bytes:
        """What the guest wrote since the last call, where there is no sink. From any thread."""
        with self._loop.lock:
            data = bytes(self._output)
            self._output.clear()
        self._soon()
        return data

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """See `platform.virtio.console.Stream.watch`."""
        before = (self._readable, self._writable)
        self._readable, self._writable = readable, writable
        if before != (readable, writable):
            self._soon()

    def _soon(self) -> None:
        with self._loop.lock:
            if self._waking:
                return
            self._waking = True
        self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._waking = False
        if self._readable is not None and (self._input or self._ended):
            self._readable()
        if self._writable is not None and len(self._output) < self._limit:
            self._writable()
        if (self._readable and self._input) or (self._writable and len(self._output) < self._limit):
            self._soon()

    def read(self, limit: int) -> bytes | None:
        """See `platform.virtio.console.Stream.read`."""
        if not self._input:
            return None if self._ended else b""
        data = bytes(self._input[:limit])
        del self._input[:limit]
        return data

    def write(self, data: memoryview) -> int:
        """See `platform.virtio.console.Stream.write`."""
        if self._sink is not None:
            self._sink(bytes(data))
            return len(data)
        room = min(len(data), self._limit - len(self._output))
        self._output += data[:room]
        return room

    def close(self) -> None:
        """Forget the guest."""
        self._readable = self._writable = None
