"""Memory that a guest gives back, and entropy that it gets."""

from __future__ import annotations

import os

import pytest

from bivisor.host.falloc import punch_hole
from bivisor.platform.virtio.balloon import VirtioBalloon
from bivisor.platform.virtio.rng import VirtioRng

from .conftest import Boot
from .harness import GuestRun

pytestmark = pytest.mark.guest

MIB = 1 << 20
PAGES = MIB // 4096  # in one MiB


def taken(run: GuestRun) -> int:
    """The bytes of the host's memory behind the guest's RAM."""
    return os.fstat(run.vm.memory.ram.fd).st_blocks * 512


def test_a_balloon_gives_memory_back_to_the_host_and_takes_it_again(boot: Boot) -> None:
    command = """
        mount -t tmpfs -o size=140m tmpfs /mnt
        tr '\\0' x < /dev/zero | dd of=/mnt/large bs=64k count=1600 iflag=fullblock 2>/dev/null
        rm /mnt/large
        echo full
        read line
        tr '\\0' x < /dev/zero | dd of=/mnt/large bs=64k count=1600 iflag=fullblock 2>/dev/null
        tr -d x < /mnt/large | wc -c
        wc -c < /mnt/large
        """
    with boot(command) as run:
        balloon = VirtioBalloon(run.vm.loop, punch_hole)
        run.vm.add(balloon)
        run.start()
        run.until(lambda: b"full\n" in run.stdout)
        before = taken(run)
        assert before > 100 * MIB
        with run.vm.loop.lock:
            balloon.set_target(120 * PAGES)
        run.until(lambda: balloon.actual == 120 * PAGES)
        assert taken(run) < before - 80 * MIB
        with run.vm.loop.lock:
            balloon.set_target(0)
        run.until(lambda: balloon.actual == 0)
        run.stdin.send(b"on\n")
        assert run.finish().lines() == ["full", "0", str(100 * MIB)]


def test_free_memory_that_is_reported_goes_back_to_the_host(boot: Boot) -> None:
    command = """
        mount -t tmpfs -o size=140m tmpfs /mnt
        tr '\\0' x < /dev/zero | dd of=/mnt/large bs=64k count=1600 iflag=fullblock 2>/dev/null
        echo full
        read line
        rm /mnt/large
        read line
        """
    with boot(command) as run:
        run.vm.add(VirtioBalloon(run.vm.loop, punch_hole, reporting=True))
        run.start()
        run.until(lambda: b"full\n" in run.stdout)
        before = taken(run)
        run.stdin.send(b"on\n")
        run.until(lambda: taken(run) < before - 80 * MIB)
        run.stdin.send(b"on\n")
        assert run.finish().status == 0


def test_a_balloon_tells_the_guests_own_figures(boot: Boot) -> None:
    with boot("read line") as run:
        balloon = VirtioBalloon(run.vm.loop, punch_hole)
        run.vm.add(balloon)
        run.start()
        run.until(lambda: bool(balloon.stats))
        with run.vm.loop.lock:
            balloon.stats = {}
            balloon.request_stats()
        run.until(lambda: bool(balloon.stats))
        run.stdin.send(b"on\n")
        assert run.finish().status == 0
        assert 128 * MIB < balloon.stats["total-memory"] <= 256 * MIB, balloon.stats


def test_a_guest_gets_its_entropy_from_the_device(boot: Boot) -> None:
    given = bytearray()

    def source(view: memoryview) -> int:
        data = os.urandom(len(view))
        view[:] = data
        given.extend(data)
        return len(data)

    with boot("cat /sys/class/misc/hw_random/rng_current; head -c 4096 /dev/hwrng | xxd -p | tr -d '\\n'") as run:
        run.vm.add(VirtioRng(run.vm.loop, source))
        name, data = run.run().lines()
    assert name.startswith("virtio_rng")
    assert len(bytes.fromhex(data)) == 4096
    assert bytes.fromhex(data)[1024:1040] in given
