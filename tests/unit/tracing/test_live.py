"""A live trace over a socket: from the stream of events in one thread to lines and files in another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.errors import HostError, UsageError
from bivisor.events import Events, Kind, Life
from bivisor.toolstack.hostd.server import RpcServer
from bivisor.toolstack.tracing.show import show
from bivisor.toolstack.tracing.source import Live, socket_of
from bivisor.toolstack.tracing.stream import TraceStreams
from bivisor.toolstack.tracing.wanted import Wanted


class Host:
    """What a host offers, without a hypervisor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events = Events()
        self.events.names[1] = "demo"
        self.streams = TraceStreams(self.events)
        self.server = RpcServer(folder / "host.sock", {"trace": self.streams.trace})

    def happens(self, what: str, domain: int = 1) -> None:
        self.events.tell(Life(1_000, domain, -1, 0, what))

    def close(self) -> None:
        self.streams.close()
        self.server.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def live(host: Host, *domains: str) -> Live:
    return Live(socket_of(str(host.folder)), Wanted.of(["life"], domains))


def names(trace: Live) -> list[str]:
    return [event.name for event in trace if event is not None]


def test_what_happens_is_seen_until_the_host_ends(host: Host) -> None:
    trace = live(host, "demo")
    host.happens("paused")
    host.happens("paused", domain=2)
    host.happens("unpaused")
    host.close()
    assert names(trace) == ["paused", "unpaused"]
    assert trace.names == {1: "demo"} and not trace.dropped
    trace.close()


def test_who_goes_leaves_no_listener_behind(host: Host) -> None:
    trace = live(host)
    assert host.events.wants(Kind.LIFE)
    trace.close()
    for _ in range(1000):
        if not host.events.wants(Kind.LIFE):
            return
        threading.Event().wait(0.01)
    raise AssertionError("somebody still listens")


def test_who_does_not_read_loses_the_oldest_and_is_told_how_many(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bivisor.toolstack.tracing.wanted.ROOM", 10)
    go_on = threading.Event()
    take = host.streams._send
    monkeypatch.setattr(host.streams, "_send", lambda *of: go_on.wait(10) and take(*of))
    trace = live(host)
    for number in range(30):
        host.happens(str(number))
    go_on.set()
    host.streams.close()
    assert names(trace) == [str(number) for number in range(20, 30)]
    assert trace.dropped == 20
    trace.close()


def test_a_request_that_makes_no_sense_is_refused(host: Host) -> None:
    with pytest.raises(UsageError, match="there is no domain web"):
        live(host, "web")
    with pytest.raises(UsageError, match="neither the folder of a host nor a machine"):
        socket_of("/nonexistent")
    with pytest.raises(HostError, match="nobody answers at"):
        Live(host.folder / "other.sock", Wanted())


def test_a_trace_ends_after_so_many_events_or_seconds(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []
    thread = threading.Thread(
        target=lambda: done.append(show(Wanted.of(["life"]), target=str(host.folder), count=2).events)
    )
    thread.start()
    while not host.events.wants(Kind.LIFE):
        threading.Event().wait(0.005)
    for what in ("paused", "unpaused", "destroyed"):
        host.happens(what)
    thread.join(10)
    assert done == [2]
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in said] == [["demo", "life", "paused"], ["demo", "life", "unpaused"]]
    file = host.folder / "none.pftrace"
    assert show(Wanted.of(["life"]), target=str(host.folder), seconds=0.05, perfetto=file).events == 0
    assert file.stat().st_size > 0
