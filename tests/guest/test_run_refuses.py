"""What `bivisor run` refuses: each with one line on standard error and status 2, and before any guest runs."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from bivisor.image import Guest

pytestmark = pytest.mark.guest


def refused(*words: str, environment: dict[str, str] | None = None, prefix: tuple[str, ...] = ()) -> str:
    """What is told when `bivisor run` with these words is refused as it should be."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "bivisor", "run", "--exec", "true", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | (environment or {}),
        check=False,
    )
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("bivisor: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


SOFT = ("--engine", "soft")


def test_a_truncated_kernel(guest: Guest, tmp_path: Path) -> None:
    image = guest.kernel.read_bytes()
    for size in (0, 100, 600, 0x8000, len(image) // 2):
        (tmp_path / "kernel").write_bytes(image[:size])
        told = refused(*SOFT, "--kernel", str(tmp_path / "kernel"))
        assert "truncated" in told or "is empty" in told


def test_an_initrd_that_is_larger_than_memory(guest: Guest, tmp_path: Path) -> None:
    with open(tmp_path / "initrd", "wb") as file:
        file.truncate(400 << 20)
    assert "400 MiB does not fit" in refused(*SOFT, "--initrd", str(tmp_path / "initrd"))


def test_a_kernel_of_another_architecture(guest: Guest, tmp_path: Path) -> None:
    arm = bytearray(1 << 16)
    arm[0x38:0x3C] = b"ARM\x64"
    elf = bytearray(1 << 16)
    elf[:20] = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 243)
    for content, name in ((arm, "AArch64"), (elf, "RISC-V")):
        (tmp_path / "kernel").write_bytes(content)
        assert name in refused(*SOFT, "--kernel", str(tmp_path / "kernel"))


def test_files_that_are_not_there_or_are_something_else(guest: Guest, tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    for option in ("--kernel", "--initrd", "--disk"):
        assert "no such file" in refused(*SOFT, option, nothing).lower()
        assert "is a directory" in refused(*SOFT, option, str(tmp_path))
    assert "neither a file nor a block device" in refused(*SOFT, "--disk", "/dev/null")
    assert "No such file" in refused(*SOFT, "--trace", str(tmp_path / "no" / "trace"))


@pytest.mark.parametrize("memory", ["0", "100000", "-1", "much", "8"])
def test_impossible_memory(guest: Guest, memory: str) -> None:
    assert "memory" in refused(*SOFT, "--memory", memory) or memory == "8"


def test_too_many_processors_or_none(guest: Guest) -> None:
    assert "2 processors: the engine soft has 1" in refused(*SOFT, "--cpus", "2")
    assert "at least one" in refused(*SOFT, "--cpus", "0")


def test_a_disk_that_another_guest_has(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    twice = ("--disk", str(tmp_path / "disk"))
    assert "another machine is using it" in refused(*SOFT, *twice, *twice)


def test_an_engine_that_is_not_there(guest: Guest) -> None:
    assert "auto, kvm and soft" in refused("--engine", "xen")


@pytest.mark.skipif(os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm opens here")
def test_a_device_that_does_not_open(guest: Guest) -> None:
    assert "/dev/kvm" in refused("--engine", "kvm")


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root and unshare(1)")
def test_a_device_that_is_something_else(guest: Guest) -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("needs a /dev/kvm to hide")
    hide = ("unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/kvm && exec "$@"', "sh")
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this host does not let root mount")
    assert "/dev/kvm" in refused("--engine", "kvm", prefix=hide)


@pytest.mark.parametrize("version", [(2, 1, 3), (2, 0, 1), (3, 0, 0)])
def test_another_release_of_unicorn(guest: Guest, tmp_path: Path, version: tuple[int, int, int]) -> None:
    binding = tmp_path / "unicorn" / "unicorn_py3"
    binding.mkdir(parents=True)
    (tmp_path / "unicorn" / "__init__.py").touch()
    if version >= (2, 1):  # what was before has no such package in it
        (binding / "__init__.py").touch()
        major, minor, patch = version
        packed = major << 24 | minor << 16 | patch << 8 | 255
        (binding / "unicorn.py").write_text(f"def uc_version(): return {major}, {minor}, {packed}\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    told = refused(*SOFT, environment={"PYTHONPATH": paths})
    assert "needs Unicorn 2.1.4" in told
    assert "pip install unicorn==2.1.4" in told


def test_a_library_that_is_missing(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "unicorn.py").write_text("raise ImportError('none')\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert "pip install unicorn==2.1.4" in refused(*SOFT, environment={"PYTHONPATH": paths})


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv(1)")
def test_no_permission_for_a_network(guest: Guest) -> None:
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    told = refused(*SOFT, "--net", "tap=bivisor-none", prefix=powerless)
    assert "bivisor-none" in told
    assert "permission" in told.lower() or "No such file" in told


def test_a_network_program_that_is_not_installed(guest: Guest, tmp_path: Path) -> None:
    told = refused(*SOFT, "--net", "user", environment={"PATH": str(tmp_path)})
    assert "apt install passt" in told
