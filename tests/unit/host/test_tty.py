"""Terminals and byte streams of the host."""

from __future__ import annotations

import os
import pty
import signal
import termios
from pathlib import Path

import pytest

from bivisor.host.loop import EventLoop, ManualLoop
from bivisor.host.tty import FdStream, raw_terminal, terminal_size

LFLAG = 3


def test_a_terminal_is_raw_inside_and_as_before_outside() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with raw_terminal(slave) as is_terminal:
        assert is_terminal
        assert not termios.tcgetattr(slave)[LFLAG] & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert termios.tcgetattr(slave) == before
    with pytest.raises(KeyboardInterrupt), raw_terminal(slave):
        raise KeyboardInterrupt
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_the_size_is_told_at_first_and_when_it_changes() -> None:
    master, slave = pty.openpty()
    sizes: list[tuple[int, int]] = []
    termios.tcsetwinsize(master, (24, 80))
    handler = signal.getsignal(signal.SIGWINCH)
    with raw_terminal(slave, lambda columns, rows: sizes.append((columns, rows))):
        termios.tcsetwinsize(master, (50, 132))
        signal.raise_signal(signal.SIGWINCH)
    assert sizes == [(80, 24), (132, 50)]
    assert terminal_size(slave) == (132, 50)
    assert signal.getsignal(signal.SIGWINCH) == handler
    os.close(master)
    os.close(slave)


def test_being_killed_restores_the_terminal_too() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    child = os.fork()
    if not child:
        try:
            with raw_terminal(slave):
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_what_is_no_terminal_is_left_alone() -> None:
    with open("/dev/null", "rb") as file, raw_terminal(file.fileno()) as is_terminal:
        assert not is_terminal
        assert terminal_size(file.fileno()) is None


def test_a_pipe_is_read_to_its_end_and_stays_blocking_for_others() -> None:
    loop = ManualLoop()
    read, write = os.pipe()
    stream = FdStream(loop, read)
    assert stream.read(10) == b""
    os.write(write, b"echo hello\n")
    os.close(write)
    assert stream.read(4) == b"echo"
    assert stream.read(100) == b" hello\n"
    assert stream.read(100) is None
    assert os.get_blocking(read)
    stream.close()
    os.close(read)


def test_a_full_pipe_takes_what_fits_and_then_nothing() -> None:
    read, write = os.pipe()
    stream = FdStream(ManualLoop(), -1, write)
    data = memoryview(bytes(1 << 20))
    taken = stream.write(data)
    assert 0 < taken < len(data)
    assert stream.write(data) == 0
    os.close(read)
    assert stream.write(data) == len(data)
    stream.close()
    os.close(write)


def test_a_socket_that_cannot_be_opened_anew_does_not_block_either() -> None:
    import socket

    ours, theirs = socket.socketpair()
    stream = FdStream(ManualLoop(), ours.fileno(), ours.fileno())
    assert stream.read(10) == b""
    theirs.sendall(b"x")
    assert stream.read(10) == b"x"
    while stream.write(memoryview(bytes(4096))):
        pass
    stream.close()
    ours.close()
    theirs.close()


def test_the_leave_key_is_found_and_what_came_before_it_arrives() -> None:
    loop = ManualLoop()
    left: list[bool] = []
    read, write = os.pipe()
    stream = FdStream(loop, read, leave=lambda: left.append(True))
    os.write(write, b"ls\r\x1drest")
    assert stream.read(100) == b"ls\r"
    loop.run_soon()
    assert left == [True]
    stream.close()
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("kind", ["file", "null"])
def test_what_epoll_does_not_take_is_always_ready(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out" if kind == "file" else Path("/dev/null")
    loop = EventLoop()
    with open(path, "wb") as out, open("/dev/null", "rb") as null:
        stream = FdStream(loop, null.fileno(), out.fileno())
        seen: list[bytes | None] = []

        def readable() -> None:
            seen.append(stream.read(10))
            stream.watch(None, None)

        stream.watch(readable, None)
        loop._turn()
        assert seen == [None]
        assert stream.write(memoryview(b"log")) == 3
        stream.close()
    loop.close()
    if kind == "file":
        assert path.read_bytes() == b"log"


def test_output_that_is_not_taken_ends_the_guest_and_says_why() -> None:
    loop = ManualLoop()
    ended: list[bool] = []
    with open("/dev/full", "wb") as full:
        stream = FdStream(loop, -1, full.fileno(), gone=lambda: ended.append(True))
        assert stream.write(memoryview(b"log")) == 3
        loop.run_soon()
        assert ended == [True]
        assert stream.failure == "No space left on device"
        stream.close()
