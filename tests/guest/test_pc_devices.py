"""Debian's kernel for PCs boots from a SATA disk, and its own drivers move data: ahci, ata_piix, e1000."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from bivisor.image.disk import build_disk
from bivisor.image.pckernel import pc_guest
from bivisor.image.progress import quiet
from bivisor.kvm.vm import MIB
from bivisor.toolstack.api import Guest

from .pc_person import PATIENCE, Pc, boot

pytestmark = pytest.mark.guest

SIZE = 256 * MIB
SENT = 4 * MIB
DEVICE = "dev() { grep -l $1 /sys/block/sd*/device/vpd_pg80 | cut -d/ -f4; }"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disks: `data`, and an empty one of its size for each controller to fill."""
    made: Path = tmp_path_factory.mktemp("pc")
    shutil.copyfile(build_disk(progress=quiet, guest=pc_guest(quiet)), made / "disk.img")
    (made / "data").write_bytes(random.Random(5).randbytes(MIB) * (SIZE // MIB - 1) + bytes(range(256)) * (MIB // 256))
    for name in ("from-ide", "from-ahci"):
        with open(made / name, "wb") as file:
            file.truncate(SIZE)
    return made


@pytest.fixture(scope="module")
def pc(directory: Path) -> Iterator[Pc]:
    vm, console = boot(
        f"{directory}/disk.img,if=ahci",
        f"{directory}/data,ro,serial=SOURCE",
        f"{directory}/from-ahci,serial=IDE",
        f"{directory}/from-ide,serial=AHCI,if=ahci",
        memory=192,
        nets=[f"socket={directory}/wire,model=e1000"],
    )
    with vm:
        pc = Pc(vm, console)
        vm.start()
        pc.says(b"bivisor login:")
        vm.send(b"root\n")
        pc.says(b"# ")
        yield pc


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return sha256(file.read()).hexdigest()


def test_ide_and_ahci_read_and_write_256_mib(pc: Pc, directory: Path) -> None:
    said = pc.run(
        f"{DEVICE}; mount | grep ' / '; readlink -f /sys/block/$(dev IDE); readlink -f /sys/block/$(dev AHCI)"
    )
    assert "/0000:00:01.1/ata" in said  # the PIIX3
    assert "/0000:00:03.0/ata" in said
    pc.run("dd if=/dev/$(dev SOURCE) of=/dev/$(dev AHCI) bs=1M conv=fsync; blockdev --flushbufs /dev/$(dev AHCI)")
    assert digest(directory / "from-ide") == digest(directory / "data")
    pc.run("dd if=/dev/$(dev AHCI) of=/dev/$(dev IDE) bs=1M conv=fsync")
    assert digest(directory / "from-ahci") == digest(directory / "data")
    pc.run(f"{DEVICE}; for disk in IDE AHCI; do blkdiscard /dev/$(dev $disk); done")
    for name in ("from-ide", "from-ahci"):  # what is trimmed is the host's again
        found = (directory / name).stat()
        assert found.st_size == SIZE
        assert found.st_blocks * 512 < MIB


def test_the_e1000_carries_pings_and_tcp_both_ways(pc: Pc, directory: Path) -> None:
    with open(directory / "data", "rb") as file:
        data = file.read(SENT)
    with Guest(nets=[f"socket={directory}/wire"]) as other:
        other.wait_for("# ", PATIENCE)
        other.send("ifconfig eth0 10.0.0.2 netmask 255.255.255.0 up; nc -l -p 5000 > /file; sha256sum /file; ")
        other.send("until nc 10.0.0.1 5000 < /file; do :; done; echo e''nd\n")
        pc.run("ifconfig eth0 10.0.0.1 netmask 255.255.255.0 up; until ping -c 1 -W 1 10.0.0.2 >/dev/null; do :; done")
        assert " 0% packet loss" in pc.run("ping -c 2 -i 0.2 -W 10 -s 9000 10.0.0.2")
        pc.run(f"{DEVICE}; dd if=/dev/$(dev SOURCE) bs=1M count={SENT // MIB} | nc 10.0.0.2 5000")
        assert sha256(data).hexdigest() in pc.run("nc -l -p 5000 | sha256sum")
        assert sha256(data).hexdigest() in other.wait_for("end\r\n", PATIENCE).decode()
    assert "e1000" in pc.run("readlink /sys/class/net/eth0/device/driver")
