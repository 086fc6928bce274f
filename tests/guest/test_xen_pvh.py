"""A stock kernel as PVH domain of this program's own Xen: console, store and every way to end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor import boot
from bivisor.abi.xen.xen import ShutdownReason
from bivisor.image import default_guest, quiet
from bivisor.image.place import default_root
from bivisor.toolstack.domu import DomU
from bivisor.toolstack.xenhost import XenHost

pytestmark = pytest.mark.guest

CMDLINE = "console=hvc0 panic=-1 mitigations=off"
PATIENCE_S = 120.0


class Talk:
    """What a domain writes to its console, and waiting for it."""

    def __init__(self) -> None:
        self.text = b""
        self._changed = threading.Condition()

    def __call__(self, data: bytes) -> None:
        with self._changed:
            self.text += data
            self._changed.notify_all()

    def wait_for(self, wanted: bytes, start: int = 0) -> None:
        """Wait until it stands in the text from `start` on."""
        with self._changed:
            found = self._changed.wait_for(lambda: self.text.find(wanted, start) >= 0, PATIENCE_S)
        assert found, self.text[-800:].decode(errors="replace")


@pytest.fixture
def host() -> Iterator[XenHost]:
    with XenHost("soft") as host:
        yield host


def create(host: XenHost, talk: Talk, name: str = "u1") -> DomU:
    guest = default_guest(quiet)
    cache = boot.PayloadCache(Path(default_root()) / "kernels")
    return host.create(name, guest.kernel, initrd=guest.initrd, cmdline=CMDLINE, console=talk, cache=cache)


def test_a_stock_kernel_reaches_a_shell_as_pvh_domain_and_powers_off(host: XenHost) -> None:
    talk = Talk()
    domain = create(host, talk)
    talk.wait_for(b"Leave with exit")
    domain.send(b"cat /sys/hypervisor/type /sys/hypervisor/guest_type\n")
    talk.wait_for(b"xen\r\nPVH")
    domain.send(b"cat /sys/devices/system/clocksource/*/current_clocksource | tr x X\n")
    talk.wait_for(b"Xen\r\n")
    domain.send(b"poweroff\n")
    assert domain.wait(PATIENCE_S) is ShutdownReason.POWEROFF


@pytest.mark.parametrize(
    ("command", "reason"),
    [(b"reboot\n", ShutdownReason.REBOOT), (b"echo c > /proc/sysrq-trigger\n", ShutdownReason.CRASH)],
    ids=["reboot", "panic"],
)
def test_the_hypervisor_hears_why_a_domain_ends(host: XenHost, command: bytes, reason: ShutdownReason) -> None:
    talk = Talk()
    domain = create(host, talk)
    talk.wait_for(b"Leave with exit")
    domain.send(command)
    assert domain.wait(PATIENCE_S) is reason


def test_a_destroyed_domain_leaves_nothing_in_the_store_or_the_hypervisor(host: XenHost) -> None:
    talk = Talk()
    domain = create(host, talk)
    talk.wait_for(b"Linux version")
    assert host.store.read(f"{domain.path}/name") == "u1"
    ports = host.control.domain.events.open_ports
    domain.destroy()
    assert host.store.get(domain.path) is None
    assert list(host.xen.domains) == [0]
    assert host.control.domain.events.open_ports < ports


def test_two_domains_run_side_by_side(host: XenHost) -> None:
    talks = [Talk(), Talk()]
    domains = [create(host, talk, f"u{number}") for number, talk in enumerate(talks)]
    for talk in talks:
        talk.wait_for(b"Leave with exit")
    for domain, talk in zip(domains, talks, strict=True):
        domain.send(f"echo I am $((40 + {domain.domid}))\n".encode())
        talk.wait_for(f"I am {40 + domain.domid}".encode())
