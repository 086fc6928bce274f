"""What is typed, kept and shown between a person and a guest's console."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bivisor.host.loop import ManualLoop
from bivisor.host.tty import FdStream
from bivisor.toolstack.session import CommandSession, Log
from bivisor.toolstack.terminal import TerminalSession, Typed


class Console:
    """A guest's console on pipes: `typed` is the far end of its input, `shown` of its output."""

    def __init__(self, *, is_terminal: bool, says_end: bool = True) -> None:
        self.loop = ManualLoop()
        self.read_end, self.typed = os.pipe()
        self.shown, self.write_end = os.pipe()
        self.left = False
        self.heard = b""
        self.events: list[str] = []
        self.stream = FdStream(self.loop, self.read_end, self.write_end, leave=self._leave if is_terminal else None)
        self.console = Typed(
            self.loop,
            self.stream,
            is_terminal=is_terminal,
            says_end=says_end,
            settle=0.03,
            on_settled=lambda: self.events.append("settled"),
        )
        self.console.start()

    def _leave(self) -> None:
        self.left = True

    def guest_reads(self) -> None:
        self.heard += self.console.read(1 << 20) or b""

    def guest_listens(self) -> None:
        self.console.watch(self.guest_reads, None)

    def guest_says(self, words: bytes) -> None:
        self.console.write(memoryview(words))

    def type(self, data: bytes) -> None:
        os.write(self.typed, data)
        self.arrive()

    def arrive(self) -> None:
        for fd in [fd for fd, (readable, _) in self.loop.watches.items() if readable]:
            self.loop.poll(fd)
        self.loop.run_soon()

    def close(self) -> None:
        self.stream.close()
        for fd in (self.read_end, self.typed, self.shown, self.write_end):
            os.close(fd)


@pytest.fixture
def terminal() -> Iterator[Console]:
    console = Console(is_terminal=True)
    yield console
    console.close()


@pytest.fixture
def pipe() -> Iterator[Console]:
    console = Console(is_terminal=False)
    yield console
    console.close()


def test_what_is_typed_early_arrives_when_the_guest_has_settled(terminal: Console) -> None:
    terminal.type(b"early\n")
    terminal.guest_listens()
    terminal.loop.advance(1)
    assert terminal.heard == b""  # it has said nothing yet
    terminal.guest_says(b"welcome")
    terminal.loop.advance(0.02)
    terminal.guest_says(b"# ")
    terminal.loop.advance(0.02)
    assert terminal.heard == b""  # it is still talking
    terminal.loop.advance(0.02)
    assert terminal.heard == b"early\n"
    assert terminal.events == ["settled"]
    terminal.type(b"late\n")
    assert terminal.heard == b"early\nlate\n"


def test_the_leave_key_works_before_the_guest_listens(terminal: Console) -> None:
    terminal.type(b"abc\x1ddef")
    assert terminal.left


def test_a_terminal_is_read_even_when_nobody_takes_it(terminal: Console) -> None:
    for _ in range(40):
        terminal.type(bytes(4096))
    terminal.type(b"\x1d")
    assert terminal.left


def test_a_pipe_waits_until_the_guest_takes_it(pipe: Console) -> None:
    os.set_blocking(pipe.typed, False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += os.write(pipe.typed, bytes(4096))
            pipe.arrive()
    assert sent < 1 << 20
    pipe.guest_listens()
    pipe.guest_says(b"# ")
    pipe.loop.advance(0.05)
    while len(pipe.heard) < sent:
        pipe.arrive()
    assert pipe.heard == bytes(sent)


def test_the_end_of_a_pipe_is_ctrl_d_until_the_guest_has_ended(pipe: Console) -> None:
    pipe.type(b"last words\n")
    os.close(pipe.typed)
    pipe.typed = os.dup(pipe.read_end)
    pipe.arrive()
    pipe.guest_listens()
    pipe.guest_says(b"# ")
    pipe.loop.advance(0.05)
    assert pipe.heard == b"last words\n"
    pipe.loop.advance(0.6)
    assert pipe.heard == b"last words\n\x04"
    pipe.loop.advance(0.6)
    assert pipe.heard == b"last words\n\x04\x04"


def test_the_end_of_a_pipe_is_kept_from_whom_it_would_be_a_key() -> None:
    """A boot menu stops its clock at any key: `bivisor run --machine pc </dev/null` never booted."""
    pipe = Console(is_terminal=False, says_end=False)
    pipe.type(b"last words\n")
    os.close(pipe.typed)
    pipe.typed = os.dup(pipe.read_end)
    pipe.arrive()
    pipe.guest_listens()
    pipe.guest_says(b"# ")
    pipe.loop.advance(2)
    assert pipe.heard == b"last words\n"
    pipe.close()


def test_the_log_keeps_the_end_and_knows_a_panic() -> None:
    seen: list[bytes] = []
    log = Log(seen.append)
    for number in range(10000):
        log(b"line %d\r\n" % number)
    log(b"[ 1.0] Kernel panic - not syncing: Attempted to kill init!\r\n\x1b[0m\r\n")
    assert log.lines(3) == ["line 9999", "[ 1.0] Kernel panic - not syncing: Attempted to kill init!", "[0m"]
    assert log.panic() == "Attempted to kill init!"
    assert len(log.text()) < 70000
    assert len(seen) == 10001
    assert Log().panic() == ""


def test_a_command_has_ports_and_a_terminal_its_size() -> None:
    assert "bivisor.stdio=virtio" in CommandSession("true").words()
    with open(os.devnull) as nowhere:
        assert "console=hvc0 bivisor.size=25x80" in TerminalSession(output_fd=nowhere.fileno()).words()
        assert "hvc0" not in TerminalSession(virtio=False, output_fd=nowhere.fileno()).words()
