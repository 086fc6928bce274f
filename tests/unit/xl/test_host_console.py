"""A domain's console in the host: who hears what, and that nobody who listens can hold the domain up."""

from __future__ import annotations

import socket
from pathlib import Path

from bivisor.host.logfile import LogFile
from bivisor.host.loop import ManualLoop
from bivisor.toolstack.feed import KEPT, Feed
from bivisor.toolstack.hostd.stream import LIMIT, ConsoleStream


class Listener:
    def __init__(self) -> None:
        self.heard = b""
        self.ended = False

    def __call__(self, data: bytes) -> None:
        self.heard += data

    def end(self) -> None:
        self.ended = True


def test_who_comes_first_hears_everything_and_who_comes_back_what_is_new() -> None:
    feed, first, second = Feed(), Listener(), Listener()
    feed(b"booting\n")
    feed.listen(first)
    feed(b"ready\n")
    assert first.heard == b"booting\nready\n"
    feed.leave(first)
    feed(b"news\n")
    feed.listen(second)
    assert second.heard == b"news\n"


def test_the_line_that_is_not_finished_is_shown_to_everybody() -> None:
    feed, first, second = Feed(), Listener(), Listener()
    feed(b"welcome\nlogin: ")
    feed.listen(first)
    feed.listen(second)
    assert (first.heard, second.heard) == (b"welcome\nlogin: ", b"login: ")
    feed(b"!")
    assert second.heard == b"login: !"


def test_what_is_kept_is_bounded_and_the_log_gets_all() -> None:
    log, late = Listener(), Listener()
    feed = Feed(log)
    for number in range(3 * KEPT // 8):
        feed(b"%07d\n" % number)
    feed.listen(late)
    assert len(late.heard) == KEPT
    assert late.heard.endswith(b"%07d\n" % number)
    assert len(log.heard) == 8 * (number + 1)


def test_the_end_is_told_once_to_those_who_still_listen() -> None:
    feed, stays, leaves = Feed(), Listener(), Listener()
    feed.listen(stays, stays.end)
    feed.listen(leaves, leaves.end)
    feed.leave(leaves)
    feed.leave(leaves)
    feed.close()
    assert (stays.ended, leaves.ended) == (True, False)


def connected(feed: Feed, typed: bytes = b"") -> tuple[ManualLoop, socket.socket, int]:
    loop, (here, there) = ManualLoop(), socket.socketpair()
    there.settimeout(10)
    fd = here.fileno()
    ConsoleStream(loop, feed, here, typed)
    return loop, there, fd


def test_bytes_go_both_ways_and_the_stream_ends_with_the_domain() -> None:
    feed, typed = Feed(), Listener()
    feed.input = typed
    feed(b"login: ")
    loop, there, fd = connected(feed, b"ro")
    assert there.recv(100) == b"login: "
    there.sendall(b"ot\n")
    loop.poll(fd)
    assert typed.heard == b"root\n"
    feed(b"bye")
    feed.close()
    assert there.recv(100) == b"bye"
    assert there.recv(100) == b""
    assert fd not in loop.watches


def test_who_hangs_up_listens_no_more() -> None:
    feed = Feed()
    loop, there, fd = connected(feed)
    there.close()
    loop.poll(fd)
    assert fd not in loop.watches
    feed(b"nobody hears this")


def test_who_does_not_read_loses_the_oldest_and_holds_nobody_up() -> None:
    feed = Feed()
    loop, there, fd = connected(feed)
    for number in range(3 * LIMIT // 1024):
        feed(b"%07d " % number * 128)
    heard = b""
    while loop.watches[fd][1] is not None:
        heard += there.recv(1 << 20)
        writable = loop.watches[fd][1]
        assert writable is not None
        writable()
    there.setblocking(False)
    try:
        while True:
            heard += there.recv(1 << 20)
    except BlockingIOError:
        pass
    assert heard.startswith(b"0000000 ")
    assert heard.endswith(b"%07d " % number)
    assert len(heard) < 3 * LIMIT


def test_what_is_typed_waits_where_the_domain_does_not_read() -> None:
    feed, typed = Feed(), Listener()
    full = True
    feed.input = typed
    feed.untaken = lambda: 1 << 20 if full else 0
    loop, there, fd = connected(feed)
    there.sendall(b"x")
    loop.poll(fd)
    assert fd not in loop.watches  # nothing more is read
    for _ in range(100):
        loop.advance(0.02)
    assert fd not in loop.watches
    full = False
    loop.advance(0.02)
    loop.poll(fd) if there.send(b"y") else None
    assert typed.heard == b"xy"


def test_a_guest_cannot_fill_the_disk_through_its_log(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "guest-u1.log", limit=1000)
    for _ in range(100):
        log.write(b"x" * 99 + b"\n")
    log.close()
    log.write(b"too late")
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"guest-u1.log": 1000, "guest-u1.log.1": 1000}
    assert (tmp_path / "guest-u1.log").stat().st_mode & 0o777 == 0o600
