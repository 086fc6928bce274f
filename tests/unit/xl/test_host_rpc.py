"""How commands reach the host: who may, what they can ask, and what becomes of whatever else they send."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bivisor.abi.xen.errno import Errno
from bivisor.errors import BivisorError, EngineError, HostError, ImageError, UsageError
from bivisor.host import local_socket
from bivisor.host.daemon import LockFile
from bivisor.host.local_socket import private_folder
from bivisor.toolstack.hostd import messages
from bivisor.toolstack.hostd.client import HostClient
from bivisor.toolstack.hostd.place import Place, place_of
from bivisor.toolstack.hostd.server import Peer, RpcServer
from bivisor.xen.errors import XenError


class Methods:
    """What the server under test can do."""

    def __init__(self) -> None:
        self.gone = threading.Event()

    def table(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("echo", "refuse", "wait", "console", "crash")}

    def echo(self, _: Peer, **params: Any) -> Any:
        return params

    def refuse(self, _: Peer, kind: str) -> None:
        kinds = (BivisorError, EngineError, HostError, ImageError, UsageError)
        raise next(each for each in kinds if each.__name__ == kind)("it cannot be")

    def crash(self, _: Peer, in_xen: bool) -> None:
        raise XenError(Errno.EINVAL) if in_xen else ZeroDivisionError("a bug")

    def wait(self, peer: Peer) -> None:
        while not peer.is_gone():
            pass
        self.gone.set()

    def console(self, peer: Peer, domain: str) -> None:
        def take(end: socket.socket, rest: bytes) -> None:
            end.sendall(domain.encode() + b" says " + rest + end.recv(9))
            end.close()

        peer.take = take


@pytest.fixture
def methods() -> Methods:
    return Methods()


@pytest.fixture
def place(tmp_path: Path, methods: Methods) -> Iterator[Place]:
    place = Place(private_folder(tmp_path / "state"))
    server = RpcServer(place.socket, methods.table())
    yield place
    server.close()
    assert not place.socket.exists()


def test_a_result_comes_back_as_it_was_given(place: Place) -> None:
    with HostClient(place) as host:
        for value in ({"a": [1, None, "ä\n"]}, {}, {"a": "x" * 100_000}):
            assert host.call("echo", **value) == value


@pytest.mark.parametrize("kind", [BivisorError, EngineError, HostError, ImageError, UsageError])
def test_what_is_refused_is_raised_as_it_was_there(kind: type[BivisorError], place: Place) -> None:
    with HostClient(place) as host:
        with pytest.raises(kind, match=r"^it cannot be$") as caught:
            host.call("refuse", kind=kind.__name__)
        assert type(caught.value) is kind
        assert host.call("echo") == {}


def test_a_bug_in_the_host_is_one_line_here_and_the_host_goes_on(place: Place) -> None:
    with HostClient(place) as host:
        with pytest.raises(BivisorError, match="internal error in the host: ZeroDivisionError: a bug"):
            host.call("crash", in_xen=False)
        with pytest.raises(BivisorError, match="crash: the hypervisor refused"):
            host.call("crash", in_xen=True)
        with pytest.raises(UsageError, match="the host does not know 'dance'"):
            host.call("dance")
        with pytest.raises(BivisorError, match="TypeError"):
            host.call("refuse", colour="red")
        assert host.call("echo", a=1) == {"a": 1}


def test_only_the_owner_can_open_the_socket(place: Place) -> None:
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.socket.stat().st_mode) == 0o600


def test_another_user_who_got_in_all_the_same_is_shown_the_door(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_socket, "peer_uid", lambda _: local_socket.own_uid() + 1)
    end = local_socket.connect(place.socket)
    assert end is not None
    with end:
        assert end.recv(1) == b""


def test_a_host_of_another_user_is_not_spoken_to(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bivisor.toolstack.hostd.client.local_socket.own_uid", lambda: local_socket.peer_uid)
    with pytest.raises(HostError, match="somebody else's program listens there"):
        monkeypatch.setattr(local_socket, "peer_uid", lambda _: 4711)
        HostClient(place)


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    open_ = tmp_path / "open"
    open_.mkdir(mode=0o755)
    with pytest.raises(HostError, match="is open to others: chmod 700 it"):
        private_folder(open_)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(HostError, match="is not a folder of its own"):
        private_folder(tmp_path / "link")


def test_a_path_that_no_socket_can_have_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="a socket's path has at most 107 bytes"):
        HostClient(Place(tmp_path / ("x" * 100)))


def test_where_no_host_runs_a_line_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"no host runs in .*: `bivisor host start` starts one"):
        HostClient(Place(tmp_path))


def test_a_socket_that_a_dead_host_left_is_replaced(tmp_path: Path, methods: Methods) -> None:
    place = Place(tmp_path)
    dead = local_socket.listen(place.socket)
    dead.close()
    assert place.socket.exists()
    with pytest.raises(HostError, match="no host runs"):
        HostClient(place)
    server = RpcServer(place.socket, methods.table())
    with HostClient(place) as host:
        assert host.call("echo") == {}
    server.close()


def test_who_waits_and_goes_is_noticed(place: Place, methods: Methods) -> None:
    end = local_socket.connect(place.socket)
    assert end is not None
    with end:
        end.sendall(messages.encode({"method": "wait"}))
    assert methods.gone.wait(10)


def test_a_console_is_the_same_connection_and_loses_no_byte(place: Place) -> None:
    with HostClient(place) as host:
        end, first = host.console("u1")
        end.sendall(b"hello")
        while not first.endswith(b"hello"):
            first += end.recv(100)
        assert first == b"u1 says hello"


@given(st.binary(max_size=200), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_rubbish_ends_its_own_connection_and_nothing_else(place: Place, data: bytes, ends_line: bool) -> None:
    end = local_socket.connect(place.socket)
    assert end is not None
    with end:
        end.sendall(data + b"\n" * ends_line)
        end.shutdown(socket.SHUT_WR)
        try:
            while end.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
    with HostClient(place) as host:
        assert host.call("echo") == {}


def test_a_line_without_end_is_not_kept(place: Place) -> None:
    end = local_socket.connect(place.socket)
    assert end is not None
    with end, pytest.raises(OSError):
        for _ in range(200):
            end.sendall(b"x" * (1 << 16))


def test_one_host_at_a_time_has_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with LockFile(path, "taken"), pytest.raises(HostError, match=r"^taken$"), LockFile(path, "taken"):
        pass
    assert not path.exists()


def test_a_lock_that_a_full_disk_has_no_room_for_is_told_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bivisor.host.daemon.os.write", full)
    with pytest.raises(HostError, match="No space left on device"), LockFile(tmp_path / "lock", "taken"):
        pass
    assert not (tmp_path / "lock").exists()


def test_the_state_is_where_it_was_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("BIVISOR_HOST", raising=False)
    assert place_of().folder == tmp_path / "bivisor"
    monkeypatch.setenv("BIVISOR_HOST", "/a/b")
    assert place_of().folder == Path("/a/b")
    assert place_of("/c").socket == Path("/c/host.sock")
    monkeypatch.delenv("BIVISOR_HOST")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert str(place_of().folder).startswith(("/run/bivisor", "/tmp/bivisor-"))


def test_a_host_whose_starter_was_interrupted_ends_and_leaves_nothing(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    words = ["host", "start", "--foreground", f"--ready={write}", f"--state={tmp_path / 'host'}", "--engine=soft"]
    done = subprocess.run([sys.executable, "-m", "bivisor", *words], pass_fds=[write], capture_output=True, timeout=60)
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "host").iterdir()) == []
