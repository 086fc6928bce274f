"""A terminal to a guest: what is typed goes to its console, and what that says is shown.

The console is /dev/hvc0 of virtio, or COM1 (`bivisor.toolstack.session` says what a session is).
"""

from __future__ import annotations

from collections.abc import Callable

from bivisor.host.loop import Callback, Loop
from bivisor.host.tty import FdStream, terminal_size
from bivisor.kvm import VirtualMachine
from bivisor.platform.virtio.console import Port, VirtioConsole
from bivisor.toolstack.feed import Feed
from bivisor.toolstack.session import Log, check_taken, drain
from bivisor.toolstack.words import terminal_words

TYPED_AHEAD = 64 << 10
END_OF_FILE = b"\x04"
_EOF_INTERVAL = 0.5
_SETTLE = {True: 0.03, False: 0.5}  # a UART is set up again when init opens it, long after the kernel's first words
_PIECE = 4096


class TerminalSession:
    """A terminal, or whatever is on standard input and output, is the guest's console.

    With `is_terminal` Ctrl-] stops the guest. With `virtio` the console is /dev/hvc0, which hears of the terminal's
    size as it changes, and COM1 goes to `log`; otherwise it is COM1. What is typed before the guest listens is kept.
    Where the input ends, the guest hears Ctrl-D until it ends itself: a terminal has no other end. `says_end` False
    keeps that back: to firmware and boot menus it would be a key.
    """

    command: str | None = None

    def __init__(
        self,
        *,
        virtio: bool = True,
        input_fd: int = 0,
        output_fd: int = 1,
        is_terminal: bool = False,
        says_end: bool = True,
        log: Log | None = None,
    ) -> None:
        self.virtio = virtio
        self._says_end = says_end
        self.log = log or Log()
        self._fds = input_fd, output_fd
        self._is_terminal = is_terminal
        self._size = terminal_size(output_fd) or (80, 25)
        self._port: Port | None = None
        self.feed = Feed()
        """For others who look at this console, and type on it."""

    def words(self) -> str:
        """See `Session.words`. The last console named is the one that the shell is on."""
        also = " console=hvc0" if self.virtio else ""
        return f"console=ttyS0{also} {terminal_words(self._size)}"

    def connect(self, vm: VirtualMachine) -> None:
        """See `Session.connect`."""
        self._vm = vm
        terminal = FdStream(vm.loop, *self._fds, leave=vm.stop if self._is_terminal else None, gone=vm.stop)
        vm.on_close(terminal.close)
        self._stream = terminal
        self._terminal = Typed(
            vm.loop,
            terminal,
            is_terminal=self._is_terminal,
            says_end=self._says_end,
            settle=_SETTLE[self.virtio],
            on_settled=self._resize,
            also=self.feed,
        )
        self.feed.input = self._terminal.type
        if self.virtio:
            self._port = Port(self._terminal)
            self._console = VirtioConsole([self._port], size=self._size)
            vm.add(self._console)
        else:
            self._terminal.watch(self._to_com1, None)
        self._terminal.start()

    def com1(self, data: bytes) -> None:
        """See `Session.com1`."""
        self.log(data)
        if not self.virtio:
            self._terminal.write_all(data)

    def _to_com1(self) -> None:
        data = self._terminal.read(_PIECE)
        if data:
            self._vm.pc.com1.receive(data)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal's size is another now. From any thread or signal handler."""
        self._size = (columns, rows)
        self._vm.loop.call_soon(self._resize)

    def _resize(self) -> None:
        """Linux looks at the size only when it is told of a change."""
        if self._port is not None and self._console.size != self._size:
            self._console.resize(*self._size)

    @property
    def was_seen(self) -> bool:
        """Whether the guest has said anything on the console that is shown."""
        return self._terminal.was_heard

    def drain(self, vm: VirtualMachine) -> None:
        """See `Session.drain`."""
        if self._port is not None:
            drain(vm, (self._port,))
        check_taken(self._stream)


class Typed:
    """A stream that is read ahead of the guest, so that the key that leaves works at any time, and whose end is Ctrl-D.

    From a terminal everything is read and what is beyond `TYPED_AHEAD` is lost; anything else has to wait. The guest
    gets nothing before it has said something and then been silent for `settle` seconds: Linux throws away what comes
    while its driver starts.
    """

    def __init__(
        self,
        loop: Loop,
        stream: FdStream,
        *,
        is_terminal: bool,
        says_end: bool = True,
        settle: float,
        on_settled: Callback,
        also: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._loop = loop
        self._also = also
        self._on_settled = on_settled
        self._stream = stream
        self._is_terminal = is_terminal
        self._says_end = says_end
        self._settle = settle
        self._settled = False
        self._heard = 0.0
        self._buffer = bytearray()
        self._ended = False
        self._readable: Callback | None = None
        self._writable: Callback | None = None

    @property
    def was_heard(self) -> bool:
        """Whether the guest has said anything."""
        return self._settled or self._heard > 0

    def start(self) -> None:
        """Begin to read."""
        self._watch()

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """See `Stream.watch`."""
        if readable is not None and readable != self._readable and self._buffer:
            self._loop.call_soon(self._offer)
        self._readable, self._writable = readable, writable
        self._watch()

    def _watch(self) -> None:
        wanted = not self._ended and (self._is_terminal or len(self._buffer) < TYPED_AHEAD)
        self._stream.watch(self._read_ahead if wanted else None, self._writable)

    def _offer(self) -> None:
        if self._settled and self._buffer and self._readable is not None:
            self._readable()

    def _hear(self) -> None:
        """The guest said something."""
        waiting, self._heard = self._heard, self._loop.now()
        if not waiting:
            self._loop.call_at(self._heard + self._settle, self._perhaps_settled)

    def _perhaps_settled(self) -> None:
        if self._loop.now() < self._heard + self._settle:
            self._loop.call_at(self._heard + self._settle, self._perhaps_settled)
            return
        self._settled = True
        self._on_settled()
        self._offer()

    def _read_ahead(self) -> None:
        data = self._stream.read(_PIECE)
        if data is None:
            self._ended = True
            if self._says_end:
                self._end_of_file()
        else:
            self._buffer += data[: TYPED_AHEAD - len(self._buffer)] if self._is_terminal else data
        self._watch()
        self._offer()

    def type(self, data: bytes) -> None:
        """Somebody else types `data`. What is too much is lost."""
        self._buffer += data[: TYPED_AHEAD - len(self._buffer)]
        self._offer()

    def _end_of_file(self) -> None:
        """Once is not enough: a program that has the terminal for a moment may take it for itself."""
        if not self._buffer:
            self._buffer += END_OF_FILE
            self._offer()
        self._loop.call_at(self._loop.now() + _EOF_INTERVAL, self._end_of_file)

    def read(self, limit: int) -> bytes | None:
        """See `Stream.read`."""
        if not self._settled:
            return b""
        data = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        if data:
            self._watch()
        return data

    def write(self, data: memoryview) -> int:
        """See `Stream.write`."""
        if not self._settled:
            self._hear()
        taken = self._stream.write(data)
        self._also(bytes(data[:taken]))
        return taken

    def wait_writable(self, timeout: float | None = None) -> None:
        """See `FdStream.wait_writable`."""
        self._stream.wait_writable(timeout)

    def write_all(self, data: bytes) -> None:
        """Write, and wait as long as it takes: a UART has nowhere to keep anything."""
        left = memoryview(data)
        while left:
            left = left[self.write(left) :]
            if left:
                self._stream.wait_writable()
