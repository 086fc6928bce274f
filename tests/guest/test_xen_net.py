"""Stock kernels with their own xen-netfront on this program's network back-end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from hashlib import sha256

import pytest

from bivisor.image import Guest
from bivisor.toolstack.domu import DomU
from bivisor.toolstack.xenhost import XenHost
from bivisor.toolstack.xlconfig.vif import VifSpec

pytestmark = pytest.mark.guest

MIB = 1 << 20
CMDLINE = "console=hvc0 panic=-1 mitigations=off"
PATIENCE_S = 120.0


@pytest.fixture
def host(guest: Guest) -> Iterator[XenHost]:
    with XenHost("soft") as host:
        yield host


def create(host: XenHost, number: int, spec: VifSpec | None = None, kind: str = "pvh") -> DomU:
    """A domain at its shell, with an interface if `spec` says which."""
    domain = host.create(f"u{number}", type=kind, cmdline=CMDLINE, paused=True)
    if spec is not None:
        host.networks.attach(domain.domid, spec)
    domain.start()
    return domain


def up(domain: DomU, number: int) -> None:
    """Give its eth0 the address 10.0.0.`number`."""
    domain.wait_for("Leave with exit", PATIENCE_S)
    say(domain, f"ifconfig eth0 10.0.0.{number} netmask 255.255.255.0 up")


def say(domain: DomU, command: str) -> str:
    """What `command` prints."""
    domain.send(f"{command}; echo do''ne\n")
    return domain.wait_for("done\r\n", PATIENCE_S).decode()


KINDS = pytest.mark.parametrize("kind", ["pvh", "pv"])


@pytest.mark.parametrize(("kind", "size"), [("pvh", 64 * MIB), ("pv", 16 * MIB)], ids=["pvh, 64 MiB", "pv, 16 MiB"])
def test_two_domains_move_a_file_by_tcp_while_a_third_joins(
    host: XenHost, kind: str, size: int, third_kind: str = "pvh"
) -> None:
    one, other = create(host, 1, VifSpec(), kind), create(host, 2, VifSpec(), kind)
    for number, domain in enumerate((one, other), 1):
        up(domain, number)
    assert ", 0% packet loss" in say(one, "ping -c 3 -i 0.2 -W 5 10.0.0.2")
    other.send("nc -l -p 5000 | sha256sum; echo receiv''ed\n")
    say(
        one,
        "until grep -q 0A000002 /proc/net/arp || ping -c 1 10.0.0.2; do :; done; "
        f"dd if=/dev/urandom of=/file bs=64k count={size >> 16}",
    )
    one.send("sha256sum /file; until nc 10.0.0.2 5000 < /file; do :; done; echo se''nt\n")
    third = create(host, 3, VifSpec(), third_kind)
    up(third, 3)
    assert " 0% packet loss" in say(third, "ping -c 3 -i 0.2 -W 5 10.0.0.1; ping -c 3 -i 0.2 -W 5 10.0.0.2")
    sums = [
        next(word for word in said.decode().split() if len(word) == 64)
        for said in (one.wait_for("sent", PATIENCE_S), other.wait_for("received", PATIENCE_S))
    ]
    assert sums[0] == sums[1]
    sent, received = host.networks.status(one.domid)[0].sent, host.networks.status(other.domid)[0].received
    assert sent.bytes > size
    assert sent.frames < size // 1500, "packets travel whole, and are not cut for the way"
    assert (sent.errors, received.errors) == (0, 0)


@KINDS
def test_an_interface_comes_with_four_queues_and_goes_and_comes_again(host: XenHost, kind: str) -> None:
    one, other = create(host, 1, kind=kind), create(host, 2, VifSpec())
    up(other, 2)
    one.wait_for("Leave with exit", PATIENCE_S)
    say(one, "echo 4 > /sys/module/xen_netfront/parameters/max_queues")
    for _ in range(2):
        vif = host.networks.attach(one.domid, VifSpec(mac="00:16:3e:00:00:07"))
        say(one, "until [ -e /sys/class/net/eth0 ]; do :; done; ifconfig eth0 10.0.0.1 netmask 255.255.255.0 up")
        assert "00:16:3e:00:00:07" in say(one, "cat /sys/class/net/eth0/address")
        assert "rx-3" in say(one, "ls /sys/class/net/eth0/queues")
        assert " 0% packet loss" in say(one, "ping -c 3 -i 0.2 -W 5 -s 9000 10.0.0.2")
        host.networks.detach(one.domid, vif.devid)
        say(one, "while [ -e /sys/class/net/eth0 ]; do :; done")
        assert host.networks.vifs(one.domid) == []


def test_a_domain_that_is_destroyed_in_the_middle_of_traffic_leaves_nothing_behind(host: XenHost) -> None:
    one = create(host, 1, VifSpec())
    up(one, 1)
    dom0 = host.control.domain
    before = dom0.events.open_ports, len(dom0.grants.maptrack)
    other = create(host, 2, VifSpec(), "pv")
    up(other, 2)
    other.send("nc -l -p 5000 > /dev/null\n")
    one.send("until nc 10.0.0.2 5000 < /dev/zero; do :; done\n")
    received = host.networks.status(other.domid)[0].received
    while received.bytes < 4 * MIB:
        assert other.wait(0.01) is None
        received = host.networks.status(other.domid)[0].received
    other.destroy()
    assert (dom0.events.open_ports, len(dom0.grants.maptrack)) == before
    assert sorted(host.xen.domains) == [0, one.domid]
    with host.loop.lock:
        assert host.store.names("/local/domain/0/backend/vif") == [str(one.domid)]


@pytest.mark.skipif(shutil.which("passt") is None, reason="needs passt")
def test_user_mode_networking_reaches_a_server_of_the_host(host: XenHost) -> None:
    data = bytes(range(256)) * 4096
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)

        def serve() -> None:
            end, _ = server.accept()
            with end:
                end.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        domain = create(host, 1, VifSpec(kind="user"))
        domain.wait_for("Leave with exit", PATIENCE_S)
        say(domain, "udhcpc -i eth0 -n -q -t 5 -T 1 >/dev/null 2>&1")
        port = server.getsockname()[1]
        said = say(domain, "set -- $(route -n | grep ^0.0.0.0); nc $2 " + f"{port} | sha256sum")
        assert sha256(data).hexdigest() in said
        thread.join(PATIENCE_S)


def taps_can_be_made() -> bool:
    return os.geteuid() == 0 and os.access("/dev/net/tun", os.R_OK | os.W_OK) and shutil.which("ip") is not None


@pytest.mark.skipif(not taps_can_be_made(), reason="needs the right to make TAP devices, and iproute2")
def test_a_tap_device_carries_a_domains_packets_into_the_hosts_own_network(host: XenHost) -> None:
    domain = create(host, 1, VifSpec(kind="tap", vifname="bvxen0"))
    for words in ("addr add 10.213.0.1/24 dev bvxen0", "link set bvxen0 up"):
        subprocess.run(["ip", *words.split()], check=True)
    domain.wait_for("Leave with exit", PATIENCE_S)
    say(domain, "ifconfig eth0 10.213.0.2 netmask 255.255.255.0 up")
    assert " 0% packet loss" in say(domain, "ping -c 2 -i 0.2 -W 5 10.213.0.1")
    with socket.create_server(("10.213.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        port = server.getsockname()[1]
        domain.send("dd if=/dev/urandom of=/file bs=64k count=64; sha256sum /file; ")
        domain.send(f"nc 10.213.0.1 {port} < /file\n")
        end, _ = server.accept()
        digest = sha256()
        with end:
            end.settimeout(PATIENCE_S)
            while data := end.recv(1 << 16):
                digest.update(data)
    domain.wait_for(digest.hexdigest(), 5)
