"""Disk images: packages with what they need, how large an image has to be, and copies that take no room for nothing."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from bivisor.errors import HostError, UsageError
from bivisor.host.disk import Disk
from bivisor.image.disk import SIZE, build_disk, copy_image
from bivisor.image.packages import Apt, PackageError
from bivisor.image.progress import quiet
from bivisor.toolstack.newimage import to_write

MIB = 1 << 20

APT_GET = """\
#!/bin/sh
for word; do last=$word; done
case "$*" in
*--print-uris*missing*) exit 100 ;;
*--print-uris*) echo "'http://archive/first_1.0_amd64.deb' first_1.0_amd64.deb 10 SHA256:0"
                echo "'http://archive/libsecond_2%3a1_amd64.deb' libsecond_2%3a1_amd64.deb 10 SHA256:0" ;;
*download*) cp "$DEBS"/*.deb . ;;
esac
"""


def package(folder: Path, name: str, files: dict[str, str], links: dict[str, str]) -> None:
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody\nDescription: none\n"
    )
    for place, text in files.items():
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        (tree / place).write_text(text)
    for place, target in links.items():
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        (tree / place).symlink_to(target)
    subprocess.run(["dpkg-deb", "--build", tree, folder / f"{name}.deb"], check=True, capture_output=True)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    """An archive with `first`, which needs `libsecond`."""
    debs, tools = tmp_path / "debs", tmp_path / "tools"
    debs.mkdir()
    tools.mkdir()
    package(debs, "first", {"bin/first": "old place", "usr/sbin/other": "x"}, {})
    package(
        debs, "libsecond", {"lib/x86_64/libsecond.so.2.1": "elf"}, {"lib/x86_64/libsecond.so.2": "libsecond.so.2.1"}
    )
    (tools / "apt-get").write_text(APT_GET)
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("DEBS", str(debs))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tmp_path / "work").mkdir()
    return Apt(tmp_path / "work")


def test_packages_are_unpacked_whole_with_all_that_they_need_and_usr_is_merged(apt: Apt, tmp_path: Path) -> None:
    into = tmp_path / "root"
    into.mkdir()
    with quiet() as progress:
        apt.fetch_all(["first"], into, progress)
    assert (into / "bin").readlink() == Path("usr/bin")
    assert (into / "usr/bin/first").read_text() == "old place"
    assert (into / "usr/sbin/other").exists()
    assert (into / "usr/lib/x86_64/libsecond.so.2").read_text() == "elf"
    assert (into / "lib/x86_64/libsecond.so.2").is_symlink()


def test_a_package_that_is_nowhere_is_told(apt: Apt, tmp_path: Path) -> None:
    with quiet() as progress, pytest.raises(PackageError, match="no way to install missing"):
        apt.fetch_all(["missing"], tmp_path, progress)


def test_an_image_that_is_too_small_for_its_files_is_refused() -> None:
    with pytest.raises(UsageError, match=r"an image of 5 MiB: it needs 64 MiB at least"):
        build_disk(progress=quiet, size=5 * MIB)
    with pytest.raises(UsageError, match=r"2 TiB are the most"):
        build_disk(progress=quiet, size=1 << 50)


def test_a_copy_of_an_image_takes_no_room_for_what_is_empty(tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    with image.open("wb") as file:
        file.write(b"x" * 70000)
        file.seek(9 * MIB)
        file.write(b"y" * 5)
        file.truncate(SIZE)
    copy.write_bytes(b"z" * (SIZE + MIB))
    with to_write(copy) as out:
        copy_image(image, out)
    assert copy.read_bytes() == image.read_bytes()
    assert copy.stat().st_blocks * 512 < MIB


def test_an_image_that_a_machine_has_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"mine" * 128)
    with Disk(path), pytest.raises(HostError, match="another machine is using it"), to_write(path):
        pytest.fail("it was opened")
    assert path.read_bytes() == b"mine" * 128


def test_a_new_image_that_nothing_comes_of_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with pytest.raises(HostError, match=r"cannot write .*: No space left on device"), to_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not path.exists()
    with pytest.raises(HostError, match="cannot write"), to_write(tmp_path / "nowhere" / "copy"):
        pytest.fail("it was opened")
