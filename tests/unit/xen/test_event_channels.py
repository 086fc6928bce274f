"""Event channels: what each operation does, whom it refuses, and what a domain leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from event_guests import World, told, woken, world

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.event_channel import EVTCHN_2L_NR_CHANNELS, EvtchnStat
from bivisor.abi.xen.xen import DOMID_SELF, SHARED_EVTCHN_MASK, SHARED_EVTCHN_PENDING, VCPU_PENDING_SEL, Virq
from bivisor.xen.domain import Domain, State
from bivisor.xen.errors import XenError
from bivisor.xen.event_channel import ChannelStatus, EventChannels


@pytest.fixture
def hosts() -> Iterator[World]:
    with world() as made:
        for domid in (0, 1, 2):
            made.add(domid, vcpus=2)
        yield made


def refused(errno: Errno, function: Callable[..., object], *arguments: int) -> None:
    with pytest.raises(XenError) as caught:
        function(*arguments)
    assert caught.value.errno is errno


def is_set(domain: Domain, bitmap: int, port: int) -> bool:
    return bool(domain.shared_info[bitmap + port // 8] >> port % 8 & 1)


def is_pending(domain: Domain, port: int) -> bool:
    return is_set(domain, SHARED_EVTCHN_PENDING, port)


def mask(domain: Domain, port: int) -> None:
    domain.shared_info[SHARED_EVTCHN_MASK + port // 8] |= 1 << port % 8


def take(domain: Domain, vcpu: int = 0) -> None:
    """A guest that has seen everything."""
    domain.vcpus[vcpu].info[0] = 0
    domain.vcpus[vcpu].info[VCPU_PENDING_SEL : VCPU_PENDING_SEL + 8] = bytes(8)
    domain.shared_info[SHARED_EVTCHN_PENDING : SHARED_EVTCHN_PENDING + 512] = bytes(512)
    told(domain)


# -------------------------------------------------------------------- interdomain


def test_an_event_crosses_to_the_other_end_and_sets_all_three_levels(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, other = hosts.connect(one, two)
    take(two)
    one.events.send(port)
    assert is_pending(two, other)
    assert two.vcpus[0].info[VCPU_PENDING_SEL] == 1
    assert two.events.pending(0)
    assert told(two) == [0]
    assert not told(one)


def test_binding_makes_the_new_port_pending_once(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, other = hosts.connect(one, two)
    assert is_pending(two, other)
    assert not is_pending(one, port)
    assert told(two) == [0]


def test_a_second_event_before_the_guest_looks_interrupts_no_more(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, _ = hosts.connect(one, two)
    take(two)
    one.events.send(port)
    one.events.send(port)
    assert told(two) == [0]


def test_a_masked_port_is_pending_and_interrupts_when_it_is_unmasked(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, other = hosts.connect(one, two)
    take(two)
    mask(two, other)
    one.events.send(port)
    assert is_pending(two, other)
    assert not told(two)
    assert not two.events.pending(0)
    two.events.unmask(other)
    assert told(two) == [0]
    assert not is_set(two, SHARED_EVTCHN_MASK, other)


def test_an_event_goes_to_the_processor_that_the_port_was_bound_to(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, other = hosts.connect(one, two)
    take(two)
    two.events.bind_vcpu(other, 1)
    one.events.send(port)
    assert told(two) == [1]
    assert [two.events.pending(vcpu) for vcpu in (0, 1)] == [False, True]


def test_a_port_is_only_for_the_domain_that_it_was_reserved_for(hosts: World) -> None:
    port = hosts.find(1).events.alloc_unbound(DOMID_SELF, 2)
    refused(Errno.EINVAL, hosts.find(0).events.bind_interdomain, 1, port)
    hosts.find(2).events.bind_interdomain(1, port)
    refused(Errno.EINVAL, hosts.find(2).events.bind_interdomain, 1, port)


@pytest.mark.parametrize("port", [0, 1, 63, 64, 1 << 17, (1 << 32) - 1])
def test_no_port_that_is_not_waiting_can_be_bound(hosts: World, port: int) -> None:
    refused(Errno.EINVAL, hosts.find(2).events.bind_interdomain, 1, port)
    assert hosts.find(2).events.open_ports == 0


def test_an_unknown_domain_is_not_found(hosts: World) -> None:
    refused(Errno.ESRCH, hosts.find(1).events.bind_interdomain, 77, 1)
    refused(Errno.ESRCH, hosts.find(1).events.alloc_unbound, 77, 1)
    refused(Errno.ESRCH, hosts.find(1).events.status, 77, 1)


def test_dom0_may_reserve_a_port_in_another_domain_and_a_domu_may_not(hosts: World) -> None:
    port = hosts.find(0).events.alloc_unbound(1, DOMID_SELF)
    assert hosts.find(1).events.status(DOMID_SELF, port) == ChannelStatus(EvtchnStat.UNBOUND, 0, remote=0)
    refused(Errno.EPERM, hosts.find(1).events.alloc_unbound, 2, 1)
    refused(Errno.EPERM, hosts.find(1).events.alloc_unbound, 0, 1)


def test_a_domain_talks_to_itself(hosts: World) -> None:
    one = hosts.find(1)
    port = one.events.alloc_unbound(DOMID_SELF, DOMID_SELF)
    other = one.events.bind_interdomain(DOMID_SELF, port)
    take(one)
    one.events.send(other)
    assert is_pending(one, port)
    one.events.close(port)
    assert one.events.status(1, other) == ChannelStatus(EvtchnStat.UNBOUND, 0, remote=1)
    one.events.close(other)
    assert not one.references


def test_closing_one_end_leaves_the_other_waiting_for_the_same_domain(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, other = hosts.connect(one, two)
    two.events.close(other)
    assert one.events.status(DOMID_SELF, port) == ChannelStatus(EvtchnStat.UNBOUND, 0, remote=2)
    one.events.send(port)  # lost, and no error
    again = two.events.bind_interdomain(1, port)
    take(two)
    one.events.send(port)
    assert is_pending(two, again)


def test_a_closed_port_forgets_its_event_and_is_the_next_to_be_given_out(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    _, other = hosts.connect(one, two)
    two.events.close(other)
    assert not is_pending(two, other)
    assert two.events.bind_ipi(0) == other


@pytest.mark.parametrize("port", [0, 5, 63, 64, (1 << 32) - 1])
def test_what_is_not_open_can_neither_be_sent_to_nor_closed_nor_moved(hosts: World, port: int) -> None:
    events = hosts.find(1).events
    refused(Errno.EINVAL, events.send, port)
    refused(Errno.EINVAL, events.close, port)
    refused(Errno.EINVAL, events.bind_vcpu, port, 0)


def test_a_port_beyond_all_that_ever_were_is_an_error_where_a_closed_one_is_not(hosts: World) -> None:
    events = hosts.find(1).events
    events.unmask(63)
    assert events.status(DOMID_SELF, 63).status is EvtchnStat.CLOSED
    refused(Errno.EINVAL, events.unmask, 64)
    refused(Errno.EINVAL, events.status, DOMID_SELF, 64)


# -------------------------------------------------------------------- VIRQ and IPI


def test_a_virtual_interrupt_arrives_at_the_processor_that_bound_it(hosts: World) -> None:
    one = hosts.find(1)
    port = one.events.bind_virq(Virq.TIMER, 1)
    one.events.raise_virq(Virq.TIMER, 0)
    assert not is_pending(one, port)
    one.events.raise_virq(Virq.TIMER, 1)
    assert is_pending(one, port)
    assert told(one) == [1]


def test_a_global_interrupt_is_bound_on_the_first_processor_and_may_move(hosts: World) -> None:
    dom0 = hosts.find(0)
    refused(Errno.EINVAL, dom0.events.bind_virq, Virq.DOM_EXC, 1)
    port = dom0.events.bind_virq(Virq.DOM_EXC, 0)
    dom0.events.bind_vcpu(port, 1)
    dom0.events.raise_virq(Virq.DOM_EXC)
    assert told(dom0) == [1]


def test_a_virtual_interrupt_is_bound_once_until_it_is_closed(hosts: World) -> None:
    events = hosts.find(1).events
    port = events.bind_virq(Virq.TIMER, 0)
    refused(Errno.EEXIST, events.bind_virq, Virq.TIMER, 0)
    events.bind_virq(Virq.TIMER, 1)
    events.close(port)
    events.raise_virq(Virq.TIMER, 0)  # nobody hears it
    assert events.bind_virq(Virq.TIMER, 0) == port


@pytest.mark.parametrize(
    ("virq", "vcpu", "errno"), [(24, 0, Errno.EINVAL), (1 << 31, 0, Errno.EINVAL), (0, 2, Errno.ENOENT)]
)
def test_there_are_24_interrupts_and_as_many_processors_as_there_are(
    hosts: World, virq: int, vcpu: int, errno: Errno
) -> None:
    refused(errno, hosts.find(1).events.bind_virq, virq, vcpu)


def test_an_ipi_interrupts_its_processor_and_stays_there(hosts: World) -> None:
    one = hosts.find(1)
    refused(Errno.ENOENT, one.events.bind_ipi, 2)
    port = one.events.bind_ipi(1)
    refused(Errno.EINVAL, one.events.bind_vcpu, port, 0)
    refused(Errno.ENOENT, one.events.bind_vcpu, port, 2)
    one.events.send(port)
    assert told(one) == [1]
    assert one.events.status(1, port) == ChannelStatus(EvtchnStat.IPI, 1)


def test_a_domain_does_not_send_to_its_own_virtual_interrupt(hosts: World) -> None:
    events = hosts.find(1).events
    refused(Errno.EINVAL, events.send, events.bind_virq(Virq.TIMER, 0))
    refused(Errno.EINVAL, events.bind_vcpu, 1, 1)


# -------------------------------------------------------------------- status and limits


def test_status_tells_of_both_ends_to_those_who_may_know(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, other = hosts.connect(one, two)
    virq = one.events.bind_virq(Virq.CONSOLE, 0)
    ask = hosts.find(0).events.status
    assert ask(1, port) == ChannelStatus(EvtchnStat.INTERDOMAIN, 0, 2, other)
    assert ask(2, other) == ChannelStatus(EvtchnStat.INTERDOMAIN, 0, 1, port)
    assert ask(1, virq) == ChannelStatus(EvtchnStat.VIRQ, 0, virq=Virq.CONSOLE)
    refused(Errno.EPERM, one.events.status, 2, other)
    refused(Errno.EPERM, one.events.reset, 2)


def test_the_2_level_abi_has_4096_ports_and_the_first_is_none(hosts: World) -> None:
    events = hosts.find(0).events
    assert [events.bind_ipi(0) for _ in range(1, EVTCHN_2L_NR_CHANNELS)] == list(range(1, EVTCHN_2L_NR_CHANNELS))
    refused(Errno.ENOSPC, events.bind_ipi, 0)
    events.close(77)
    assert events.bind_ipi(0) == 77


def test_a_domu_has_as_many_ports_as_its_configuration_says(hosts: World) -> None:
    one = hosts.find(1)
    assert one.events.max_port == 1023
    few = EventChannels(one, hosts.find, max_port=2)
    assert [few.bind_ipi(0), few.bind_ipi(0)] == [1, 2]
    refused(Errno.ENOSPC, few.bind_ipi, 0)


# -------------------------------------------------------------------- polling


def test_a_poll_ends_when_its_port_is_pending_even_if_that_is_masked(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, other = hosts.connect(one, two)
    take(two)
    mask(two, other)
    assert not two.events.any_pending([other])
    two.vcpus[1].polling = frozenset([other])
    one.events.send(port)
    assert woken(two) == [1]
    assert two.events.any_pending([other])
    assert two.vcpus[1].polling is None


def test_a_poll_goes_on_when_another_port_is_pending(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, other = hosts.connect(one, two)
    take(two)
    two.vcpus[0].polling = frozenset([other + 1])
    one.events.send(port)
    assert not woken(two)


def test_a_poll_of_a_port_that_never_was_is_refused(hosts: World) -> None:
    with pytest.raises(XenError):
        hosts.find(1).events.any_pending([1, 4096])


# -------------------------------------------------------------------- moves and ends


def test_events_follow_shared_info_and_vcpu_info_when_the_guest_moves_them(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, other = hosts.connect(one, two)
    take(two)
    two.move_shared_info(two.frame(5))
    two.vcpus[0].move(two.frame(6)[64:128])
    one.events.send(port)
    assert two.frame(5)[SHARED_EVTCHN_PENDING] == 1 << other
    assert two.frame(6)[64] == 1
    assert not two.frame(1)[SHARED_EVTCHN_PENDING]


def test_reset_closes_everything_and_the_other_ends_wait(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, _ = hosts.connect(one, two)
    two.events.bind_virq(Virq.TIMER, 0)
    two.events.reset()
    assert two.events.open_ports == 0
    assert one.events.status(1, port).status is EvtchnStat.UNBOUND
    two.events.bind_virq(Virq.TIMER, 0)


def test_dom0_resets_another_domain_only_while_that_is_paused(hosts: World) -> None:
    one = hosts.find(1)
    one.events.bind_ipi(0)
    refused(Errno.EINVAL, hosts.find(0).events.reset, 1)
    one.state = State.PAUSED
    hosts.find(0).events.reset(1)
    assert one.events.open_ports == 0


def test_a_dead_domain_leaves_no_port_no_reference_and_no_view_of_its_memory(hosts: World) -> None:
    one, two = hosts.find(1), hosts.find(2)
    port, _ = hosts.connect(one, two)
    hosts.connect(two, one)
    two.events.init_control(4, 0, 0)
    two.events.expand_array(5)
    assert two.references
    hosts.kill(two)
    assert two.events.open_ports == 0
    assert not two.references
    assert not one.references
    assert one.events.status(1, port) == ChannelStatus(EvtchnStat.UNBOUND, 0, remote=2)
    one.events.send(port)
    two.events.raise_virq(Virq.TIMER, 0)
    refused(Errno.EINVAL, two.events.bind_ipi, 0)
    refused(Errno.ESRCH, one.events.bind_interdomain, 2, 1)
