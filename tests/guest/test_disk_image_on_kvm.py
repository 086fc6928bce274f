"""One disk image to its login prompt on an ordinary KVM, under both architectures. In the rig each takes some minutes:
firmware and boot loader are accesses to devices and little else, and an exit is slow there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.image.disk import build_disk
from bivisor.image.progress import quiet
from bivisor.toolstack.feed import Feed
from bivisor.toolstack.options import RunOptions
from bivisor.toolstack.pc import launch_pc
from bivisor.toolstack.xenhost import XenHost
from bivisor.toolstack.xlconfig import read_config

from .pc_person import Console

pytestmark = [pytest.mark.guest, pytest.mark.kvm, pytest.mark.rig, pytest.mark.timeout(700)]

PATIENCE = 600.0


@pytest.fixture
def image(tmp_path: Path, engine: str) -> Iterator[Path]:
    if engine != "kvm":
        pytest.skip("the engine soft has tests of its own")
    copy = tmp_path / "disk.img"
    shutil.copyfile(build_disk(progress=quiet), copy)
    yield copy
    copy.unlink()


def test_it_boots_by_kvm(image: Path) -> None:
    console = Console()
    options = RunOptions.of(machine="pc", engine="kvm", memory=256, disks=[f"{image},if=virtio"])
    with launch_pc(options, console, log=console.log.extend) as vm:
        vm.start()
        waited = 0.0
        while b"bivisor login:" not in console.text:
            assert vm.wait(1.0) is None, bytes(console.text[-800:])
            waited += 1.0
            assert waited < PATIENCE, bytes(console.text[-800:])


def test_it_boots_as_an_hvm_domain_with_two_processors_and_finds_its_pv_disk(image: Path) -> None:
    keys = ["name=hvm", "type=hvm", "memory=256", "vcpus=2", "hdtype=ahci", f"disk=['{image},raw,hda,rw']"]
    with XenHost("kvm") as host:
        domain = host.create_from(read_config(None, keys).config, feed=Feed())
        domain.wait_for("bivisor login:", PATIENCE)
        domain.send("root\n")
        domain.wait_for("/root # ", PATIENCE)
        domain.send("mount | grep ' / '\n")
        domain.wait_for("/dev/xvda1 on / ", PATIENCE)
        domain.send("echo of $(nproc)\n")
        domain.wait_for("of 2", PATIENCE)
