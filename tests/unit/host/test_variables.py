"""Where the content of a machine's flash is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bivisor.errors import BivisorError, HostError, ImageError
from bivisor.host.variables import Variables, VariablesFile, make_file


def test_content_in_memory_is_what_was_saved() -> None:
    kept = Variables(bytes(8))
    kept.save(2, b"ab")
    assert kept.load() == b"\0\0ab\0\0\0\0"


def test_what_is_saved_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "vars.fd"
    make_file(path, bytes(8))
    kept = VariablesFile(path, bytes)
    kept.save(6, b"yz")
    assert path.read_bytes() == kept.load() == bytes(6) + b"yz"
    kept.close()


def test_what_a_full_disk_took_half_of_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vars.fd"
    make_file(path, bytes(8))
    kept = VariablesFile(path, bytes)
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset: 1)
    with pytest.raises(OSError, match="No space left"):
        kept.save(2, b"ab")
    assert kept.load() == bytes(8)
    kept.close()


def test_a_link_that_somebody_has_left_for_the_file_to_come_leads_nowhere(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"another's")
    (tmp_path / f".vars.fd.{os.getpid()}").symlink_to(other)
    make_file(tmp_path / "vars.fd", bytes(8))
    assert other.read_bytes() == b"another's"
    assert (tmp_path / "vars.fd").read_bytes() == bytes(8)


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "vars.fd"
    path.write_bytes(b"mine")
    make_file(path, b"new")
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_one_machines_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "vars.fd"
    path.write_bytes(bytes(8))
    kept = VariablesFile(path, bytes)
    with pytest.raises(BivisorError, match="another machine is using it"):
        VariablesFile(path, bytes)
    kept.close()
    VariablesFile(path, bytes).close()


def test_a_file_that_is_refused_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "vars.fd"
    path.write_bytes(bytes(8))

    def refuse(content: bytes) -> bytes:
        raise ImageError(f"{len(content)} bytes")

    with pytest.raises(ImageError, match="8 bytes"):
        VariablesFile(path, refuse)
    VariablesFile(path, bytes).close()


def test_no_folder_for_it_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot write"):
        make_file(tmp_path / "no" / "vars.fd", b"")
