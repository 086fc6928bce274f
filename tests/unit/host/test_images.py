"""Images of any format, and writes that are thrown away: what is read is what was written, and what is refused why."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bivisor.errors import BivisorError, HostError, ImageError, UsageError
from bivisor.host.disk import Disk
from bivisor.host.how import HowToOpen
from bivisor.host.images import DiskImage, open_image
from bivisor.host.overlay import Overlay
from bivisor.host.qemu_nbd import QemuImage

QemuImg = Callable[..., str]
SECTOR = 512
SIZE = 1 << 20


@pytest.fixture
def qcow2(tmp_path: Path, qemu_img: QemuImg) -> Path:
    """1 MiB, of which the first half is 0xaa."""
    raw, path = tmp_path / "raw.img", tmp_path / "disk.qcow2"
    raw.write_bytes(b"\xaa" * (SIZE // 2) + bytes(SIZE // 2))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    return path


def read(disk: DiskImage, offset: int, size: int) -> bytes:
    data = bytearray(size)
    assert disk.readv([memoryview(data)[:SECTOR], memoryview(data)[SECTOR:]], offset) == size
    return bytes(data)


def write(disk: DiskImage, offset: int, data: bytes) -> None:
    assert disk.writev([memoryview(data)[:SECTOR], memoryview(data)[SECTOR:]], offset) == len(data)


def content(qemu_img: QemuImg, path: Path, format_: str = "qcow2") -> bytes:
    flat = path.with_suffix(".flat")
    qemu_img("convert", "-f", format_, "-O", "raw", path, flat)
    return flat.read_bytes()


def test_a_qcow2_image_is_recognised_read_and_written(qcow2: Path, qemu_img: QemuImg) -> None:
    disk = open_image(qcow2)
    assert isinstance(disk, QemuImage)
    assert (disk.size, disk.read_only) == (SIZE, False)
    assert read(disk, SIZE // 2 - 1024, 2048) == b"\xaa" * 1024 + bytes(1024)
    write(disk, 4096, b"b" * 8192)
    disk.zero(65536, 65536, True)
    disk.zero(262144, 4096, False)
    disk.discard(131072, 65536)
    disk.flush()
    disk.close()
    data = content(qemu_img, qcow2)
    assert data[:4096] + data[12288:65536] == b"\xaa" * (65536 - 8192)
    assert data[4096:12288] == b"b" * 8192
    assert not any(data[65536 : 3 * 65536])
    assert not any(data[262144 : 262144 + 4096])


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only folder for temporary files, whose name is short: sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="bv-", dir="/tmp") as name:
        monkeypatch.setattr("tempfile.tempdir", name)
        yield Path(name)


def test_the_helper_ends_with_the_disk_and_leaves_nothing(qcow2: Path, temporary: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with QemuImage(qcow2, "qcow2") as disk:
        assert Path(f"/proc/{disk.pid}").exists()
    assert not Path(f"/proc/{disk.pid}").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not list(temporary.iterdir())


def test_a_helper_that_dies_is_an_error_of_the_disk(qcow2: Path) -> None:
    with QemuImage(qcow2, "qcow2") as disk:
        os.kill(disk.pid, 9)
        with pytest.raises(OSError):
            while True:
                disk.readv([memoryview(bytearray(SECTOR))], 0)
        with pytest.raises(OSError):
            disk.flush()


def test_a_request_beyond_the_end_is_an_error_and_the_next_one_works(qcow2: Path) -> None:
    with QemuImage(qcow2, "qcow2") as disk:
        with pytest.raises(OSError):
            disk.readv([memoryview(bytearray(SECTOR))], 1 << 30)
        with pytest.raises(OSError):
            disk.readv([], 0)
        assert read(disk, 0, 1024) == b"\xaa" * 1024


def test_a_backing_file_shows_through_where_nothing_was_written(qcow2: Path, qemu_img: QemuImg, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", qcow2, "-F", "qcow2", top)
    before = qcow2.read_bytes()
    disk = open_image(top, HowToOpen(format="qcow2"))
    write(disk, 0, b"t" * 4096)
    disk.close()
    assert content(qemu_img, top)[:8192] == b"t" * 4096 + b"\xaa" * 4096
    assert qcow2.read_bytes() == before


def test_a_snapshot_in_the_image_is_read(qcow2: Path, qemu_img: QemuImg) -> None:
    qemu_img("snapshot", "-c", "before", qcow2)
    disk = open_image(qcow2)
    write(disk, 0, b"n" * 4096)
    disk.close()
    disk = open_image(qcow2, HowToOpen(read_only=True, snapshot="before"))
    assert disk.read_only
    assert read(disk, 0, 4096) == b"\xaa" * 4096
    disk.close()
    disk = open_image(qcow2, HowToOpen(throw_away=True, snapshot="before"))
    write(disk, 0, b"x" * 1024)
    assert read(disk, 0, 4096) == b"x" * 1024 + b"\xaa" * 3072
    disk.close()
    with pytest.raises(UsageError, match="only be read"):
        open_image(qcow2, HowToOpen(snapshot="before"))
    with pytest.raises(ImageError, match="find snapshot"):
        open_image(qcow2, HowToOpen(read_only=True, snapshot="never"))


def test_other_formats_are_opened_when_they_are_named(tmp_path: Path, qemu_img: QemuImg) -> None:
    for format_, named in (("vmdk", "vmdk"), ("vpc", "vhd"), ("vdi", "vdi")):
        path = tmp_path / f"disk.{format_}"
        qemu_img("create", "-f", format_, path, "1M")
        disk = open_image(path, HowToOpen(format=named))
        write(disk, 4096, b"w" * 1024)
        assert read(disk, 3584, 2048) == bytes(512) + b"w" * 1024 + bytes(512)
        disk.close()


def test_a_header_that_a_guest_wrote_into_a_raw_disk_leads_nowhere(tmp_path: Path, qemu_img: QemuImg) -> None:
    secret, path = tmp_path / "secret", tmp_path / "raw.img"
    secret.write_bytes(b"s" * SIZE)
    evil = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", evil)
    path.write_bytes(evil.read_bytes().ljust(SIZE, b"\0"))
    with pytest.raises(UsageError, match="format=qcow2 if you made it so, format=raw if a guest may have"):
        open_image(path)
    disk = open_image(path, HowToOpen(format="raw"))
    assert read(disk, 0, 1024)[:4] == b"QFI\xfb"
    disk.close()
    path.write_bytes(struct.pack(">4sI64xQ", b"QFI\xfb", 3, 4).ljust(SIZE, b"\0"))
    with pytest.raises(UsageError, match="another file"):
        open_image(path)


def test_a_backing_file_whose_format_would_be_guessed_is_refused(tmp_path: Path, qemu_img: QemuImg) -> None:
    raw, top = tmp_path / "raw.img", tmp_path / "top.qcow2"
    raw.write_bytes(bytes(SIZE))
    qemu_img("create", "-f", "qcow2", top, "1M")
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", raw, "-F", "raw", top)
    header = bytearray(top.read_bytes())
    at = header.index(struct.pack(">I", 0xE2792ACA))  # the header extension with the format becomes an unknown one
    header[at : at + 4] = b"\x11\x22\x33\x44"
    top.write_bytes(header)
    with pytest.raises(UsageError, match="qemu-img rebase -u"):
        open_image(top, HowToOpen(format="qcow2"))


@pytest.mark.parametrize(
    ("data", "how", "words"),
    [
        (b"\0" * 1024, HowToOpen(format="qcow2"), "not in qcow2 format"),
        (b"QFI\xfb\0\0\0\2" + bytes(96), HowToOpen(), "disk .*bad"),
        (b"\0" * 1024, HowToOpen(format="cow"), "none of raw, qcow2"),
        (b"\0" * 1024, HowToOpen(snapshot="x", read_only=True), "no snapshots"),
        (b"\0" * 1024, HowToOpen(force_share=True), "add ro"),
    ],
)
def test_what_is_no_such_image_is_refused_with_one_line(
    tmp_path: Path, qemu_img: QemuImg, data: bytes, how: HowToOpen, words: str
) -> None:
    path = tmp_path / "bad"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=words) as caught:
        open_image(path, how)
    assert "\n" not in str(caught.value)


def test_a_missing_helper_and_a_missing_file_are_told(tmp_path: Path, qcow2: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="no such file"):
        open_image(tmp_path / "none", HowToOpen(format="qcow2"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="apt install qemu-utils"):
        open_image(qcow2)


def test_a_folder_for_sockets_that_is_too_deep_is_told(qcow2: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(HostError, match="set TMPDIR"):
        open_image(qcow2)


def test_an_image_has_one_writer_or_many_readers_of_either_program(qcow2: Path) -> None:
    writer = open_image(qcow2)
    assert isinstance(writer, QemuImage)
    for how in (HowToOpen(), HowToOpen(read_only=True)):
        with pytest.raises(HostError, match=rf"another machine is using it: process {writer.pid} \(qemu-nbd\)"):
            open_image(qcow2, how)
    beside = open_image(qcow2, HowToOpen(read_only=True, force_share=True))
    assert read(beside, 0, 1024) == b"\xaa" * 1024
    beside.close()
    writer.close()
    readers = [open_image(qcow2, HowToOpen(read_only=True)) for _ in range(2)]
    with pytest.raises(HostError, match="another machine"):
        open_image(qcow2)
    for reader in readers:
        reader.close()
    open_image(qcow2).close()


def test_qemu_and_a_raw_disk_heed_each_others_locks(tmp_path: Path, qemu_img: QemuImg) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(bytes(SIZE))
    with Disk(path), pytest.raises(HostError, match=f"process {os.getpid()} "):
        QemuImage(path, "raw")
    with Disk(path, read_only=True), pytest.raises(HostError, match="another machine"):
        QemuImage(path, "raw")
    with QemuImage(path, "raw") as other:
        for read_only in (False, True):
            with pytest.raises(HostError, match=rf"is using it: process {other.pid} \(qemu-nbd\)$"):
                Disk(path, read_only=read_only)
    with QemuImage(path, "raw", read_only=True), Disk(path, read_only=True):
        pass


def test_what_is_written_to_an_overlay_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(b"\xaa" * SIZE)
    disk = open_image(path, HowToOpen(throw_away=True))
    assert not disk.read_only
    other = open_image(path, HowToOpen(throw_away=True))
    write(disk, 1024, b"b" * 1024)
    assert read(disk, 512, 2048) == b"\xaa" * 512 + b"b" * 1024 + b"\xaa" * 512
    assert read(other, 512, 2048) == b"\xaa" * 2048
    for each in (disk, other):
        each.close()
    assert path.read_bytes() == b"\xaa" * SIZE


SECTORS = 32
PLACES = st.tuples(st.integers(0, SECTORS - 1), st.integers(1, SECTORS)).map(lambda p: (p[0], min(SECTORS, sum(p))))
STEPS = st.lists(st.tuples(st.sampled_from(["read", "write", "zero", "discard"]), PLACES, st.integers(1, 255)))
CUTS = st.lists(st.integers(SECTOR // 8, 5 * SECTOR), min_size=1, max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(steps=STEPS, cuts=CUTS)
def test_an_overlay_is_a_disk(tmp_path: Path, steps: list[tuple[str, tuple[int, int], int]], cuts: list[int]) -> None:
    path = tmp_path / "base"
    model = bytearray(os.urandom(SECTORS * SECTOR))
    path.write_bytes(model)
    with Disk(path, read_only=True) as base:
        disk = Overlay(base, tmp_path)
        for kind, (first, end), value in steps:
            at, size = first * SECTOR, (end - first) * SECTOR
            buffer = bytearray([value]) * size
            whole, views, done = memoryview(buffer), list[memoryview](), 0
            for cut in cuts * size:  # the same bytes in pieces that end anywhere
                views.append(whole[done : done + cut])
                done += cut
                if done >= size:
                    break
            match kind:
                case "read":
                    assert disk.readv(views, at) == size
                    assert buffer == model[at : at + size]
                case "write":
                    assert disk.writev(views, at) == size
                    model[at : at + size] = buffer
                case "zero":
                    disk.zero(at, size, False)
                    model[at : at + size] = bytes(size)
                case _:
                    disk.discard(at, size)
                    model[at : at + size] = bytes(size)
        data = bytearray(len(model))
        disk.readv([memoryview(data)], 0)
        assert data == model
        disk.close()


def test_an_overlay_without_room_says_so(tmp_path: Path) -> None:
    path = tmp_path / "base"
    path.write_bytes(bytes(SECTOR))
    with Disk(path, read_only=True) as base, pytest.raises(BivisorError, match="no room"):
        Overlay(base, tmp_path / "nowhere")
