"""Virtio disks as a guest sees them: what it wrote it reads, what it may not do it cannot, what it discards is free."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from bivisor.host.disk import Disk
from bivisor.host.how import HowToOpen
from bivisor.host.images import open_image
from bivisor.platform.virtio.blk import VirtioBlk

from .conftest import Boot
from .harness import GuestRun

pytestmark = pytest.mark.guest

MIB = 1 << 20
QemuImg = Callable[..., str]


def image(path: Path, size: int, data: bytes = b"") -> Path:
    """A sparse file of `size` bytes that begins with `data`."""
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size)
    return path


def plug(run: GuestRun, path: Path, *, read_only: bool = False, queues: int = 1, serial: str = "") -> None:
    disk = Disk(path, read_only=read_only)
    run.vm.on_close(disk.close)
    run.vm.add(VirtioBlk(disk, run.vm.loop, queues=queues, serial=serial))


def stored(path: Path) -> int:
    """The bytes that the file takes on the host's disk."""
    return path.stat().st_blocks * 512


@pytest.mark.parametrize(("queues", "size"), [(1, 256), (4, 32)])
def test_a_file_comes_back_from_the_disk_as_it_was_written(boot: Boot, tmp_path: Path, queues: int, size: int) -> None:
    disk = image(tmp_path / "disk", 320 * MIB)
    seed = random.Random(queues).randbytes(MIB)
    # A piece of its own for each MiB, so that one in the wrong place is noticed.
    command = f"""
        set -e
        mke2fs -b 4096 /dev/vda >/dev/null
        mount /dev/vda /mnt
        for i in $(seq {size}); do printf %08d $i; tail -c +9 /piece; done > /mnt/file
        sync
        umount /mnt
        mount /dev/vda /mnt
        echo 3 > /proc/sys/vm/drop_caches
        before=$(awk '{{print $3}}' /sys/block/vda/stat)
        sha256sum /mnt/file
        echo $(($(awk '{{print $3}}' /sys/block/vda/stat) - before))
        umount /mnt
        """
    with boot(command, files=[("/piece", seed)]) as run:
        plug(run, disk, queues=queues)
        checksum, sectors = run.run().lines()
    expected = sha256(b"".join(b"%08d" % i + seed[8:] for i in range(1, size + 1))).hexdigest()
    assert checksum.split()[0] == expected
    assert int(sectors) >= size * MIB // 512, "it was read from the cache"
    assert stored(disk) >= size * MIB


def test_what_the_guest_wrote_and_synced_is_in_the_file(boot: Boot, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk", 8 * MIB)
    data = random.Random(5).randbytes(3 * MIB)
    with boot("dd if=/data of=/dev/vda bs=64k seek=3 conv=fsync 2>/dev/null", files=[("/data", data)]) as run:
        plug(run, disk)
        assert run.run().status == 0
    assert disk.read_bytes() == bytes(3 << 16) + data + bytes(5 * MIB - (3 << 16))


def test_a_disk_of_several_queues_has_them_in_use(boot: Boot, tmp_path: Path) -> None:
    with boot("ls /sys/block/vda/mq; cat /sys/block/vda/serial", cpus=1) as run:
        plug(run, image(tmp_path / "disk", MIB), queues=4, serial="a serial number")
        lines = run.run().lines()
    assert lines[-1] == "a serial number"
    assert 1 <= len(lines) - 1 <= 4  # Linux uses no more queues than it has processors


def test_a_read_only_disk_can_be_read_and_not_written(boot: Boot, tmp_path: Path) -> None:
    data = random.Random(6).randbytes(MIB)
    disk = image(tmp_path / "disk", MIB, data)
    command = """
        cat /sys/block/vda/ro
        sha256sum < /dev/vda
        dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>&1 | head -n 1
        blockdev --setrw /dev/vda 2>/dev/null
        dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null && echo written
        true
        """
    with boot(command) as run:
        plug(run, disk, read_only=True)
        lines = run.run().lines()
    assert lines[0] == "1"
    assert lines[1].split()[0] == sha256(data).hexdigest()
    assert "not permitted" in lines[2] or "Read-only" in lines[2]
    assert lines[3:] == []
    assert disk.read_bytes() == data


def test_what_is_discarded_is_given_back_to_the_host(boot: Boot, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk", 64 * MIB)
    with open(disk, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 64 * MIB)
        file.write(b"x" * (64 * MIB))
    assert stored(disk) >= 64 * MIB
    with boot("blkdiscard -o 1048576 -l 62914560 /dev/vda") as run:
        plug(run, disk)
        assert run.run().status == 0
    assert stored(disk) < 8 * MIB
    assert disk.stat().st_size == 64 * MIB
    assert disk.read_bytes() == b"x" * MIB + bytes(60 * MIB) + b"x" * (3 * MIB)


def test_a_file_system_that_is_trimmed_gives_its_free_space_back(boot: Boot, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk", 64 * MIB)
    command = """
        set -e
        mke2fs -b 4096 /dev/vda >/dev/null
        mount /dev/vda /mnt
        dd if=/dev/zero of=/mnt/large bs=1M count=40 2>/dev/null
        tr '\\0' x < /dev/zero | dd of=/mnt/large bs=64k count=640 iflag=fullblock 2>/dev/null
        sync
        rm /mnt/large
        sync
        fstrim /mnt
        umount /mnt
        """
    with boot(command) as run:
        plug(run, disk)
        result = run.run()
    assert result.status == 0, result
    assert stored(disk) < 16 * MIB


def test_a_disk_that_fails_is_an_error_in_the_guest_and_no_more(boot: Boot, tmp_path: Path) -> None:
    class Failing(Disk):
        def readv(self, views: object, offset: int) -> int:
            raise OSError(5, "the medium is damaged")

    with boot("dd if=/dev/vda of=/dev/null bs=4k count=1 2>&1 | head -n 1; echo alive") as run:
        disk = Failing(image(tmp_path / "disk", MIB))
        run.vm.on_close(disk.close)
        run.vm.add(VirtioBlk(disk, run.vm.loop))
        lines = run.run().lines()
    assert "I/O error" in lines[0] or "Input/output" in lines[0]
    assert lines[1] == "alive"


def test_a_guest_lives_on_a_qcow2_image_and_a_trimmed_one_gets_small(
    boot: Boot, tmp_path: Path, qemu_img: QemuImg
) -> None:
    base, disk = tmp_path / "base.qcow2", tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", base, "64M")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", disk)
    seed = random.Random(3).randbytes(MIB)
    command = """
        set -e
        mke2fs -b 4096 /dev/vda >/dev/null
        mount /dev/vda /mnt
        for i in $(seq 40); do printf %08d $i; tail -c +9 /piece; done > /mnt/file
        umount /mnt
        mount /dev/vda /mnt
        sha256sum /mnt/file
        rm /mnt/file
        sync
        fstrim /mnt
        umount /mnt
        """
    with boot(command, files=[("/piece", seed)]) as run:
        image = open_image(disk, HowToOpen("qcow2"))
        run.vm.on_close(image.close)
        run.vm.add(VirtioBlk(image, run.vm.loop))
        checksum = run.run().lines()[-1]
    expected = sha256(b"".join(b"%08d" % i + seed[8:] for i in range(1, 41))).hexdigest()
    assert checksum.split()[0] == expected
    assert "No errors were found" in qemu_img("check", disk)
    assert stored(disk) < 16 * MIB


def test_what_is_written_with_snapshot_is_there_for_the_guest_and_gone_afterwards(boot: Boot, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(MIB)
    disk = image(tmp_path / "disk", 64 * MIB, data)
    command = """
        set -e
        dd if=/dev/vda of=/copy bs=64k count=16 2>/dev/null
        mke2fs -b 1024 /dev/vda >/dev/null
        mount /dev/vda /mnt
        cp /copy /mnt
        umount /mnt
        mount /dev/vda /mnt
        sha256sum /mnt/copy
        umount /mnt
        blkdiscard /dev/vda
        """
    with boot(command) as run:
        thrown = open_image(disk, HowToOpen(throw_away=True))
        run.vm.on_close(thrown.close)
        run.vm.add(VirtioBlk(thrown, run.vm.loop))
        checksum = run.run().lines()[-1]
    assert checksum.split()[0] == sha256(data).hexdigest()
    assert disk.read_bytes() == data + bytes(63 * MIB)
