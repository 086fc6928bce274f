"""event_channel_op (event_channel.h): the structure of each operation, and what it asks for."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen import event_channel as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.event_channel import EvtchnOp, EvtchnStat
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError
from bivisor.xen.event_channel import EventChannels

Fields = tuple[int, ...]


def _alloc_unbound(events: EventChannels, dom: int, remote_dom: int, _: int) -> Fields:
    return dom, remote_dom, events.alloc_unbound(dom, remote_dom)


def _bind_interdomain(events: EventChannels, remote_dom: int, remote_port: int, _: int) -> Fields:
    return remote_dom, remote_port, events.bind_interdomain(remote_dom, remote_port)


def _bind_virq(events: EventChannels, virq: int, vcpu: int, _: int) -> Fields:
    return virq, vcpu, events.bind_virq(virq, vcpu)


def _bind_pirq(_: EventChannels, *__: int) -> Fields:
    raise XenError(Errno.EINVAL)  # no domain has physical interrupts: every number is beyond them


def _bind_ipi(events: EventChannels, vcpu: int, _: int) -> Fields:
    return vcpu, events.bind_ipi(vcpu)


def _status(events: EventChannels, dom: int, port: int, *_: int) -> Fields:
    found = events.status(dom, port)
    first = found.virq if found.status is EvtchnStat.VIRQ else found.remote
    return dom, port, found.status, found.vcpu, first, found.remote_port


def _init_control(events: EventChannels, control_gfn: int, offset: int, vcpu: int, _: int) -> Fields:
    return control_gfn, offset, vcpu, events.init_control(control_gfn, offset, vcpu)


_OPS: dict[int, tuple[struct.Struct, Callable[..., Fields | None]]] = {
    EvtchnOp.BIND_INTERDOMAIN: (abi.BIND_INTERDOMAIN, _bind_interdomain),
    EvtchnOp.BIND_VIRQ: (abi.BIND_VIRQ, _bind_virq),
    EvtchnOp.BIND_PIRQ: (abi.BIND_PIRQ, _bind_pirq),
    EvtchnOp.CLOSE: (abi.CLOSE, EventChannels.close),
    EvtchnOp.SEND: (abi.SEND, EventChannels.send),
    EvtchnOp.STATUS: (abi.STATUS, _status),
    EvtchnOp.ALLOC_UNBOUND: (abi.ALLOC_UNBOUND, _alloc_unbound),
    EvtchnOp.BIND_IPI: (abi.BIND_IPI, _bind_ipi),
    EvtchnOp.BIND_VCPU: (abi.BIND_VCPU, EventChannels.bind_vcpu),
    EvtchnOp.UNMASK: (abi.UNMASK, EventChannels.unmask),
    EvtchnOp.RESET: (abi.RESET, EventChannels.reset),
    EvtchnOp.RESET_CONT: (abi.RESET, EventChannels.reset),
    EvtchnOp.INIT_CONTROL: (abi.INIT_CONTROL, _init_control),
    EvtchnOp.EXPAND_ARRAY: (abi.EXPAND_ARRAY, EventChannels.expand_array),
    EvtchnOp.SET_PRIORITY: (abi.SET_PRIORITY, EventChannels.set_priority),
}
"""Each operation: its structure, and the function of its fields, which returns them where the guest is to have them."""


def event_channel_op(call: Call, cmd: int, arg: int, *_: int) -> int:
    """HYPERVISOR_event_channel_op(cmd, arg)."""
    op = _OPS.get(cmd)
    if op is None:
        raise XenError(Errno.ENOSYS)
    layout, function = op
    fields = function(call.domain.events, *layout.unpack(call.read(arg, layout.size)))
    if fields is not None:
        call.write(arg, layout.pack(*fields))
    return 0
