"""The socket by which a running PC is seen and typed to."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from board_bench import Bench, bench

from bivisor.errors import HostError, UsageError
from bivisor.toolstack.control import ControlSocket, ask


class Machine:
    """As much of a machine as the socket needs."""

    def __init__(self, made: Bench) -> None:
        self.board = made.board
        self.loop = SimpleNamespace(lock=threading.RLock())
        self.did: list[str] = []

    def power_button(self) -> None:
        self.did.append("power")

    def stop(self) -> None:
        self.did.append("stop")


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("dear diary")
    with bench() as made:
        machine: Any = Machine(made)
        with pytest.raises(HostError, match="notes"), ControlSocket(path, machine):
            pass
    assert path.read_text() == "dear diary"


def test_a_second_machine_does_not_take_the_socket_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "pc"
    with bench() as made:
        machine: Any = Machine(made)
        with ControlSocket(path, machine):
            with pytest.raises(HostError, match="another machine listens"), ControlSocket(path, machine):
                pass
            assert ask(path, "power") == b""
        with ControlSocket(path, machine):  # and one that a killed machine left behind is replaced
            path.rename(tmp_path / "left")
        with ControlSocket(tmp_path / "left", machine):
            assert ask(tmp_path / "left", "power") == b""


def test_pictures_keys_and_refusals_go_through_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "pc"
    with bench() as made:
        machine: Any = Machine(made)
        with ControlSocket(path, machine):
            assert ask(path, "screenshot")[:8] == b"\x89PNG\r\n\x1a\n"
            assert ask(path, "power") == b""
            assert ask(path, "stop") == b""
            with pytest.raises(UsageError, match="none of screenshot"):
                ask(path, "dance")
            ask(path, "keys a")
            keyboard = made.board.ps2.keyboard
            arrived = threading.Event()
            while not keyboard.queue and not arrived.wait(0.01):
                pass
            assert list(keyboard.queue) == [0x1C, 0xF0, 0x1C]
        assert machine.did == ["power", "stop"]
        assert not path.exists()
    with pytest.raises(HostError, match="no machine listens"):
        ask(path, "screenshot")
