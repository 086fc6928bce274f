"""A stock kernel as PV domain: to a shell, on the soft engine, and every way to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor import boot
from bivisor.abi.xen.xen import ShutdownReason
from bivisor.errors import UsageError
from bivisor.image import default_guest, quiet
from bivisor.image.initramfs import append_exec
from bivisor.image.place import default_root
from bivisor.toolstack.domu import DomU
from bivisor.toolstack.xenhost import XenHost

from . import pv_traps
from .test_xen_pvh import CMDLINE, PATIENCE_S, Talk

pytestmark = pytest.mark.guest


@pytest.fixture
def host() -> Iterator[XenHost]:
    with XenHost("soft") as host:
        yield host


def create(host: XenHost, talk: Talk, name: str = "u1", kind: str = "pv", vcpus: int = 1) -> DomU:
    guest = default_guest(quiet)
    cache = boot.PayloadCache(Path(default_root()) / "kernels")
    return host.create(
        name, guest.kernel, type=kind, vcpus=vcpus, initrd=guest.initrd, cmdline=CMDLINE, console=talk, cache=cache
    )


def ask(domain: DomU, talk: Talk, command: str, answer: str) -> None:
    before = len(talk.text)
    domain.send(command.encode() + b"\n")
    talk.wait_for(answer.encode(), before)


def test_a_stock_kernel_reaches_a_shell_as_pv_domain_and_powers_off(host: XenHost) -> None:
    talk = Talk()
    domain = create(host, talk)
    talk.wait_for(b"Leave with exit")
    assert b"Hypervisor detected: Xen PV" in talk.text
    assert b"Booting kernel on Xen\r\n" in talk.text  # what it says on real Xen 4.17 too, and not "paravirtualized"
    ask(domain, talk, "cat /sys/hypervisor/type /sys/hypervisor/guest_type", "xen\r\nPV")
    ask(domain, talk, "cat /sys/devices/system/clocksource/*/current_clocksource | tr x X", "Xen\r\n")
    ask(domain, talk, "for i in $(seq 50); do (true) || echo lost; done; echo forked $((6 * 7))", "forked 42")
    ask(domain, talk, "sleep 0.2; echo slept $((6 * 7))", "slept 42")
    ask(domain, talk, "dmesg | grep -c 'unchecked MSR\\|WARNING\\|BUG:' | sed 's/^/warnings /'", "warnings 0\r\n")
    domain.send(b"poweroff\n")
    assert domain.wait(PATIENCE_S) is ShutdownReason.POWEROFF


def test_a_program_that_does_what_it_may_not_gets_the_signal_of_real_hardware_and_the_domain_lives(
    host: XenHost, tmp_path: Path
) -> None:
    talk, guest, initrd = Talk(), default_guest(quiet), tmp_path / "initrd"
    command = "/traps; echo lives $((6 * 7)); poweroff -f"
    initrd.write_bytes(guest.initrd.read_bytes() + append_exec(command, [("/traps", pv_traps.program(tmp_path))]))
    cache = boot.PayloadCache(Path(default_root()) / "kernels")
    domain = host.create("u1", guest.kernel, type="pv", initrd=initrd, cmdline=CMDLINE, console=talk, cache=cache)
    talk.wait_for(b"lives 42")
    otherwise = pv_traps.OF_THE_LIBRARY if host.engine.name == "soft" else {}
    assert pv_traps.ends(bytes(talk.text)) == pv_traps.ENDS | otherwise
    assert b"Oops" not in talk.text
    assert domain.wait(PATIENCE_S) is ShutdownReason.POWEROFF


def test_a_pv_domain_uses_as_many_processors_as_it_is_told(host: XenHost) -> None:
    talk = Talk()
    domain = create(host, talk, vcpus=3)
    talk.wait_for(b"Leave with exit")
    ask(domain, talk, "echo $(nproc) processors", "3 processors")
    ask(domain, talk, "for n in 1 2 4; do taskset $n true || echo no; done; echo each $((6 * 7))", "each 42")
    make = "(for n in $(seq 5); do dd if=/dev/zero bs=64k count=4 2>/dev/null | md5sum; done | uniq -c)"
    ask(domain, talk, f"for j in 1 2 3; do {make} & done; wait; echo all $((6 * 7))", "all 42")
    assert talk.text.count(b" 5 ec87a838931d4d5d2e94a04644788a55") == 3
    for count in (1, 3, 2):
        domain.set_vcpus(count)
        cpus = " ".join(f"/sys/devices/system/cpu/cpu{number}/online" for number in range(1, count))
        up = f"for cpu in {cpus}; do echo 1 > $cpu; done 2>/dev/null"  # as udev would
        ask(
            domain,
            talk,
            f"until [ $(nproc) = {count} ]; do {up}; done; echo has $((40 + {count}))",
            f"has {40 + count}",
        )
    ask(domain, talk, "dmesg | grep -c 'WARNING:\\|BUG:\\|rcu.*stalls' | sed 's/^/warnings /'", "warnings 0\r\n")
    with pytest.raises(UsageError, match="1 to 3 processors"):
        domain.set_vcpus(4)
    domain.send(b"poweroff\n")
    assert domain.wait(PATIENCE_S) is ShutdownReason.POWEROFF


@pytest.mark.parametrize(
    ("command", "reason"),
    [(b"reboot\n", ShutdownReason.REBOOT), (b"echo c > /proc/sysrq-trigger\n", ShutdownReason.CRASH)],
    ids=["reboot", "panic"],
)
def test_the_hypervisor_hears_why_a_pv_domain_ends(host: XenHost, command: bytes, reason: ShutdownReason) -> None:
    talk = Talk()
    domain = create(host, talk)
    talk.wait_for(b"Leave with exit")
    domain.send(command)
    assert domain.wait(PATIENCE_S) is reason


def test_a_destroyed_pv_domain_gives_everything_back_and_a_pvh_domain_beside_it_runs_on(host: XenHost) -> None:
    beside, talk = Talk(), Talk()
    other = create(host, beside, "other", "pvh")
    domain = create(host, talk)
    talk.wait_for(b"Linux version")
    domain.destroy()
    beside.wait_for(b"Leave with exit")
    ask(other, beside, "echo still $((6 * 7))", "still 42")
    assert sorted(host.xen.domains) == [0, other.domid]


def test_disk_network_and_balloon_work_in_pv_domains(host: XenHost, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(16 << 20))
    talks = [Talk(), Talk()]
    guest = default_guest(quiet)
    domains = [
        host.create(
            f"u{number}",
            guest.kernel,
            type="pv",
            initrd=guest.initrd,
            cmdline=CMDLINE,
            console=talk,
            disks=[] if number else [f"{disk},raw,xvda,w"],
            vifs=[""],
        )
        for number, talk in enumerate(talks)
    ]
    for number, (domain, talk) in enumerate(zip(domains, talks, strict=True)):
        talk.wait_for(b"Leave with exit")
        address = f"ip addr add 10.9.0.{number + 1}/24 dev eth0; ip link set eth0 up"
        ask(domain, talk, f"{address}; echo up $((6 * 7))", "up 42")
    ask(domains[1], talks[1], "ping -c 2 -W 20 10.9.0.1 | grep received", "2 packets received")
    write = "dd if=/dev/urandom of=/tmp/x bs=1M count=8; dd if=/tmp/x of=/dev/xvda bs=1M; sync"
    compare = "echo 3 > /proc/sys/vm/drop_caches; cmp -n 8388608 /tmp/x /dev/xvda && echo same $((6 * 7))"
    ask(domains[0], talks[0], f"{write}; {compare}", "same 42")
    pages = host.xen.domains[domains[0].domid]
    before = pages.pages
    for target in (200, 256):
        with host.loop.lock:
            host.store.write(f"{domains[0].path}/memory/target", str(target << 10))
        wanted = before - (256 - target << 8)
        until = time.monotonic() + PATIENCE_S
        while pages.pages != wanted and time.monotonic() < until:
            domains[0].wait(0.05)
        assert pages.pages == wanted
