"""A stock kernel with its own xen-blkfront on this program's block back-end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from bivisor.dom0.block.image import Offer
from bivisor.image import Guest
from bivisor.toolstack.domu import DomU
from bivisor.toolstack.xenblk import Disks
from bivisor.toolstack.xenhost import XenHost
from bivisor.toolstack.xlconfig.disk import DiskSpec

pytestmark = pytest.mark.guest

MIB = 1 << 20
QemuImg = Callable[..., str]
CMDLINE = "console=hvc0 panic=-1 mitigations=off"
PATIENCE_S = 120.0


@pytest.fixture
def host(guest: Guest) -> Iterator[XenHost]:
    with XenHost("soft") as host:
        yield host


def image(path: Path, size: int, data: bytes = b"") -> Path:
    """A sparse file of `size` bytes that begins with `data`."""
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size)
    return path


def offer(host: XenHost, offered: Offer) -> None:
    """Have the host's block back-end offer something else."""
    with host.loop.lock:
        host.disks.close()
        host.disks = Disks(host.control, host.store, offered)


def create(host: XenHost, *disks: DiskSpec, kind: str = "pvh") -> DomU:
    """A domain at its shell with these disks."""
    domain = host.create("u1", type=kind, cmdline=CMDLINE, memory=512, paused=True)
    for spec in disks:
        host.disks.attach(domain.domid, spec)
    domain.start()
    domain.wait_for("Leave with exit", PATIENCE_S)
    return domain


def say(domain: DomU, command: str) -> list[str]:
    """The lines that `command` prints, but for what the terminal echoes."""
    domain.send(f"{command}; echo do''ne\n")
    return domain.wait_for("\ndone\r\n", PATIENCE_S).decode().replace("\r", "").split("\n")[1:-2]


def pieces(seed: bytes, count: int) -> bytes:
    """What `WRITE` makes of the seed: a piece of its own for each MiB, so that one in the wrong place is noticed."""
    return b"".join(b"%08d" % number + seed[8:] for number in range(1, count + 1))


WRITE = "for i in $(seq {count}); do printf %08d $i; tail -c +9 /seed; {each}done > /mnt/file; sync"
REMOUNT = "umount /mnt; mount -t ext4 /dev/xvda /mnt; echo 3 > /proc/sys/vm/drop_caches"


def prepared(host: XenHost, tmp_path: Path, size: int, kind: str = "pvh") -> tuple[DomU, bytes, Path]:
    """A domain with ext4 on xvda, the seed of its data, which came on xvdb, and the image of xvda."""
    seed = random.Random(size).randbytes(MIB)
    disk = image(tmp_path / "disk", (size + 64) * MIB)
    carrier = DiskSpec(image(tmp_path / "seed", MIB, seed), "xvdb", read_only=True)
    domain = create(host, DiskSpec(disk, "xvda"), carrier, kind=kind)
    say(domain, "cat /dev/xvdb > /seed; mke2fs -b 4096 /dev/xvda; mount -t ext4 /dev/xvda /mnt")
    return domain, seed, disk


KINDS = pytest.mark.parametrize("kind", ["pvh", "pv"])
NEITHER = Offer(persistent=False, indirect_segments=0, ring_page_order=0, queues=1)


@pytest.mark.parametrize(
    ("kind", "size", "offered"),
    [
        ("pvh", 256, Offer()),
        ("pv", 16, Offer()),
        ("pvh", 64, Offer(persistent=False)),
        ("pvh", 64, Offer(indirect_segments=0)),
        ("pvh", 256, NEITHER),
        ("pv", 16, NEITHER),
    ],
    ids=["all", "all, pv", "no persistent grants", "no indirect descriptors", "neither", "neither, pv"],
)
def test_a_file_on_ext4_comes_back_after_a_remount(
    host: XenHost, tmp_path: Path, kind: str, size: int, offered: Offer
) -> None:
    offer(host, offered)
    domain, seed, disk = prepared(host, tmp_path, size, kind)
    said = "\n".join(say(domain, "dmesg | grep 'blkfront: xvda'"))
    assert f"persistent grants: {'enabled' if offered.persistent else 'disabled'}" in said
    assert f"indirect descriptors: {'enabled' if offered.indirect_segments else 'disabled'}" in said
    say(domain, WRITE.format(count=size, each=""))
    say(domain, REMOUNT)
    assert sha256(pieces(seed, size)).hexdigest() in say(domain, "sha256sum /mnt/file")[-1]
    assert int(say(domain, "awk '{print $3}' /sys/block/xvda/stat")[-1]) >= size * MIB // 512, "it was in the cache"
    assert disk.stat().st_blocks * 512 >= size * MIB


@KINDS
def test_a_back_end_that_is_killed_under_load_again_and_again_loses_nothing(
    host: XenHost, tmp_path: Path, kind: str
) -> None:
    domain, seed, _ = prepared(host, tmp_path, 64, kind)
    each = "[ $((i % 8)) = 0 ] && { sync /mnt/file & echo at $i >&2; }; "
    domain.send(f"{WRITE.format(count=64, each=each)}; echo writ''ten\n")
    for number in range(8, 65, 8):
        domain.wait_for(f"at {number}\r\n", PATIENCE_S)
        host.disks.restart()
    domain.wait_for("written", PATIENCE_S)
    say(domain, REMOUNT)
    domain.send("dd if=/mnt/file of=/dev/null bs=1M & sha256sum /mnt/file; echo re''ad\n")
    for _ in range(20):
        host.disks.restart()
    assert sha256(pieces(seed, 64)).hexdigest() in domain.wait_for("read\r\n", PATIENCE_S).decode()
    assert "error" not in "\n".join(say(domain, "dmesg | grep -e xvda -e EXT4")).lower()


@KINDS
def test_a_second_disk_comes_and_goes_while_the_domain_runs(host: XenHost, tmp_path: Path, kind: str) -> None:
    data = random.Random(6).randbytes(MIB)
    second = image(tmp_path / "second", 4 * MIB, data)
    domain = create(host, DiskSpec(image(tmp_path / "first", MIB), "xvda"), kind=kind)
    for _ in range(2):
        vbd = host.disks.attach(domain.domid, DiskSpec(second, "xvdb"))
        say(domain, "until [ -b /dev/xvdb ]; do :; done")
        assert sha256(data).hexdigest() in say(domain, "head -c 1048576 /dev/xvdb | sha256sum")[-1]
        host.disks.detach(vbd)
        say(domain, "while [ -b /dev/xvdb ]; do :; done")
    with second.open("r+b") as file:  # the disk is free
        file.write(b"x")
    assert say(domain, "ls /sys/block")[-1:] != []
    assert "xvda" in "\n".join(say(domain, "ls /sys/block"))


def test_a_read_only_disk_can_be_read_and_not_written_and_a_discard_gives_space_back(
    host: XenHost, tmp_path: Path
) -> None:
    data = random.Random(7).randbytes(MIB)
    fixed = image(tmp_path / "fixed", MIB, data)
    full = image(tmp_path / "full", 16 * MIB, b"x" * (16 * MIB))
    domain = create(host, DiskSpec(fixed, "xvda", read_only=True), DiskSpec(full, "xvdb"))
    assert say(domain, "cat /sys/block/xvda/ro")[-1] == "1"
    assert sha256(data).hexdigest() in say(domain, "sha256sum < /dev/xvda")[-1]
    say(domain, "blockdev --setrw /dev/xvda; dd if=/dev/zero of=/dev/xvda bs=4k count=1 conv=fsync")
    assert fixed.read_bytes() == data
    assert full.stat().st_blocks * 512 >= 16 * MIB
    say(domain, "blkdiscard -o 1048576 -l 14680064 /dev/xvdb")
    assert full.stat().st_blocks * 512 <= 4 * MIB
    assert full.read_bytes() == b"x" * MIB + bytes(14 * MIB) + b"x" * MIB


def test_domains_destroyed_in_the_middle_of_io_leave_nothing_behind(host: XenHost, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk", 64 * MIB)
    held = None
    for kind in ("pvh", "pv", "pvh", "pv"):
        domain = create(host, DiskSpec(disk, "xvda"), kind=kind)
        domain.send("echo go''ing; dd if=/dev/zero of=/dev/xvda bs=1M & dd if=/dev/xvda of=/dev/null bs=1M\n")
        domain.wait_for("going", PATIENCE_S)
        domain.destroy()
        dom0 = host.control.domain
        with host.loop.lock:
            now = len(dom0.grants.maptrack), dom0.events.open_ports, sum(host.server.store.owned.values())
        assert now[0] == 0
        assert list(host.xen.domains) == [0]
        assert held in (None, now)
        held = now


def test_a_domain_lives_on_a_qcow2_image_and_what_it_discards_is_free(
    host: XenHost, tmp_path: Path, qemu_img: QemuImg
) -> None:
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", disk, "64M")
    seed = random.Random(9).randbytes(MIB)
    domain = create(host, DiskSpec(disk, "xvda", format="qcow2"), DiskSpec(image(tmp_path / "seed", MIB, seed), "xvdb"))
    say(domain, "mke2fs -b 4096 /dev/xvda >/dev/null; mount -t ext4 /dev/xvda /mnt; cat /dev/xvdb > /seed")
    say(domain, WRITE.format(count=32, each=""))
    assert say(domain, f"{REMOUNT}; sha256sum /mnt/file")[-1].split()[0] == sha256(pieces(seed, 32)).hexdigest()
    assert disk.stat().st_blocks * 512 > 30 * MIB
    say(domain, "rm /mnt/file; sync; fstrim /mnt; umount /mnt; sync")
    domain.destroy()
    assert "No errors were found" in qemu_img("check", disk)
    assert disk.stat().st_blocks * 512 < 16 * MIB
