"""The default guest: prepared once, found at once, repaired where it is damaged, and an error that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from image_parts import install

from bivisor.errors import HostError, ImageError
from bivisor.image import default_guest, prepare, quiet
from bivisor.image.cache import Cache
from bivisor.image.packages import PackageError

RELEASE = "6.1.0-9-test"


class Distribution:
    """Stands for the distribution's packages: what they unpack to, and how often they were asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked = 0
        self.reachable = True
        self.kernel = install(root, RELEASE, {"virtio_blk": "virtio", "virtio": "", "unwanted": ""})
        (root / "bin").mkdir()
        (root / "bin/busybox").write_bytes(b"busybox")

    def __call__(self, *_: object, **__: object) -> Path:
        self.asked += 1
        if not self.reachable:
            raise PackageError("no network")
        return self.root


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribution:
    found = Distribution(tmp_path / "packages")
    monkeypatch.setattr(prepare, "from_packages", found)
    monkeypatch.setattr(prepare, "_BOOT", tmp_path / "host/boot")
    monkeypatch.setattr(prepare, "_BUSYBOX", (tmp_path / "host/bin/busybox",))
    return found


@pytest.fixture
def prepared(distribution: Distribution, tmp_path: Path) -> Callable[[], Path]:
    return lambda: default_guest(quiet, root=tmp_path / "cache").initrd


def test_it_is_prepared_once(distribution: Distribution, tmp_path: Path) -> None:
    guest = default_guest(quiet, root=tmp_path / "cache")
    assert (guest.kernel, guest.release) == (distribution.kernel, RELEASE)
    data = guest.initrd.read_bytes()
    assert 0 < data.find(b"lib/modules/virtio.ko") < data.find(b"lib/modules/virtio_blk.ko")
    assert b"unwanted" not in data
    distribution.reachable = False
    assert default_guest(quiet, root=tmp_path / "cache") == guest
    assert distribution.asked == 1


def test_a_damaged_initramfs_is_made_again_without_the_network(
    distribution: Distribution, prepared: Callable[[], Path]
) -> None:
    initrd = prepared()
    whole = initrd.read_bytes()
    for damage in (lambda: initrd.write_bytes(b"rubbish"), initrd.unlink):
        damage()
        distribution.reachable = False
        assert prepared().read_bytes() == whole


def test_a_kernel_that_has_changed_is_asked_for_again(distribution: Distribution, prepared: Callable[[], Path]) -> None:
    prepared()
    with open(distribution.kernel, "ab") as file:
        file.write(b"x")
    prepared()
    assert distribution.asked == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"kernel": 1}'])
def test_a_damaged_index_is_no_more_than_no_index(
    distribution: Distribution, prepared: Callable[[], Path], tmp_path: Path, text: str
) -> None:
    prepared()
    (tmp_path / "cache/guest.json").write_text(text)
    prepared()
    assert distribution.asked == 2


def test_without_packages_the_newest_kernel_installed_is_taken(distribution: Distribution, tmp_path: Path) -> None:
    distribution.reachable = False
    host = tmp_path / "host"
    for release in ("6.9.0-1-test", "6.10.0-1-test"):
        install(host, release, {"virtio": ""})
    (host / "boot/vmlinuz-7-rubbish").write_bytes(b"rubbish")
    (host / "bin").mkdir()
    with pytest.raises(HostError):
        default_guest(quiet, root=tmp_path / "cache")
    (host / "bin/busybox").write_bytes(static_elf())
    assert default_guest(quiet, root=tmp_path / "cache").release == "6.10.0-1-test"


def test_without_any_kernel_the_error_says_what_to_do(distribution: Distribution, tmp_path: Path) -> None:
    distribution.reachable = False
    with pytest.raises(HostError, match=r"no network; connect .* or give --kernel FILE") as caught:
        default_guest(quiet, root=tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_kernel_of_ones_own_finds_its_modules_beside_it(distribution: Distribution, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with quiet() as progress:
        kernel = install(tmp_path / "own", "7.0-own", {"virtio": "", "dummy": ""})
        guest = prepare.guest_of(cache, progress, kernel, extra=["dummy"])
        assert b"lib/modules/dummy.ko" in guest.initrd.read_bytes()
        with pytest.raises(ImageError, match="missing"):
            prepare.guest_of(cache, progress, kernel, extra=["missing"])
        kernel.rename(tmp_path / "vmlinuz")
        with pytest.raises(ImageError, match=r"no modules of Linux 7\.0-own"):
            prepare.guest_of(cache, progress, tmp_path / "vmlinuz")


def test_finding_it_imports_nothing_heavy(
    distribution: Distribution, prepared: Callable[[], Path], tmp_path: Path
) -> None:
    prepared()
    program = (
        "import sys; from bivisor.image import default_guest; default_guest();"
        "print([name for name in ('rich', 'elftools', 'subprocess', 'bivisor.image.prepare') if name in sys.modules])"
    )
    environment = {**os.environ, "BIVISOR_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def static_elf() -> bytes:
    from bivisor.image import helpers

    return helpers.debug_exit()
