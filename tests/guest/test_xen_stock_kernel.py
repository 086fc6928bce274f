"""A stock kernel as PVH domain on either engine: what it finds, and that it warns of no more than under real Xen."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import UUID

import pytest

from bivisor.abi.xen.xen import ShutdownReason
from bivisor.image import Guest
from bivisor.image.initramfs import append_exec
from bivisor.toolstack.xenhost import XenHost

from .xen_warnings import COMMAND, ON_REAL_XEN, warnings

pytestmark = pytest.mark.guest

PATIENCE_S = 60
FOUND = """
    cd /sys/hypervisor
    for name in type guest_type uuid version/* compilation/compiler properties/features properties/pagesize
    do echo "$name: $(cat $name)"; done
    echo "clock: $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
    echo "processors: $(nproc)"
    for i in $(seq 4); do (x=0; while [ $x -lt 100 ]; do x=$((x + 1)); done) & done; wait
    awk '/xen-percpu.*(resched|callfunc)/ { print $NF ": " ($2 + $3 + 0 > 0) }' /proc/interrupts
    sleep 0.1
    read up rest < /proc/uptime; echo "uptime: $up"
"""


def boot(engine: str, guest: Guest, tmp_path: Path, vcpus: int) -> tuple[str, UUID, float]:
    """What the guest printed, the UUID that it was created with, and for how many seconds it was there."""
    initrd = tmp_path / "initrd"
    initrd.write_bytes(guest.initrd.read_bytes() + append_exec(f"{FOUND}\n{COMMAND}\npoweroff"))
    output = bytearray()
    cmdline = "console=hvc0 panic=-1 mitigations=off audit=0 quiet"
    with XenHost(engine) as host:
        began = time.monotonic()
        domain = host.create("u1", guest.kernel, initrd=initrd, cmdline=cmdline, vcpus=vcpus, console=output.extend)
        assert domain.wait(PATIENCE_S) is ShutdownReason.POWEROFF, output[-2000:].decode(errors="replace")
        there = time.monotonic() - began
        return output.decode(errors="replace"), UUID(domain.uuid), there


def check(engine: str, guest: Guest, tmp_path: Path, vcpus: int) -> dict[str, str]:
    text, uuid, there = boot(engine, guest, tmp_path, vcpus)
    found = dict(line.split(": ", 1) for line in text.replace("\r", "").splitlines() if ": " in line)
    assert found["type"] == "xen"
    assert found["guest_type"] == "PVH"
    assert UUID(found["uuid"]) == uuid
    assert [found[f"version/{part}"] for part in ("major", "minor", "extra")] == ["4", "17", ".7"]
    assert found["compilation/compiler"]
    assert found["properties/features"] == "00012305"
    assert found["properties/pagesize"] == "1000"
    assert found["clock"] == "xen"
    assert found["processors"] == str(vcpus)
    assert 0.1 < float(found["uptime"]) <= there
    assert warnings(text) <= ON_REAL_XEN
    return found


@pytest.mark.parametrize("engine", ["soft"], indirect=True)
def test_a_domain_on_soft_finds_what_it_finds_on_xen(engine: str, guest: Guest, tmp_path: Path) -> None:
    check(engine, guest, tmp_path, 1)


@pytest.mark.kvm
@pytest.mark.rig
@pytest.mark.parametrize("engine", ["kvm"], indirect=True)
@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_domain_on_kvm_finds_what_it_finds_on_xen(engine: str, guest: Guest, tmp_path: Path, vcpus: int) -> None:
    found = check(engine, guest, tmp_path, vcpus)
    for processor in range(vcpus if vcpus > 1 else 0):  # each has been interrupted by another
        assert "1" in [found[f"{kind}{processor}"] for kind in ("resched", "callfunc", "callfuncsingle")]
