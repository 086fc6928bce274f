"""Xen domains from Python: `bivisor.XenHost` and `bivisor.DomU`."""

from __future__ import annotations

from pathlib import Path

import pytest

import bivisor
from bivisor.abi.xen.xen import ShutdownReason
from bivisor.image import Guest
from holdings import holdings

pytestmark = pytest.mark.guest


def test_domains_are_talked_to_resized_and_shut_down(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"hello from the host".ljust(1 << 20))
    with bivisor.XenHost("soft") as host:
        with host.create(
            "demo", memory="192M", disks=[f"{tmp_path}/disk.img,raw,xvda,r"], vifs=["bridge=xenbr0"]
        ) as domain:
            assert guest.release.encode() in domain.wait_for("Leave with exit")
            domain.wait_for("~ # ")
            domain.send("head -c 19 /dev/xvda; ls /sys/class/net; cat /sys/hypervisor/uuid\n")
            domain.wait_for("hello from the host")
            domain.wait_for("eth0")
            domain.wait_for(domain.uuid)
            domain.set_memory(128 << 20)
            assert domain.memory_target == 128 << 20
            with pytest.raises(bivisor.GuestTimeout, match=r"demo ran for 0\.1 s without saying b'never'"):
                domain.wait_for("never", timeout=0.1)
            with pytest.raises(bivisor.UsageError, match="there is a domain demo already"):
                host.create("demo")
            assert host.find("demo") is host.find(str(domain.domid)) is domain
            domain.shutdown()
            assert domain.wait(60) is ShutdownReason.POWEROFF
            with pytest.raises(bivisor.GuestTimeout, match="demo ended without saying"):
                domain.wait_for("never")
            with pytest.raises(bivisor.UsageError, match="demo has shut down already"):
                domain.shutdown()
        with pytest.raises(bivisor.UsageError, match="there is no domain demo"):
            host.find("demo")


def test_a_domain_that_cannot_be_leaves_nothing(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    with bivisor.XenHost("soft") as host:
        host.create("first", paused=True, memory=64).destroy()
        before = holdings()
        for _ in range(3):
            with pytest.raises(bivisor.ImageError, match="no kernel"):
                host.create("demo", tmp_path / "rubbish", memory=64)
            with pytest.raises(bivisor.UsageError, match=r"nothing\.img: there is no such file"):
                host.create("demo", memory=64, disks=["nothing.img,raw,xvda"])
        assert holdings() == before
        assert list(host.xen.domains) == [0]
        assert host.store.names("/local/domain") == ["0"]
        assert host.store.get("/local/domain/0/backend/vbd/2") is None
