"""What goes into the initramfs, and the command that comes behind it."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from image_parts import bzimage
from test_image_cpio import read

from bivisor.errors import ImageError, UsageError
from bivisor.image import cpio, initramfs
from bivisor.image.modules import Module
from bivisor.image.prepare import release_of

MODULES = (Module("ring", Path("ring.ko"), b"R", (), ()), Module("blk", Path("blk.ko"), b"B", ("ring",), ()))


def files(data: bytes) -> dict[str, cpio.Entry]:
    return {entry.path: entry for entry in read(data)[0]}


def test_a_file_comes_after_the_directory_that_it_is_in() -> None:
    seen = {"."}
    for entry in initramfs.entries(b"busybox", MODULES):
        assert str(Path(entry.path).parent) in seen, entry.path
        if stat.S_ISDIR(entry.mode):
            seen.add(entry.path)


def test_the_same_parts_give_the_same_archive() -> None:
    assert cpio.archive(initramfs.entries(b"x", MODULES)) == cpio.archive(initramfs.entries(b"x", MODULES))


def test_init_names_the_modules_in_their_order() -> None:
    found = files(cpio.archive(initramfs.entries(b"busybox", MODULES)))
    init = found["init"].data
    assert found["lib/modules/ring.ko"].data == b"R"
    assert 0 < init.find(b"/lib/modules/ring.ko\0") < init.find(b"/lib/modules/blk.ko\0")
    assert found["dev/console"].device == (5, 1)


def test_modules_for_xen_come_along_and_init_leaves_them_alone() -> None:
    found = files(cpio.archive(initramfs.entries(b"busybox", MODULES[:1], MODULES[1:])))
    assert found["lib/modules/xen/blk.ko"].data == b"B"
    assert b"blk.ko" not in found["init"].data


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")
def test_the_start_script_is_one_that_the_shell_can_parse() -> None:
    script = files(cpio.archive(initramfs.entries(b"", ())))["etc/start"].data
    subprocess.run(["busybox", "sh", "-n"], input=script, check=True)


@pytest.mark.parametrize("command", ["exit 7", "echo 'ä' \"$X\"\nfalse", ""])
def test_the_command_arrives_as_it_was_given(command: str) -> None:
    assert files(initramfs.append_exec(command))[initramfs.EXEC_PATH].data == command.encode() + b"\n"


def test_files_come_along_with_their_directories() -> None:
    found = files(initramfs.append_exec("true", [("/opt/a/tool", b"tool")]))
    assert list(found) == ["bivisor", "bivisor/exec", "opt", "opt/a", "opt/a/tool"]
    assert found["opt/a/tool"].mode == stat.S_IFREG | 0o755


@pytest.mark.parametrize("path", ["relative", "/a/../../b", ""])
def test_a_file_for_the_guest_needs_an_absolute_path(path: str) -> None:
    with pytest.raises(UsageError, match="absolute"):
        initramfs.append_exec("true", [(path, b"")])


def test_a_zero_byte_in_a_command_is_refused() -> None:
    with pytest.raises(UsageError, match="zero byte"):
        initramfs.append_exec("a\0b")


def test_the_release_is_what_the_kernel_says(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage("6.1.0-1-test"))
    assert release_of(path) == "6.1.0-1-test"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", bytes(0x300)])
def test_a_file_without_a_release_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="bzImage"):
        release_of(path)
