"""The terminal of the person at the keyboard, and streams of bytes in general, without ever blocking.

`raw_terminal` holds the terminal in raw mode; `FdStream` is a console's byte stream on two descriptors (a terminal,
pipes, files, /dev/null), and finds the key that means "leave" in what was typed. See termios(3).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from bivisor.host.loop import Callback, Loop

LEAVE = 0x1D  # Ctrl-]
SMALL = 512  # what a descriptor that is ready takes without blocking: pipe(7), and tty and socket queues are larger
_WINSIZE = struct.Struct("HHHH")


def terminal_size(fd: int) -> tuple[int, int] | None:
    """(columns, rows) of the terminal `fd`, or None where it is none or does not know."""
    try:
        rows, columns, _, _ = _WINSIZE.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_WINSIZE.size)))
    except OSError:
        return None
    return (columns, rows) if columns and rows else None


@contextmanager
def raw_terminal(fd: int, on_resize: Callable[[int, int], None] | None = None) -> Iterator[bool]:
    """Hold the terminal `fd` in raw mode, and tell `on_resize(columns, rows)` of its size, now and when it changes.

    It is restored however the block ends. Yields whether there is a terminal; where there is none nothing is done. Only
    the main thread hears of changes; `on_resize` is called in a signal handler there and should only hand the size on.
    """
    if not os.isatty(fd):
        yield False
        return

    before = termios.tcgetattr(fd)

    def restore() -> None:
        # TCSADRAIN and not TCSAFLUSH: what was typed ahead belongs to the shell that comes next.
        termios.tcsetattr(fd, termios.TCSADRAIN, before)

    def resized(_number: int = 0, _frame: FrameType | None = None) -> None:
        size = terminal_size(fd)
        if size and on_resize is not None:
            on_resize(*size)

    def ended(number: int, _frame: FrameType | None) -> None:
        restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    with _handlers({signal.SIGWINCH: resized, signal.SIGTERM: ended, signal.SIGHUP: ended}):
        try:
            tty.setraw(fd, termios.TCSADRAIN)
            resized()
            yield True
        finally:
            restore()


@contextmanager
def _handlers(wanted: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Handle signals for a while: only those that nobody handles, and only in the main thread, as Python has it."""
    here = threading.current_thread() is threading.main_thread()
    mine = {number: f for number, f in wanted.items() if here and signal.getsignal(number) == signal.SIG_DFL}
    for number, handler in mine.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


class FdStream:
    """A byte stream from descriptor `input_fd` and to `output_fd` (-1: there is none), in the terms of a console port.

    The descriptors stay their owner's. They are opened anew where that is possible, because O_NONBLOCK on a shared
    terminal or pipe would also hit the other programs that have it. `leave` is called for the key, `gone` when nobody
    can read the output any more, or it takes no more (`failure` says why); both in the loop's thread.
    """

    failure = ""
    """Why the output took no more, in the system's words; "" while it does, and where nobody reads it any more."""

    def __init__(
        self,
        loop: Loop,
        input_fd: int = -1,
        output_fd: int = -1,
        *,
        leave: Callback | None = None,
        gone: Callback | None = None,
    ) -> None:
        self._loop = loop
        self._leave = leave
        self._gone = gone
        self._input, self._input_blocks = _open_again(input_fd, os.O_RDONLY)
        self._output, self._output_blocks = _open_again(output_fd, os.O_WRONLY)
        self._watched: dict[int, Callback | None] = {self._input: None, self._output: None}
        self._unpollable: set[int] = set()
        self._scheduled: set[int] = set()

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """See `platform.virtio.console.Stream.watch`."""
        for fd, callback, is_output in ((self._input, readable, False), (self._output, writable, True)):
            if fd < 0 or self._watched[fd] == callback:
                continue
            self._watched[fd] = callback
            if fd not in self._unpollable:
                try:
                    self._loop.watch(fd, None if is_output else callback, callback if is_output else None)
                    continue
                except PermissionError:  # epoll(7) refuses what is always ready: files, /dev/null
                    self._unpollable.add(fd)
            self._schedule(fd)

    def _schedule(self, fd: int) -> None:
        if self._watched.get(fd) and fd not in self._scheduled:
            self._scheduled.add(fd)
            self._loop.call_soon(lambda: self._always_ready(fd))

    def _always_ready(self, fd: int) -> None:
        self._scheduled.discard(fd)
        callback = self._watched.get(fd)
        if callback is not None:
            callback()
            self._schedule(fd)

    def read(self, limit: int) -> bytes | None:
        """See `platform.virtio.console.Stream.read`. The leave key and what follows it are not handed on."""
        if self._input < 0:  # the end of input closes a port, and one for output alone has to stay open
            return b"" if self._output >= 0 else None
        try:
            if self._input_blocks and not select.select([self._input], [], [], 0)[0]:
                return b""
            data = os.read(self._input, limit)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the terminal has gone
                raise
            data = b""
        if not data:
            self._loop.unwatch(self._input)
            return None
        if self._leave is not None and LEAVE in data:
            data = data[: data.index(LEAVE)]
            self._loop.call_soon(self._leave)
        return data

    def write(self, data: memoryview) -> int:
        """See `platform.virtio.console.Stream.write`. What cannot be written counts as taken."""
        if self._output < 0:
            return len(data)
        try:
            if self._output_blocks:
                if not select.select([], [self._output], [], 0)[1]:
                    return 0
                data = data[:SMALL]
            return os.write(self._output, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                self.failure = error.strerror or str(error)
            if self._gone is not None:
                self._loop.call_soon(self._gone)
            return len(data)

    def wait_writable(self, timeout: float | None = None) -> None:
        """Block until the output takes more, nobody can read it any more, or `timeout` seconds have passed."""
        if self._output >= 0:
            select.select([], [self._output], [], timeout)

    def close(self) -> None:
        """End the watches and close the descriptors that were opened here."""
        self._watched.clear()
        for fd in (self._input, self._output):
            if fd >= 0:
                self._loop.unwatch(fd)
                os.close(fd)
        self._input = self._output = -1


def _open_again(fd: int, mode: int) -> tuple[int, bool]:
    """Another description of what `fd` is, which does not block; or a duplicate, and True: that one may block."""
    if fd < 0:
        return -1, False
    link = Path(f"/proc/self/fd/{fd}")
    try:
        append = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        if not link.is_file():  # a file's position has to stay shared
            return os.open(link, mode | append | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), False
    except OSError:  # a socket, a terminal of somebody else, no /proc
        pass
    return os.dup(fd), True
