"""xen/include/public/event_channel.h: the operations of event_channel_op, and the layouts of both event ABIs.

Structures are `struct.Struct` of the 64-bit ABI, named as in the headers; fields that the hypervisor fills are in them.
"""

from __future__ import annotations

import struct
from enum import IntEnum


class EvtchnOp(IntEnum):
    """EVTCHNOP_*."""

    BIND_INTERDOMAIN = 0
    BIND_VIRQ = 1
    BIND_PIRQ = 2
    CLOSE = 3
    SEND = 4
    STATUS = 5
    ALLOC_UNBOUND = 6
    BIND_IPI = 7
    BIND_VCPU = 8
    UNMASK = 9
    RESET = 10
    INIT_CONTROL = 11
    EXPAND_ARRAY = 12
    SET_PRIORITY = 13
    RESET_CONT = 14


class EvtchnStat(IntEnum):
    """EVTCHNSTAT_*: what a port is."""

    CLOSED = 0
    UNBOUND = 1
    INTERDOMAIN = 2
    PIRQ = 3
    VIRQ = 4
    IPI = 5


ALLOC_UNBOUND = struct.Struct("<HHI")  # dom, remote_dom, port
BIND_INTERDOMAIN = struct.Struct("<H2xII")  # remote_dom, remote_port, local_port
BIND_VIRQ = struct.Struct("<III")  # virq, vcpu, port
BIND_PIRQ = struct.Struct("<III")  # pirq, flags, port
BIND_IPI = struct.Struct("<II")  # vcpu, port
CLOSE = struct.Struct("<I")  # port
SEND = struct.Struct("<I")  # port
STATUS = struct.Struct("<H2xIIIII")  # dom, port, status, vcpu, u: remote dom, pirq or virq; u.interdomain.port
BIND_VCPU = struct.Struct("<II")  # port, vcpu
UNMASK = struct.Struct("<I")  # port
RESET = struct.Struct("<H")  # dom
INIT_CONTROL = struct.Struct("<QIIB7x")  # control_gfn, offset, vcpu, link_bits
EXPAND_ARRAY = struct.Struct("<Q")  # array_gfn
SET_PRIORITY = struct.Struct("<II")  # port, priority

# 2-level ABI
EVTCHN_2L_NR_CHANNELS = 64 * 64

# FIFO ABI
EVTCHN_FIFO_PRIORITY_MAX = 0
EVTCHN_FIFO_PRIORITY_DEFAULT = 7
EVTCHN_FIFO_PRIORITY_MIN = 15
EVTCHN_FIFO_MAX_QUEUES = EVTCHN_FIFO_PRIORITY_MIN + 1
# event_word_t: bit numbers, and the port that follows in the queue
EVTCHN_FIFO_PENDING = 31
EVTCHN_FIFO_MASKED = 30
EVTCHN_FIFO_LINKED = 29
EVTCHN_FIFO_BUSY = 28
EVTCHN_FIFO_LINK_BITS = 17
EVTCHN_FIFO_LINK_MASK = (1 << EVTCHN_FIFO_LINK_BITS) - 1
EVTCHN_FIFO_NR_CHANNELS = 1 << EVTCHN_FIFO_LINK_BITS
# struct evtchn_fifo_control_block: ready, _rsvd, head[EVTCHN_FIFO_MAX_QUEUES]
CONTROL_BLOCK_SIZE = 4 * (2 + EVTCHN_FIFO_MAX_QUEUES)
CONTROL_BLOCK_HEAD = 2
