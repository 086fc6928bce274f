"""The FIFO event ABI: control blocks, the event array, queues by priority, and guests that break the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from event_guests import World, told, world

from bivisor.abi.xen import event_channel as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.event_channel import EvtchnStat
from bivisor.xen.domain import Domain
from bivisor.xen.errors import XenError

CONTROL, ARRAY = 4, 8
PENDING, MASKED, LINKED = (
    1 << bit for bit in (abi.EVTCHN_FIFO_PENDING, abi.EVTCHN_FIFO_MASKED, abi.EVTCHN_FIFO_LINKED)
)


@pytest.fixture
def hosts() -> Iterator[World]:
    with world() as made:
        for domid in (0, 1):
            made.add(domid, vcpus=2)
        yield made


@pytest.fixture
def guest(hosts: World) -> Domain:
    domain = hosts.find(1)
    for vcpu in range(2):
        assert domain.events.init_control(CONTROL + vcpu, 0, vcpu) == 17
    domain.events.expand_array(ARRAY)
    return domain


def refused(errno: Errno, function: Callable[..., object], *arguments: int) -> None:
    with pytest.raises(XenError) as caught:
        function(*arguments)
    assert caught.value.errno is errno


def word(domain: Domain, port: int) -> int:
    return int.from_bytes(domain.frame(ARRAY)[4 * port : 4 * port + 4], "little")


def set_word(domain: Domain, port: int, value: int) -> None:
    domain.frame(ARRAY)[4 * port : 4 * port + 4] = value.to_bytes(4, "little")


def ready(domain: Domain, vcpu: int = 0) -> int:
    return int.from_bytes(domain.frame(CONTROL + vcpu)[:4], "little")


def head(domain: Domain, priority: int, vcpu: int = 0) -> int:
    at = 4 * (abi.CONTROL_BLOCK_HEAD + priority)
    return int.from_bytes(domain.frame(CONTROL + vcpu)[at : at + 4], "little")


def test_events_are_linked_in_the_order_in_which_they_came(guest: Domain) -> None:
    ports = [guest.events.bind_ipi(0) for _ in range(3)]
    for port in reversed(ports):
        guest.events.send(port)
    assert head(guest, 7) == ports[2]
    assert word(guest, ports[2]) == PENDING | LINKED | ports[1]
    assert word(guest, ports[1]) == PENDING | LINKED | ports[0]
    assert word(guest, ports[0]) == PENDING | LINKED
    assert ready(guest) == 1 << 7
    assert told(guest) == [0]


def test_an_event_of_another_priority_has_a_queue_of_its_own(guest: Domain) -> None:
    port = guest.events.bind_ipi(1)
    guest.events.set_priority(port, 15)
    guest.events.send(port)
    assert ready(guest, 1) == 1 << 15
    assert head(guest, 15, 1) == port
    assert told(guest) == [1]


def test_a_masked_event_is_pending_and_not_linked_until_it_is_unmasked(guest: Domain) -> None:
    port = guest.events.bind_ipi(0)
    set_word(guest, port, MASKED)
    guest.events.send(port)
    assert word(guest, port) == PENDING | MASKED
    assert not told(guest)
    guest.events.unmask(port)
    assert word(guest, port) == PENDING | LINKED
    assert told(guest) == [0]


def test_a_queue_that_the_guest_has_emptied_begins_at_its_head_again(guest: Domain) -> None:
    first, second = guest.events.bind_ipi(0), guest.events.bind_ipi(0)
    guest.events.send(first)
    set_word(guest, first, 0)
    guest.events.send(second)
    assert head(guest, 7) == second
    assert word(guest, first) == 0


def test_a_port_that_moved_to_another_queue_leaves_no_tail_behind(guest: Domain) -> None:
    first, second = guest.events.bind_ipi(0), guest.events.bind_ipi(0)
    guest.events.send(first)
    set_word(guest, first, 0)
    guest.events.set_priority(first, 3)
    guest.events.send(first)
    guest.events.send(second)
    assert (head(guest, 3), head(guest, 7)) == (first, second)
    assert word(guest, first) == PENDING | LINKED


def test_an_event_that_came_before_its_word_waits_for_it(hosts: World) -> None:
    guest = hosts.find(1)
    port = guest.events.bind_ipi(0)
    guest.events.send(port)  # in the 2-level ABI
    guest.events.init_control(CONTROL, 0, 0)
    other = guest.events.bind_ipi(0)
    guest.events.send(other)
    guest.events.expand_array(ARRAY)
    assert word(guest, port) == PENDING | LINKED | other
    assert head(guest, 7) == port


def test_a_closed_port_is_not_given_out_while_the_guest_has_it_in_a_queue(guest: Domain) -> None:
    port = guest.events.bind_ipi(0)
    guest.events.send(port)
    guest.events.close(port)
    assert word(guest, port) == LINKED
    assert guest.events.bind_ipi(0) == port + 1
    set_word(guest, port, 0)
    assert guest.events.bind_ipi(0) == port


def test_reset_goes_back_to_the_2_level_abi(guest: Domain) -> None:
    guest.events.bind_ipi(0)
    guest.events.reset()
    refused(Errno.EOPNOTSUPP, guest.events.expand_array, ARRAY)
    guest.events.init_control(CONTROL, 64, 0)


@pytest.mark.parametrize("offset", [4, 4096 - 64, 4096, 1 << 31])
def test_a_control_block_is_aligned_and_inside_its_page(hosts: World, offset: int) -> None:
    refused(Errno.EINVAL, hosts.find(1).events.init_control, CONTROL, offset, 0)
    refused(Errno.EOPNOTSUPP, hosts.find(1).events.expand_array, ARRAY)


def test_there_is_one_control_block_for_each_processor_that_there_is(guest: Domain) -> None:
    refused(Errno.EINVAL, guest.events.init_control, CONTROL, 0, 1)
    refused(Errno.ENOENT, guest.events.init_control, CONTROL, 0, 2)


@pytest.mark.parametrize("gfn", [16, 1 << 40, (1 << 64) - 1])
def test_a_frame_that_the_domain_does_not_have_is_refused(guest: Domain, gfn: int) -> None:
    refused(Errno.EINVAL, guest.events.expand_array, gfn)


def test_the_event_array_has_128_pages(guest: Domain) -> None:
    for _ in range(127):
        guest.events.expand_array(ARRAY)
    refused(Errno.ENOSPC, guest.events.expand_array, ARRAY)


def test_priorities_are_of_open_ports_and_from_0_to_15(hosts: World, guest: Domain) -> None:
    port = guest.events.bind_ipi(0)
    refused(Errno.EINVAL, guest.events.set_priority, port, 16)
    refused(Errno.EACCES, guest.events.set_priority, 60, 7)
    refused(Errno.EINVAL, guest.events.set_priority, 64, 7)
    two_level = hosts.find(0).events
    refused(Errno.ENOSYS, two_level.set_priority, two_level.bind_ipi(0), 7)


def test_an_event_for_a_processor_without_control_block_is_dropped(hosts: World) -> None:
    guest = hosts.find(1)
    guest.events.init_control(CONTROL, 0, 0)
    guest.events.expand_array(ARRAY)
    port = guest.events.bind_ipi(1)
    guest.events.send(port)
    assert word(guest, port) == PENDING
    assert not told(guest)


def test_rubbish_in_the_array_and_in_the_control_block_harms_nobody(hosts: World, guest: Domain) -> None:
    ports = [guest.events.alloc_unbound(1, 0) for _ in range(8)]
    remote = [hosts.find(0).events.bind_interdomain(1, port) for port in ports]
    for rubbish in (b"\xff", b"\x00", b"\xa5", b"\x30"):
        guest.frame(ARRAY)[:] = rubbish * 4096
        guest.frame(CONTROL)[:] = rubbish * 4096
        for port in remote:
            hosts.find(0).events.send(port)
            hosts.find(0).events.send(port)
    assert hosts.find(0).events.status(1, ports[0]).status is EvtchnStat.INTERDOMAIN
    guest.events.reset()
    assert guest.events.open_ports == 0
