"""Ethernet frames on a byte stream: each behind its length in four bytes, most significant first.

This is what QEMU's `-netdev stream` and passt(1) speak. It has no header, so it carries no offloads.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from bivisor.host.loop import Callback, Loop

FRAME_MAX = 65550
_LENGTH = struct.Struct(">I")
_BUFFER = 256 << 10


class FramedStream:
    """A wire on the connected stream socket `fd`, which must not block and is closed with it."""

    has_header = False
    offloads = 0
    frame_max = 0

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._unsent = b""
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._readable: Callback | None = None
        self._writable: Callback | None = None
        self._scheduled = False

    def set_offloads(self, features: int) -> None:
        """See `platform.virtio.net.NetBackend.set_offloads`."""

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """See `platform.virtio.net.NetBackend.watch`. Frames that are in the buffer already count as readable."""
        if (readable, writable) != (self._readable, self._writable):
            self._readable, self._writable = readable, writable
            self._watch()
        if readable is not None and self._next() and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._buffered)

    def _watch(self) -> None:
        if self._fd >= 0:
            wants_room = self._unsent or self._writable is not None
            self._loop.watch(self._fd, self._readable, self._ready if wants_room else None)

    def _ready(self) -> None:
        """The socket takes more."""
        if self._drain():
            if self._writable is not None:
                self._writable()
            self._watch()

    def _buffered(self) -> None:
        self._scheduled = False
        if self._readable is not None:
            self._readable()

    def _drain(self) -> bool:
        """Send the rest of the frame that was cut off; whether the wire is free."""
        if self._unsent:
            self._unsent = self._unsent[self._write((memoryview(self._unsent),)) :]
        return not self._unsent

    def _write(self, views: Sequence[memoryview]) -> int:
        try:
            return os.writev(self._fd, views)
        except BlockingIOError:
            return 0
        except OSError:  # nobody is there any more: as if sent
            return sum(map(len, views))

    def send(self, views: Sequence[memoryview]) -> bool:
        """See `platform.virtio.net.NetBackend.send`. At most the rest of one frame is kept here."""
        if not self._drain():
            return False
        size = sum(map(len, views))
        whole = (memoryview(_LENGTH.pack(size)), *views)
        sent = self._write(whole)
        if not sent:
            return False
        if sent < _LENGTH.size + size:
            self._unsent = b"".join(whole)[sent:]
            self._watch()
        return True

    def _next(self) -> int:
        """The length of the whole frame at the start of the buffer, or 0. -1: the stream makes no sense."""
        held = self._end - self._start
        if held < _LENGTH.size:
            return 0
        size = int(_LENGTH.unpack_from(self._buffer, self._start)[0])
        if not 0 < size <= FRAME_MAX:
            return -1
        return size if held >= _LENGTH.size + size else 0

    def receive(self, views: Sequence[memoryview]) -> int:
        """See `platform.virtio.net.NetBackend.receive`."""
        size = self._next()
        if not size:
            got = self._fill()
            if got <= 0:
                return got
            size = self._next()
        if size <= 0:
            return size
        at = self._start + _LENGTH.size
        stop = at + size
        self._start = stop
        for view in views:
            part = min(len(view), stop - at)
            view[:part] = self._view[at : at + part]
            at += part
            if at == stop:
                break
        return size

    def _fill(self) -> int:
        """Read what there is: how many bytes, 0 for none now, -1 for never again."""
        if self._start:
            held = self._end - self._start
            self._view[:held] = self._view[self._start : self._end]
            self._start, self._end = 0, held
        try:
            count = os.readv(self._fd, [self._view[self._end :]])
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return -1
        self._end += count
        return count or -1

    def close(self) -> None:
        """End the watch and close the socket."""
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
