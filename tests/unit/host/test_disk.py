"""Raw images: what is refused, in one line, and what reading and writing them does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bivisor.errors import BivisorError, UsageError
from bivisor.host.disk import Disk


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xaa" * 65536)
    return path


def make_directory(path: Path) -> Path:
    path.mkdir()
    return path


def make_odd(path: Path) -> Path:
    path.write_bytes(bytes(513))
    return path


def make_empty(path: Path) -> Path:
    path.touch()
    return path


def make_fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, "no such file"),
        (make_directory, "directory"),
        (make_odd, "513 bytes"),
        (make_empty, "0 bytes"),
        (make_fifo, "neither a file nor a block device"),
        (lambda _: Path("/dev/null"), "neither"),
        (lambda path: path / "below\0null", "null"),
    ],
)
def test_what_is_no_disk_is_refused_with_one_line(tmp_path: Path, make, words: str, read_only: bool) -> None:  # type: ignore[no-untyped-def]
    path = make(tmp_path / "it")
    with pytest.raises(UsageError, match=words) as caught:
        Disk(path, read_only=read_only)
    assert caught.value.status == 2
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_no_permission_is_told(image: Path) -> None:
    image.chmod(0)
    with pytest.raises(UsageError, match="no permission to read it"):
        Disk(image)
    image.chmod(0o400)
    with pytest.raises(UsageError, match="no permission to write; ro opens it for reading"):
        Disk(image)


def test_two_writers_are_one_too_many(image: Path) -> None:
    with Disk(image):
        for read_only in (False, True):
            with pytest.raises(BivisorError, match=r"another machine is using it: process \d+ itself"):
                Disk(image, read_only=read_only)
    with Disk(image, read_only=True), Disk(image, read_only=True), pytest.raises(BivisorError, match="another"):
        Disk(image)


def test_descriptors_are_given_back_when_it_is_refused(image: Path) -> None:
    with Disk(image):
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(BivisorError):
            Disk(image)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_data_moves_between_views_and_the_file(image: Path) -> None:
    first, second = bytearray(512), bytearray(1024)
    with Disk(image) as disk:
        assert disk.size == 65536
        assert disk.writev([memoryview(b"a" * 512), memoryview(b"b" * 1024)], 512) == 1536
        disk.flush()
        assert disk.readv([memoryview(first), memoryview(second)], 512) == 1536
    assert first + second == b"a" * 512 + b"b" * 1024


@pytest.mark.parametrize("unmap", [False, True])
def test_zeroed_bytes_read_as_zero_and_the_others_stay(image: Path, unmap: bool) -> None:
    with Disk(image) as disk:
        disk.zero(4096, 8192, unmap)
        disk.discard(32768, 4096)
    data = image.read_bytes()
    assert data[4096:12288] == bytes(8192)
    assert data[32768:36864] in (bytes(4096), b"\xaa" * 4096)
    assert data[:4096] + data[12288:32768] == b"\xaa" * (4096 + 20480)
    assert len(data) == 65536


def test_zeroes_are_written_where_the_file_system_has_no_better_way(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("bivisor.host.disk.fallocate", no)
    with Disk(image) as disk:
        disk.zero(512, 1024, True)
    assert image.read_bytes()[512:1536] == bytes(1024)
