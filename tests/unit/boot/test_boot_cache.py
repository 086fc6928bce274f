"""A packed kernel is unpacked once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import boot_images as images
import pytest

from bivisor import boot
from bivisor.boot.source import Source
from bivisor.errors import ImageError
from bivisor.memory import GuestMemory

LONG_AGO = (1_000_000_000, 1_000_000_000)
CONTENT = b"head" + bytes(50_000) + b"tail" + bytes(9_000)


class Unpacker:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Iterable[bytes]:
        self.calls += 1
        yield CONTENT[:10_000]
        yield CONTENT[10_000:]


def ask(cache: boot.PayloadCache, path: Path, make: Unpacker) -> bytes:
    with Source.open(path, "kernel") as source, cache(source, 0, source.size, make) as found:
        return found.read(0, found.size)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files be old enough at once to be known by their identity."""
    monkeypatch.setattr("bivisor.boot.cache._SETTLED_NS", -(1 << 62))


def test_the_second_time_nothing_is_unpacked(tmp_path: Path) -> None:
    make, cache, kernel = Unpacker(), boot.PayloadCache(tmp_path / "cache"), images.file(tmp_path, b"packed")
    assert [ask(cache, kernel, make) for _ in range(3)] == [CONTENT] * 3
    assert make.calls == 1


def test_a_copy_under_another_name_is_known_by_its_content(tmp_path: Path) -> None:
    make, cache = Unpacker(), boot.PayloadCache(tmp_path / "cache")
    for name in "ab":
        ask(cache, images.file(tmp_path, b"packed", name), make)
    ask(cache, images.file(tmp_path, b"other", "c"), make)
    assert make.calls == 2


@pytest.mark.usefixtures("settled")
def test_a_settled_file_is_found_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, cache, kernel = Unpacker(), boot.PayloadCache(tmp_path / "cache"), images.file(tmp_path, b"packed")
    ask(cache, kernel, make)
    monkeypatch.setattr("bivisor.boot.cache._hash", None)
    assert ask(cache, kernel, make) == CONTENT


def test_a_file_that_was_just_written_is_always_hashed(tmp_path: Path) -> None:
    make, cache = Unpacker(), boot.PayloadCache(tmp_path / "cache")
    for content in (b"one", b"two"):
        kernel = images.file(tmp_path, content)
        os.utime(kernel, LONG_AGO)
        ask(cache, kernel, make)
    assert make.calls == 2


@pytest.mark.usefixtures("settled")
def test_a_payload_that_was_cut_off_or_taken_away_is_made_again(tmp_path: Path) -> None:
    make, cache, kernel = Unpacker(), boot.PayloadCache(tmp_path / "cache"), images.file(tmp_path, b"packed")
    ask(cache, kernel, make)
    (payload,) = cache.directory.glob("*.payload")
    os.truncate(payload, 100)
    assert ask(cache, kernel, make) == CONTENT
    payload.unlink()
    assert ask(cache, kernel, make) == CONTENT
    assert make.calls == 3


def test_zeros_take_no_room(tmp_path: Path) -> None:
    cache = boot.PayloadCache(tmp_path / "cache")
    ask(cache, images.file(tmp_path, b"packed"), Unpacker())
    (payload,) = cache.directory.glob("*.payload")
    assert payload.stat().st_size == len(CONTENT)
    assert payload.stat().st_blocks * 512 < len(CONTENT) // 2


def test_a_directory_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    make, cache = Unpacker(), boot.PayloadCache(images.file(tmp_path, b"", "cache"))
    assert [ask(cache, images.file(tmp_path, b"packed"), make) for _ in range(2)] == [CONTENT] * 2


@pytest.mark.usefixtures("settled")
def test_only_the_newest_payloads_are_kept(tmp_path: Path) -> None:
    cache = boot.PayloadCache(tmp_path / "cache", keep=2)
    for number in range(4):
        ask(cache, images.file(tmp_path, b"packed%d" % number, f"{number}"), Unpacker())
    assert len(list(cache.directory.glob("*.payload"))) == 2
    assert len(list(cache.directory.glob("*.link"))) == 2


def test_what_is_damaged_is_not_kept(tmp_path: Path) -> None:
    cache = boot.PayloadCache(tmp_path / "cache")
    kernel = images.file(tmp_path, images.bzimage(images.PACKERS["LZ4"](images.elf64())[:-4] + b"\1\2\3\4"))
    with GuestMemory(32 << 20) as memory, pytest.raises(ImageError, match="does not unpack to the 67305985 bytes"):
        boot.load(memory, kernel, cache=cache)
    assert list(cache.directory.iterdir()) == []


@pytest.mark.usefixtures("settled")
def test_a_kernel_loads_the_same_from_the_cache(tmp_path: Path) -> None:
    cache = boot.PayloadCache(tmp_path / "cache")
    code = images.CODE + bytes(20_000) + images.CODE
    kernel = images.file(tmp_path, images.bzimage(images.PACKERS["XZ"](images.elf64(code))))
    for _ in range(2):
        with GuestMemory(32 << 20) as memory:
            memory.view(images.BASE, len(code))[:] = b"\xff" * len(code)
            boot.load(memory, kernel, cache=cache)
            assert memory.read(images.BASE, len(code)) == code
