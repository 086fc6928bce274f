"""Choosing packages from what apt says, and taking files out of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from bivisor.image import pckernel
from bivisor.image.packages import Selection, copy_wanted, parse_control, select

DEBIAN = """\
Package: linux-image-cloud-amd64
Version: 6.12.38-1
Depends: linux-image-6.12.38+deb13-cloud-amd64 (= 6.12.38-1)
Description: Linux for cloud (meta-package)
 More of it,
 on two lines.

Package: linux-image-cloud-amd64
Version: 6.12.30-1
Depends: linux-image-6.12.30+deb13-cloud-amd64 (= 6.12.30-1)

Package: linux-image-6.12.38+deb13-cloud-amd64
Version: 6.12.38-1
Depends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool

Package: busybox-static
Version: 1:1.37.0-6+b3
"""

UBUNTU = """\
Package: linux-image-virtual
Version: 6.8.0-60.63
Depends: linux-image-6.8.0-60-generic

Package: linux-image-generic
Version: 6.8.0-60.63
Depends: linux-image-6.8.0-60-generic, linux-modules-extra-6.8.0-60-generic, linux-firmware, intel-microcode

Package: linux-image-6.8.0-60-generic
Version: 6.8.0-60.63
Depends: kmod, linux-base (>= 4.5ubuntu1~16.04.1), linux-modules-6.8.0-60-generic

Package: linux-modules-6.8.0-60-generic
Version: 6.8.0-60.63

Package: busybox-static
Version: 1:1.36.1-6ubuntu3.1
"""


def chosen(apt: str, *metapackages: str) -> Selection | None:
    offered = parse_control(apt)

    def show(names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        return {name: offered[name] for name in names if name in offered}

    return select(show, metapackages) if metapackages else select(show)


def test_debian_has_kernel_and_modules_in_one_package() -> None:
    found = chosen(DEBIAN)
    assert found is not None
    assert found.release == "6.12.38+deb13-cloud-amd64"
    assert str(found) == "linux-image-6.12.38+deb13-cloud-amd64=6.12.38-1 busybox-static=1:1.37.0-6+b3"


def test_ubuntu_has_the_modules_in_a_package_of_their_own() -> None:
    found = chosen(UBUNTU)
    assert found is not None
    assert found.release == "6.8.0-60-generic"
    assert [name for name, _ in found.packages] == [
        "linux-image-6.8.0-60-generic",
        "busybox-static",
        "linux-modules-6.8.0-60-generic",
    ]


def test_another_kernel_than_the_default_one_can_be_asked_for() -> None:
    both = (
        DEBIAN
        + """
Package: linux-image-amd64
Version: 6.12.38-1
Depends: linux-image-6.12.38+deb13-amd64 (= 6.12.38-1)

Package: linux-image-6.12.38+deb13-amd64
Version: 6.12.38-1
"""
    )
    full, small = chosen(both, *pckernel.METAPACKAGES), chosen(both)
    assert full is not None and full.release == "6.12.38+deb13-amd64"
    assert small is not None and small.release == "6.12.38+deb13-cloud-amd64"


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("boot/vmlinuz-6.12.38-amd64", True),
        ("lib/modules/6.12.38-amd64/modules.builtin", True),
        ("lib/modules/6.12.38-amd64/kernel/drivers/net/ethernet/intel/e1000/e1000.ko.xz", True),
        ("lib/modules/6.12.38-amd64/kernel/drivers/ata/ata_piix.ko", True),
        ("lib/modules/6.12.38-amd64/kernel/drivers/net/xen-netfront.ko", True),
        ("lib/modules/6.12.38-amd64/kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko", False),
        ("lib/modules/6.12.38-amd64/kernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko", False),
        ("boot/System.map-6.12.38-amd64", False),
    ],
)
def test_of_the_kernel_for_pcs_only_what_machines_of_this_program_have_is_unpacked(name: str, taken: bool) -> None:
    assert (pckernel.WANTED.fullmatch(name) is not None) is taken


@pytest.mark.parametrize(
    "missing", ["busybox-static", "linux-modules-6.8.0-60-generic", "linux-image-6.8.0-60-generic"]
)
def test_a_selection_that_is_not_complete_is_none(missing: str) -> None:
    assert chosen(UBUNTU.replace(f"Package: {missing}\n", "Package: other\n")) is None


@pytest.mark.parametrize("text", ["", "\n\n\n", "rubbish", "N: no packages found\n", " continued\n", "Package: x\n"])
def test_what_is_no_package_is_passed_over(text: str) -> None:
    assert parse_control(text) == {}
    assert chosen(text) is None


def test_a_field_goes_on_in_indented_lines() -> None:
    assert parse_control(DEBIAN)["linux-image-cloud-amd64"]["Description"].endswith("More of it, on two lines.")


def test_the_first_paragraph_of_a_package_is_the_candidate() -> None:
    assert parse_control(DEBIAN)["linux-image-cloud-amd64"]["Version"] == "6.12.38-1"


def unpacked(into: Path, members: dict[str, tarfile.TarInfo | bytes]) -> set[str]:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            body = b"" if isinstance(content, tarfile.TarInfo) else content
            member.size = len(body)
            member.mode = 0o755 if name.endswith("busybox") else 0o644
            archive.addfile(member, io.BytesIO(body))
    data.seek(0)
    with tarfile.open(fileobj=data, mode="r|") as archive:
        copy_wanted(archive, into / "root")
    return {str(path.relative_to(into)) for path in into.rglob("*") if not path.is_dir()}


def test_only_what_is_wanted_is_copied_and_usr_is_merged(tmp_path: Path) -> None:
    members: dict[str, tarfile.TarInfo | bytes] = {
        "./boot/vmlinuz-1": b"k",
        "./boot/System.map-1": b"-",
        "./usr/lib/modules/1/kernel/a/b.ko.xz": b"m",
        "./lib/modules/1/modules.builtin": b"b",
        "./lib/modules/1/modules.alias": b"-",
        "./usr/bin/busybox": b"x",
        "./usr/share/doc/x": b"-",
    }
    found = unpacked(tmp_path, members)
    wanted = ["boot/vmlinuz-1", "lib/modules/1/kernel/a/b.ko.xz", "lib/modules/1/modules.builtin", "bin/busybox"]
    assert found == {f"root/{name}" for name in wanted}
    assert (tmp_path / "root/bin/busybox").stat().st_mode & 0o111


def test_no_member_leads_out_of_the_directory(tmp_path: Path) -> None:
    link = tarfile.TarInfo("./lib/modules/1/kernel/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/"
    hard = tarfile.TarInfo("./boot/vmlinuz-2")
    hard.type, hard.linkname = tarfile.LNKTYPE, "/etc/passwd"
    members: dict[str, tarfile.TarInfo | bytes] = {
        "/bin/busybox": b"x",
        "./lib/modules/1/kernel/../../../../../escaped": b"x",
        "../boot/vmlinuz-1": b"x",
        "./lib/modules/../kernel/x": b"x",
        "link": link,
        "hard": hard,
        "./lib/modules/1/kernel/link/escaped": b"x",
    }
    assert unpacked(tmp_path, members) == {"root/lib/modules/1/kernel/link/escaped"}
    assert not (tmp_path / "root/lib/modules/1/kernel/link").is_symlink()
