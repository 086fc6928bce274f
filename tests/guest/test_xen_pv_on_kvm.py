"""PV domains on the engine kvm, whose kernels need no fast CPL 0: the same tests as on the soft engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.abi.xen.domctl import Trigger
from bivisor.dom0.block.image import Offer
from bivisor.errors import HostError
from bivisor.toolstack.xenhost import XenHost

from . import test_xen_block, test_xen_net
from .test_xen_pv import (
    test_a_program_that_does_what_it_may_not_gets_the_signal_of_real_hardware_and_the_domain_lives,
    test_a_pv_domain_uses_as_many_processors_as_it_is_told,
    test_a_stock_kernel_reaches_a_shell_as_pv_domain_and_powers_off,
    test_disk_network_and_balloon_work_in_pv_domains,
)

__all__ = [
    "test_a_program_that_does_what_it_may_not_gets_the_signal_of_real_hardware_and_the_domain_lives",
    "test_a_pv_domain_uses_as_many_processors_as_it_is_told",
    "test_a_stock_kernel_reaches_a_shell_as_pv_domain_and_powers_off",
    "test_disk_network_and_balloon_work_in_pv_domains",
]

pytestmark = [pytest.mark.guest, pytest.mark.kvm]
MIB = 1 << 20


@pytest.fixture
def host() -> Iterator[XenHost]:
    try:
        host = XenHost("kvm")
    except HostError as error:
        pytest.skip(str(error))
    with host:
        yield host


def test_a_file_on_ext4_comes_back_after_a_remount(host: XenHost, tmp_path: Path) -> None:
    test_xen_block.test_a_file_on_ext4_comes_back_after_a_remount(host, tmp_path, "pv", 16, Offer())


def test_domains_move_a_file_by_tcp(host: XenHost) -> None:
    test_xen_net.test_two_domains_move_a_file_by_tcp_while_a_third_joins(host, "pv", 4 * MIB, "pv")


def test_a_stock_kernel_takes_nmis(host: XenHost) -> None:
    domain = host.create("u1", type="pv")
    domain.wait_for("Leave with exit", 100)
    for _ in range(2):
        host.control.domains.trigger(domain.domid, Trigger.NMI, 0)
        domain.wait_for("NMI received", 20)
    domain.send("echo $((40 + 2))\n")
    domain.wait_for("42\r\n", 20)
