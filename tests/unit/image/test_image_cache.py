"""What the cache gives back is whole, whatever happened to it meanwhile."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from bivisor.errors import HostError
from bivisor.image.cache import Cache
from bivisor.image.place import default_root


class Maker:
    """Writes `content` and counts how often it had to."""

    def __init__(self, content: bytes = b"content") -> None:
        self.content = content
        self.calls = 0

    def __call__(self, out: BinaryIO) -> None:
        self.calls += 1
        out.write(self.content)


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if ".new-" in path.name]


def test_a_file_is_made_once(tmp_path: Path) -> None:
    make = Maker()
    first = Cache(tmp_path).file("key", make)
    assert Cache(tmp_path).file("key", make) == first
    assert (first.read_bytes(), make.calls) == (b"content", 1)


def test_another_key_is_another_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.file("a", Maker(b"a")).read_bytes() != cache.file("b", Maker(b"b")).read_bytes()


@pytest.mark.parametrize("damage", [b"", b"content and more", b"CONTENT"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes) -> None:
    make = Maker()
    path = Cache(tmp_path).file("key", make)
    path.write_bytes(damage)
    os.utime(path, ns=(1, 1))
    assert Cache(tmp_path).file("key", make).read_bytes() == b"content"
    assert make.calls == 2


def test_a_file_that_was_only_touched_is_kept(tmp_path: Path) -> None:
    make = Maker()
    path = Cache(tmp_path).file("key", make)
    os.utime(path, ns=(1, 1))
    Cache(tmp_path).file("key", make)
    assert make.calls == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"', '{"sha256": 1, "identity": 2}'])
def test_a_damaged_record_makes_the_file_again(tmp_path: Path, text: str) -> None:
    make = Maker()
    path = Cache(tmp_path).file("key", make)
    path.with_suffix(".json").write_text(text)
    assert Cache(tmp_path).file("key", make).read_bytes() == b"content"
    assert make.calls == 2


def test_an_error_while_making_leaves_nothing(tmp_path: Path) -> None:
    def fail(out: BinaryIO) -> None:
        out.write(b"half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        Cache(tmp_path).file("key", fail)
    assert not leftovers(tmp_path)
    assert Cache(tmp_path).file("key", Maker()).read_bytes() == b"content"


def _make_slowly(root: Path, start: object, count: object) -> None:
    def make(out: BinaryIO) -> None:
        with count.get_lock():  # type: ignore[attr-defined]
            count.value += 1  # type: ignore[attr-defined]
        for _ in range(100):
            out.write(b"x" * 1000)
            out.flush()

    start.wait()  # type: ignore[attr-defined]
    assert Cache(root).file("key", make).stat().st_size == 100_000


def test_processes_that_want_the_same_file_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, count = context.Barrier(4), context.Value("i", 0)
    workers = [context.Process(target=_make_slowly, args=(tmp_path, start, count)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert count.value == 1


def test_a_tree_is_made_once_and_again_when_a_file_of_it_changes(tmp_path: Path) -> None:
    calls = []

    def make(into: Path) -> None:
        calls.append(into)
        (into / "sub").mkdir()
        (into / "sub/file").write_bytes(b"content")

    cache = Cache(tmp_path)
    path = cache.tree("key", make)
    assert cache.tree("key", make) == path
    assert len(calls) == 1
    (path / "sub/file").write_bytes(b"other")
    assert (cache.tree("key", make) / "sub/file").read_bytes() == b"content"
    (path / "sub/file").unlink()
    assert (cache.tree("key", make) / "sub/file").read_bytes() == b"content"
    assert len(calls) == 3
    assert not leftovers(tmp_path)


def test_an_error_while_filling_a_tree_leaves_nothing(tmp_path: Path) -> None:
    def fail(into: Path) -> None:
        (into / "half").touch()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        Cache(tmp_path).tree("key", fail)
    assert not leftovers(tmp_path)


def test_a_digest_follows_the_content(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    path = tmp_path / "file"
    path.write_bytes(b"one")
    one = cache.digest(path)
    assert cache.digest(path) == one
    path.write_bytes(b"longer")
    assert cache.digest(path) != one


def test_a_place_that_cannot_be_a_cache_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="BIVISOR_CACHE"):
        Cache(tmp_path / "file").file("key", Maker())


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIVISOR_CACHE", "/a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("HOME", "/h")
    assert default_root() == Path("/a/b")
    monkeypatch.delenv("BIVISOR_CACHE")
    assert default_root() == Path("/x/bivisor")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification: to be ignored
    assert default_root() == Path("/h/.cache/bivisor")
