"""A console's bytes on a connection, in the host's loop. A listener that does not keep up loses the oldest of them,
because a guest must not wait for it."""

from __future__ import annotations

import socket

from bivisor.host.loop import Loop
from bivisor.toolstack.feed import Feed

LIMIT = 1 << 20
_TYPED_AHEAD = 16 << 10
_AGAIN_S = 0.02
_PIECE = 4096


class ConsoleStream:
    """Connects `end` with `feed` until either ends. Made with the loop's lock held."""

    def __init__(self, loop: Loop, feed: Feed, end: socket.socket, typed: bytes) -> None:
        self._loop = loop
        self._feed = feed
        self._end = end
        self._fd = end.fileno()
        self._output = bytearray()
        self._is_last = self._is_due = False
        end.setblocking(False)
        loop.watch(self._fd, self._readable)
        feed.listen(self._say, self._ended)
        if typed:
            feed.input(typed)

    def _say(self, data: bytes) -> None:
        self._output += data
        del self._output[:-LIMIT]
        self._flush()

    def _ended(self) -> None:
        self._is_last = True
        self._flush()

    def _flush(self) -> None:
        if self._fd < 0:
            return
        try:
            while self._output:
                del self._output[: self._end.send(self._output)]
        except BlockingIOError:
            self._watch()
            return
        except OSError:
            self.close()
            return
        if self._is_last:
            self.close()
        else:
            self._watch()

    def _watch(self) -> None:
        if self._fd < 0:
            return
        has_room = not self._is_last and self._feed.untaken() < _TYPED_AHEAD
        if not has_room and not self._is_last and not self._is_due:
            self._is_due = True
            self._loop.call_at(self._loop.now() + _AGAIN_S, self._look_again)
        self._loop.watch(self._fd, self._readable if has_room else None, self._flush if self._output else None)

    def _look_again(self) -> None:
        self._is_due = False
        self._watch()

    def _readable(self) -> None:
        try:
            data = self._end.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._feed.input(data)
        self._watch()

    def close(self) -> None:
        """Let go of both."""
        if self._fd < 0:
            return
        self._loop.unwatch(self._fd)
        self._fd = -1
        self._feed.leave(self._say)
        self._end.close()
