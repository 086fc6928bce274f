"""The reference KVM host: the same guest with one and with two processors, a disk and a network."""

from __future__ import annotations

import random
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from bivisor.host.disk import Disk
from bivisor.host.link import cable
from bivisor.image import Guest
from bivisor.kvm.vm import MIB
from bivisor.platform.virtio.blk import VirtioBlk
from bivisor.platform.virtio.net import VirtioNet

from .harness import GuestRun

pytestmark = [pytest.mark.guest, pytest.mark.kvm, pytest.mark.rig]

COMMAND = """
    set -e
    nproc
    grep -c virtio /proc/interrupts
    dd if=/data of=/dev/vda bs=64k conv=fsync 2>/dev/null
    echo 3 > /proc/sys/vm/drop_caches
    sha256sum < /dev/vda
    ifconfig eth0 10.0.0.{me} netmask 255.255.255.0 up
    until ping -c 1 -W 1 10.0.0.{other} >/dev/null; do :; done
    for i in $(seq $(nproc)); do (x=0; while [ $x -lt 5000 ]; do x=$((x + 1)); done; echo job) & done
    wait
    echo joined
    read line
    """


def said(run: GuestRun) -> bool:
    return b"joined" in run.stdout


@pytest.mark.parametrize("engine", ["kvm"], indirect=True)
@pytest.mark.parametrize("cpus", [1, 2])
def test_the_guest_boots_with_disk_and_network(engine: str, guest: Guest, tmp_path: Path, cpus: int) -> None:
    data = random.Random(cpus).randbytes(4 * MIB)
    runs = [
        GuestRun(engine, guest, COMMAND.format(me=me, other=3 - me), cpus=cpus, files=[("/data", data)])
        for me in (1, 2)
    ]
    with runs[0], runs[1]:
        for number, (run, end) in enumerate(zip(runs, cable(runs[0].vm.loop, runs[1].vm.loop), strict=True)):
            run.vm.on_close(end.close)
            run.vm.add(VirtioNet(end, f"52:54:00:00:00:{number:02x}"))
            path = tmp_path / str(number)
            path.write_bytes(bytes(len(data)))
            disk = Disk(path)
            run.vm.on_close(disk.close)
            run.vm.add(VirtioBlk(disk, run.vm.loop, queues=cpus))
            run.start()
        for run in runs:
            run.until(partial(said, run))
        for run in runs:
            run.stdin.send(b"done\n")
        for number, run in enumerate(runs):
            lines = run.finish().lines()
            assert lines[0] == str(cpus)
            assert int(lines[1]) >= 4
            assert lines[2].split()[0] == sha256(data).hexdigest()
            assert lines[3:] == ["job"] * cpus + ["joined"]
            assert (tmp_path / str(number)).read_bytes() == data
