"""The store's socket with clients that others wrote: Debian's xenstore-utils and pyxs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bivisor.abi.xen.xs_wire import SOCKMSG, MessageType
from bivisor.dom0.xenstore import wire
from bivisor.dom0.xenstore.server import Server
from bivisor.dom0.xenstore.socket_server import SocketServer
from bivisor.dom0.xenstore.wire import Message
from bivisor.errors import HostError
from bivisor.host.loop import EventLoop


@dataclass
class Daemon:
    """A store that is served at `path`."""

    server: Server
    sockets: SocketServer
    loop: EventLoop
    path: Path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    errors: list[BaseException] = []
    loop = EventLoop(errors.append)
    server = Server()
    path = tmp_path / "xenstored"
    sockets = SocketServer(server, loop, path)
    loop.start()
    yield Daemon(server, sockets, loop, path)
    loop.close()
    sockets.close()
    assert not errors
    assert not path.exists()


@pytest.fixture
def plain(daemon: Daemon) -> Iterator[socket.socket]:
    """A socket that is connected, and nothing more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.settimeout(30)
        end.connect(str(daemon.path))
        yield end


def answer(end: socket.socket) -> Message:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = end.recv(count - len(data))
            assert piece, "disconnected"
            data += piece
        return data

    type_, req_id, tx_id, length = SOCKMSG.unpack(exactly(16))
    return Message(type_, req_id, tx_id, exactly(length))


def test_bytes_that_come_one_by_one_are_a_request(plain: socket.socket) -> None:
    for byte in wire.encode(Message(MessageType.WRITE, 1, 0, b"/a\0value")):
        plain.send(bytes([byte]))
    assert answer(plain) == Message(MessageType.WRITE, 1, 0, b"OK\0")


def test_many_requests_at_once_have_their_replies_in_order(plain: socket.socket) -> None:
    requests = [Message(MessageType.WRITE, 0, 0, b"/a\0" + b"v" * 4000)]
    requests += [Message(MessageType.READ, i, 0, b"/a\0") for i in range(1, 2000)]
    sender = threading.Thread(target=plain.sendall, args=(b"".join(map(wire.encode, requests)),))
    sender.start()
    try:
        assert [answer(plain).req_id for _ in requests] == list(range(2000))
    finally:
        sender.join()


def test_a_client_that_breaks_the_framing_is_disconnected(daemon: Daemon, plain: socket.socket) -> None:
    plain.sendall(SOCKMSG.pack(MessageType.READ, 0, 0, 4097))
    assert plain.recv(1) == b""
    with daemon.loop.lock:
        assert daemon.sockets.clients == 0


def test_a_client_that_leaves_takes_its_watches_and_transactions_along(daemon: Daemon, plain: socket.socket) -> None:
    for request in (
        Message(MessageType.WATCH, 0, 0, b"/\0t\0"),
        Message(MessageType.TRANSACTION_START, 1, 0, b"\0"),
    ):
        plain.sendall(wire.encode(request))
        answer(plain)
    answer(plain)
    plain.shutdown(socket.SHUT_WR)
    assert plain.recv(1) == b""
    with daemon.loop.lock:  # the end of the stream can be seen before the callback that closed it has returned
        assert not daemon.server.connections
        assert not daemon.server.watches._root.watches


def test_only_the_owner_may_open_the_socket(daemon: Daemon) -> None:
    assert daemon.path.stat().st_mode & 0o777 == 0o600


def test_a_socket_that_is_served_already_is_refused_and_a_dead_one_replaced(daemon: Daemon, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="somebody listens there already"):
        SocketServer(daemon.server, daemon.loop, daemon.path)
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(dead))
    SocketServer(daemon.server, daemon.loop, dead).close()


def test_a_folder_that_is_not_there_is_one_line(daemon: Daemon, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"xenstore socket .*: No such file"):
        SocketServer(daemon.server, daemon.loop, tmp_path / "no" / "socket")


@dataclass
class Utilities:
    """Debian's xenstore-utils on the socket of a daemon."""

    environment: dict[str, str]

    def __call__(self, tool: str, *arguments: str, status: int = 0) -> str:
        ended = subprocess.run(
            [f"xenstore-{tool}", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == status, ended.stderr
        return ended.stdout

    def start(self, tool: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [f"xenstore-{tool}", *arguments], env=self.environment, stdout=subprocess.PIPE, text=True, bufsize=1
        )


@pytest.fixture
def xenstore(daemon: Daemon) -> Utilities:
    if shutil.which("xenstore-ls") is None:
        pytest.skip("xenstore-utils is not installed")
    return Utilities(dict(os.environ, XENSTORED_PATH=str(daemon.path)))


def test_debian_s_utilities_write_read_list_and_remove(xenstore: Utilities) -> None:
    xenstore("write", "/a/b", "hello", "/a/c", "there")
    assert xenstore("read", "/a/b") == "hello\n"
    assert xenstore("list", "/a") == "b\nc\n"
    xenstore("exists", "/a/b")
    xenstore("rm", "/a/b")
    xenstore("exists", "/a/b", status=1)
    xenstore("read", "/a/b", status=1)
    xenstore("rm", "-t", "/a/c")
    assert xenstore("ls") == 'tool = ""\n xenstored = ""\n'


def test_debian_s_xenstore_ls_shows_permissions_that_xenstore_chmod_set(xenstore: Utilities) -> None:
    xenstore("write", "/a/b", "1")
    xenstore("chmod", "-r", "/a", "b1", "r2", "w3", "n4")
    assert '/a/b = "1"   (b1,r2,w3,n4)\n' in xenstore("ls", "-f", "-p")


def test_debian_s_xenstore_ls_shows_a_directory_that_needs_parts(xenstore: Utilities, daemon: Daemon) -> None:
    with daemon.loop.lock:
        connection = daemon.server.connect()
        for i in range(1500):
            message = Message(MessageType.WRITE, 0, 0, b"/big/child-%05d\0" % i)
            daemon.server.receive(connection, message)
        daemon.server.disconnect(connection)
    assert len(xenstore("ls", "/big").splitlines()) == 1500


def test_debian_s_xenstore_watch_hears(xenstore: Utilities) -> None:
    with xenstore.start("watch", "/w") as watching:
        assert watching.stdout is not None
        try:
            assert watching.stdout.readline() == "/w\n"
            xenstore("write", "/w/x", "1")
            assert watching.stdout.readline() == "/w/x\n"
            xenstore("rm", "/w")
            assert watching.stdout.readline() == "/w\n"
        finally:
            watching.kill()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Any]:
    pyxs = pytest.importorskip("pyxs", reason="pyxs is not installed")
    with pyxs.Client(unix_socket_path=str(daemon.path)) as client:
        yield client


def test_pyxs_writes_reads_lists_and_removes(client: Any) -> None:
    client.write(b"/a/b", b"1")
    client.mkdir(b"/a/c")
    assert client.read(b"/a/b") == b"1"
    assert client.list(b"/a") == [b"b", b"c"]
    assert client.exists(b"/a/b")
    client.delete(b"/a")
    assert not client.exists(b"/a/b")
    assert client.get_domain_path(3) == b"/local/domain/3"
    assert client.is_domain_introduced(9) is False


def test_pyxs_sets_permissions(client: Any) -> None:
    client.write(b"/a", b"1")
    client.set_perms(b"/a", [b"n0", b"r5"])
    assert client.get_perms(b"/a") == [b"n0", b"r5"]


def test_pyxs_transactions_commit_and_conflict(client: Any, daemon: Daemon) -> None:
    client.write(b"/n", b"0")
    client.transaction()
    client.write(b"/n", b"%d" % (int(client.read(b"/n")) + 1))
    assert client.commit() is True
    assert client.read(b"/n") == b"1"
    with type(client)(unix_socket_path=str(daemon.path)) as other:
        client.transaction()
        client.read(b"/n")
        client.write(b"/m", b"1")
        other.write(b"/n", b"2")
        assert client.commit() is False
    assert not client.exists(b"/m")


def test_pyxs_hears_what_it_watches(client: Any) -> None:
    with client.monitor() as monitor:
        monitor.watch(b"/w", b"token")
        events = monitor.wait()
        assert next(events) == (b"/w", b"token")
        client.write(b"/w/x", b"1")
        assert next(events) == (b"/w/x", b"token")
        monitor.unwatch(b"/w", b"token")
