"""Two guests at the two ends of a cable."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import pytest

from bivisor.host.disk import Disk
from bivisor.host.link import cable
from bivisor.platform.virtio.blk import VirtioBlk
from bivisor.platform.virtio.net import VirtioNet

from .conftest import Boot
from .harness import GuestRun

pytestmark = pytest.mark.guest

MIB = 1 << 20
SIZE = 64 * MIB
UP = "ifconfig eth0 10.0.0.{} netmask 255.255.255.0 up\n"
ANSWERED = "until ping -c 1 -W 1 10.0.0.{} >/dev/null; do :; done\n"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def pair(boot: Boot, stack: ExitStack, first: str, second: str) -> tuple[GuestRun, GuestRun]:
    """Two guests that are joined by a cable, with addresses 10.0.0.1 and 10.0.0.2, and know that the other is there."""
    left = stack.enter_context(boot(UP.format(1) + ANSWERED.format(2) + first))
    right = stack.enter_context(boot(UP.format(2) + ANSWERED.format(1) + second))
    ends = cable(left.vm.loop, right.vm.loop)
    for number, (run, end) in enumerate(zip((left, right), ends, strict=True), 1):
        run.vm.on_close(end.close)
        run.vm.add(VirtioNet(end, f"52:54:00:00:00:{number:02x}"))
    return left, right


def test_two_guests_exchange_files_of_64_mib(boot: Boot, stack: ExitStack, tmp_path: Path) -> None:
    files = [random.Random(number).randbytes(SIZE) for number in (1, 2)]
    left, right = pair(
        boot,
        stack,
        """
        nc -l -p 5000 < /dev/vda | sha256sum > /sum &
        until grep -q -s :1388 /proc/net/tcp /proc/net/tcp6; do :; done
        echo listening
        wait
        cat /sum
        """,
        "echo ready; read line; nc 10.0.0.1 5000 < /dev/vda | sha256sum",
    )
    for run, data in zip((left, right), files, strict=True):
        path = tmp_path / sha256(data).hexdigest()
        path.write_bytes(data)
        disk = Disk(path, read_only=True)
        run.vm.on_close(disk.close)
        run.vm.add(VirtioBlk(disk, run.vm.loop))
        run.start()
    left.until(lambda: b"listening" in left.stdout)
    right.until(lambda: b"ready" in right.stdout)
    started = time.monotonic()
    right.stdin.send(b"go\n")
    received = [run.finish().lines()[-1].split()[0] for run in (left, right)]
    passed = time.monotonic() - started
    assert received == [sha256(data).hexdigest() for data in reversed(files)]
    print(f"{2 * SIZE / passed / 1e6:.1f} MB/s, both directions together, with checksums")


def test_frames_of_every_length_arrive(boot: Boot, stack: ExitStack) -> None:
    sizes = "0 1 17 18 19 1400 1472 1473 9000 65507"
    left, right = pair(
        boot,
        stack,
        "read line",
        f"for size in {sizes}; do ping -c 1 -W 5 -s $size 10.0.0.1 >/dev/null && echo $size; done",
    )
    left.start()
    right.start()
    lines = right.finish().lines()
    left.stdin.send(b"done\n")
    assert left.finish().status == 0
    assert lines == sizes.split()


def test_a_guest_outlives_the_other_end_of_its_cable(boot: Boot, stack: ExitStack) -> None:
    left, right = pair(boot, stack, "true", "read line; ping -c 1 -W 1 10.0.0.1 >/dev/null || echo alone")
    left.start()
    right.start()
    assert left.finish().status == 0
    left.vm.close()
    right.stdin.send(b"on\n")
    assert right.finish().lines() == ["alone"]
