"""Two guests that sleep until the other sends: not one of thousands of wake-ups may be lost."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.abi.xen import event_channel as abi
from bivisor.abi.xen import xen
from bivisor.abi.xen.domctl import Trigger
from bivisor.abi.xen.event_channel import EvtchnOp
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall, MemoryOp, SchedOp, ShutdownReason
from bivisor.errors import HostError
from bivisor.toolstack.xenhost import XenHost

from .player import LOAD, SCRATCH, STORE, Ask, Player, build

pytestmark = pytest.mark.guest

ROUNDS = 3000
SHARED_INFO = 0x900_000
PENDING = SHARED_INFO + xen.SHARED_EVTCHN_PENDING
SEND, POLL, PORTS = SCRATCH, SCRATCH + 64, SCRATCH + 128


class End:
    """A guest with one end of an event channel, which it polls and never takes upcalls of."""

    def __init__(self, host: XenHost, image: Path, name: str) -> None:
        self.host = host
        self.player = Player(host, image, name)
        shared = xen.ADD_TO_PHYSMAP.pack(DOMID_SELF, 0, xen.MAPSPACE_SHARED_INFO, 0, SHARED_INFO >> 12)
        assert self.player.ask(Hypercall.MEMORY_OP, MemoryOp.ADD_TO_PHYSMAP, shared)[0] == 0
        self.player.store(SHARED_INFO + xen.SHARED_EVTCHN_MASK, (1 << 64) - 1)
        self.player.store(SHARED_INFO, 0)  # evtchn_upcall_pending, of before: it would end every poll

    def connect(self, port: int) -> None:
        """Prepare what `send` and `wait` point to."""
        self.port = port
        self.player.store(PENDING, 0)
        self.player.write(SEND, struct.pack("<I", port))
        self.player.write(PORTS, struct.pack("<I", port))
        self.player.write(POLL, xen.SCHED_POLL.pack(PORTS, 1, 0))

    send: Ask = (Hypercall.EVENT_CHANNEL_OP, EvtchnOp.SEND, SEND)
    wait: tuple[Ask, ...] = ((Hypercall.SCHED_OP, SchedOp.POLL, POLL), (LOAD, PENDING), (STORE, PENDING, 0))


@pytest.fixture(params=["soft", pytest.param("kvm", marks=pytest.mark.kvm)])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[End, End]]:
    try:
        host = XenHost(request.param)
    except HostError as error:
        pytest.skip(str(error))
    with host:
        image = build(tmp_path)
        yield End(host, image, "ping"), End(host, image, "pong")


def test_two_guests_wake_each_other_thousands_of_times(ends: tuple[End, End]) -> None:
    ping, pong = ends
    unbound = abi.ALLOC_UNBOUND.pack(DOMID_SELF, pong.player.domid, 0)
    result, answer = ping.player.ask(Hypercall.EVENT_CHANNEL_OP, EvtchnOp.ALLOC_UNBOUND, unbound)
    assert result == 0
    port = abi.ALLOC_UNBOUND.unpack(answer)[2]
    bind = abi.BIND_INTERDOMAIN.pack(ping.player.domid, port, 0)
    result, answer = pong.player.ask(Hypercall.EVENT_CHANNEL_OP, EvtchnOp.BIND_INTERDOMAIN, bind)
    assert result == 0
    ping.connect(port)
    pong.connect(abi.BIND_INTERDOMAIN.unpack(answer)[2])
    pong.player.begin([call for _ in range(ROUNDS) for call in (*End.wait, End.send)])
    ping.player.begin([call for _ in range(ROUNDS) for call in (End.send, *End.wait)])
    for end, polled in ((ping, 1), (pong, 0)):
        results = end.player.finish(4 * ROUNDS)
        assert set(results[polled::4]) == {0}
        assert set(results[polled + 1 :: 4]) == {1 << end.port}, "no poll ended without an event"


def test_an_nmi_of_the_toolstacks_reaches_a_guest_that_sleeps(ends: tuple[End, End]) -> None:
    end, _ = ends
    end.connect(1)
    end.player.begin([End.wait[0]])  # and nobody sends
    deadline = time.monotonic() + 30
    while not end.player.domain.vcpus[0].blocked:
        assert time.monotonic() < deadline
    domains = end.host.control.domains
    domains.trigger(end.player.domid, Trigger.NMI)
    end.player.unit.stopped.wait(30)
    # It has nothing to take an interrupt with: a triple fault.
    assert domains.info(end.player.domid).shutdown_reason is ShutdownReason.CRASH
