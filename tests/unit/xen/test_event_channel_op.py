"""event_channel_op: structures in guest memory, decoded at the door."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from event_guests import World, world
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.abi.xen import event_channel as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.event_channel import EvtchnOp, EvtchnStat
from bivisor.abi.xen.xen import DOMID_SELF
from bivisor.xen.call import Call, Identity
from bivisor.xen.domain import Domain
from bivisor.xen.errors import XenError
from bivisor.xen.hypercalls.event_channel import event_channel_op
from bivisor.xen.hypervisor import Xen

ARGUMENT = 0x8000


@pytest.fixture
def hosts() -> Iterator[World]:
    with world() as made:
        made.add(0)
        made.add(1)
        yield made


def call_of(domain: Domain) -> Call:
    return Call(cast("Xen", None), domain, 0, Identity())


def op(domain: Domain, number: int, argument: bytes, size: int = 0) -> bytes:
    """Carry it out; the structure as it is afterwards."""
    domain.memory.write(ARGUMENT, argument)
    assert event_channel_op(call_of(domain), number, ARGUMENT) == 0
    return domain.memory.read(ARGUMENT, size or len(argument))


def test_two_domains_connect_talk_and_part(hosts: World) -> None:
    dom0, guest = hosts.find(0), hosts.find(1)
    *_, port = abi.ALLOC_UNBOUND.unpack(op(guest, EvtchnOp.ALLOC_UNBOUND, abi.ALLOC_UNBOUND.pack(DOMID_SELF, 0, 0)))
    *_, local = abi.BIND_INTERDOMAIN.unpack(op(dom0, EvtchnOp.BIND_INTERDOMAIN, abi.BIND_INTERDOMAIN.pack(1, port, 0)))
    status = abi.STATUS.unpack(op(dom0, EvtchnOp.STATUS, abi.STATUS.pack(1, port, 0, 0, 0, 0)))
    assert status == (1, port, EvtchnStat.INTERDOMAIN, 0, 0, local)
    op(dom0, EvtchnOp.SEND, abi.SEND.pack(local))
    assert guest.events.any_pending([port])
    op(guest, EvtchnOp.CLOSE, abi.CLOSE.pack(port))
    assert dom0.events.status(0, local).status is EvtchnStat.UNBOUND


def test_each_result_stands_where_the_header_has_it(hosts: World) -> None:
    guest = hosts.find(1)
    assert abi.BIND_IPI.unpack(op(guest, EvtchnOp.BIND_IPI, abi.BIND_IPI.pack(0, 99))) == (0, 1)
    assert abi.BIND_VIRQ.unpack(op(guest, EvtchnOp.BIND_VIRQ, abi.BIND_VIRQ.pack(1, 0, 99))) == (1, 0, 2)
    status = abi.STATUS.unpack(op(guest, EvtchnOp.STATUS, abi.STATUS.pack(DOMID_SELF, 2, 0, 0, 0, 0)))
    assert status == (DOMID_SELF, 2, EvtchnStat.VIRQ, 0, 1, 0)
    control = op(guest, EvtchnOp.INIT_CONTROL, abi.INIT_CONTROL.pack(4, 0, 0, 0))
    assert abi.INIT_CONTROL.unpack(control) == (4, 0, 0, 17)
    op(guest, EvtchnOp.EXPAND_ARRAY, abi.EXPAND_ARRAY.pack(5))
    op(guest, EvtchnOp.SET_PRIORITY, abi.SET_PRIORITY.pack(1, 0))
    op(guest, EvtchnOp.UNMASK, abi.UNMASK.pack(1))
    op(guest, EvtchnOp.RESET, abi.RESET.pack(DOMID_SELF))
    assert guest.events.open_ports == 0


@pytest.mark.parametrize("number", [15, 100, (1 << 32) - 1])
def test_an_unknown_operation_is_enosys(hosts: World, number: int) -> None:
    with pytest.raises(XenError) as caught:
        event_channel_op(call_of(hosts.find(1)), number, ARGUMENT)
    assert caught.value.errno is Errno.ENOSYS


@pytest.mark.parametrize("number", list(EvtchnOp))
def test_a_structure_outside_the_guest_is_efault_and_changes_nothing(hosts: World, number: int) -> None:
    guest = hosts.find(1)
    with pytest.raises(XenError) as caught:
        event_channel_op(call_of(guest), number, guest.memory.size - 1)
    assert caught.value.errno is Errno.EFAULT
    assert guest.events.open_ports == 0


def test_no_guest_has_physical_interrupts(hosts: World) -> None:
    with pytest.raises(XenError) as caught:
        op(hosts.find(1), EvtchnOp.BIND_PIRQ, abi.BIND_PIRQ.pack(1, 0, 0))
    assert caught.value.errno is Errno.EINVAL


SMALL = st.sampled_from([0, 1, 2, 3, 5, 63, 64, 1023, DOMID_SELF, 0xFFFF, 0xFFFF_FFFF])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.lists(SMALL, min_size=6, max_size=6)), max_size=60))
def test_whatever_a_guest_asks_for_ends_in_a_result_or_an_error_number(calls: list[tuple[int, list[int]]]) -> None:
    with world() as hosts:
        dom0, guest = hosts.add(0), hosts.add(1)
        waiting = dom0.events.alloc_unbound(0, 2)
        for number, numbers in calls:
            guest.memory.write(ARGUMENT, b"".join(each.to_bytes(4, "little") for each in numbers))
            try:
                event_channel_op(call_of(guest), number, ARGUMENT)
            except XenError:
                pass
        assert dom0.events.open_ports == 1
        assert dom0.events.status(0, waiting).status is EvtchnStat.UNBOUND
        hosts.kill(guest)
        assert not guest.references
        assert not dom0.references
