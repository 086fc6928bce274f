"""`bivisor top`: rates from two samples, the tables, and the key that ends it."""

from __future__ import annotations

import os
import pty
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bivisor.errors import HostError
from bivisor.host.keys import keys, no_key
from bivisor.toolstack import top
from bivisor.toolstack.hostd.server import RpcServer
from bivisor.toolstack.tracing.source import Asker


def sample(seconds: float, calls: int, ns: int, *, cpu: float = 0.0, requests: int = 0) -> dict[str, Any]:
    return {
        "time": int(seconds * 1e9),
        "engine": "soft",
        "domains": [
            {"domid": 0, "name": "Domain-0", "state": "r-----", "vcpus": 1, "cpu_time_s": 0.0},
            {"domid": 1, "name": "[demo]", "state": "-b----", "vcpus": 2, "cpu_time_s": cpu},
        ],
        "counts": [
            {"domain": 1, "kind": "exit", "name": "Hypercall", "count": calls, "ns": ns, "bytes": 0},
            {"domain": 1, "kind": "hypercall", "name": "sched_op.block", "count": calls, "ns": ns // 2, "bytes": 0},
            {
                "domain": 1,
                "kind": "ring",
                "name": "vbd/1/51712 read",
                "count": requests,
                "ns": 10,
                "bytes": 4096 * requests,
            },
        ],
    }


def test_rates_are_what_happened_between_two_samples() -> None:
    found = top.picture(sample(10, 100, 1_000_000, cpu=1.0), sample(12, 300, 401_000_000, cpu=2.0, requests=8))
    assert found.seconds == 2.0
    dom0, demo = found.domains
    assert (dom0.exits, dom0.cpu) == (0.0, 0.0)
    assert (demo.exits, demo.hypercalls, demo.requests, demo.bytes) == (100.0, 100.0, 4.0, 4096.0 * 4)
    assert (demo.cpu, demo.outside) == (0.5, 0.2)
    first, second = found.places
    assert (first.name, first.rate, first.each, first.share) == ("Hypercall", 100.0, 2000.0, 0.2)
    assert second.name == "sched_op.block"
    assert found.to_dict()["where_time_goes"][0]["share"] == 0.2


def test_a_host_that_began_to_count_anew_is_not_counted_backwards() -> None:
    found = top.picture(sample(1, 300, 1000), sample(2, 5, 10))
    assert found.domains[1].exits == 0 and not found.places


def test_both_tables_are_shown_with_names_as_they_are() -> None:
    console = Console(width=140)
    with console.capture() as shown:
        console.print(top.render(top.picture(sample(0, 0, 0), sample(1, 10, 1_000_000))))
    assert " 1  [demo]    -b----      2" in shown.get()
    assert "[demo]           exit       Hypercall" in shown.get()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    numbers = iter(range(1, 1000))
    server = RpcServer(tmp_path / "host.sock", {"top": lambda peer: sample(n := next(numbers), 10 * n, 1000 * n)})
    yield tmp_path
    server.close()


def test_pictures_are_printed_one_after_the_other(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top.top(str(host), delay=0.01, times=2, batch=True, as_json=False)
    assert capsys.readouterr().out.count("hypercalls/s") == 2
    top.top(str(host), delay=0.01, times=3, batch=False, as_json=True)
    assert capsys.readouterr().out.count('"where_time_goes"') == 3


def test_where_nobody_answers_a_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "host.sock").touch()
    with pytest.raises(HostError, match="nobody answers at"):
        top.top(str(tmp_path), delay=0.01, times=1, batch=True, as_json=False)


def test_q_quits(host: Path) -> None:
    with Asker(host / "host.sock") as asker:
        pressed = iter(["", "x", "q"])
        assert len(list(top._pictures(asker, 0.01, None, lambda _: next(pressed)))) == 2


def test_keys_come_one_by_one_and_the_terminal_is_as_before_afterwards() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    try:
        with keys(slave) as key:
            assert key(0) == ""
            threading.Timer(0.01, os.write, (master, b"qx")).start()
            assert (key(10), key(10), key(0)) == ("q", "x", "")
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)
    read, write = os.pipe()
    try:
        with keys(read) as key:
            assert key is no_key and key(0) == ""
    finally:
        os.close(read)
        os.close(write)
