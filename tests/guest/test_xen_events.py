"""Two guests that sleep until the other sends: not one of thousands of wake-ups may be lost."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.abi.xen import event_channel as abi
from bivisor.abi.xen import xen
from bivisor.abi.xen.event_channel import EvtchnOp
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall, MemoryOp, SchedOp
from bivisor.errors import HostError
from bivisor.toolstack.xenhost import XenHost

from .player import SCRATCH, STORE, Ask, Player, build

pytestmark = pytest.mark.guest

ROUNDS = 3000
SHARED_INFO = 0x900_000
PENDING = SHARED_INFO + xen.SHARED_EVTCHN_PENDING
SEND, POLL, PORTS = SCRATCH, SCRATCH + 64, SCRATCH + 128


class End:
    """A guest with one end of an event channel, which it polls and never takes upcalls of."""

    def __init__(self, host: XenHost, image: Path, name: str) -> None:
        self.player = Player(host, image, name)
        shared = xen.ADD_TO_PHYSMAP.pack(DOMID_SELF, 0, xen.MAPSPACE_SHARED_INFO, 0, SHARED_INFO >> 12)
        assert self.player.ask(Hypercall.MEMORY_OP, MemoryOp.ADD_TO_PHYSMAP, shared)[0] == 0
        self.player.store(SHARED_INFO + xen.SHARED_EVTCHN_MASK, (1 << 64) - 1)

    def connect(self, port: int) -> None:
        """Prepare what `send` and `wait` point to."""
        self.player.store(PENDING, 0)
        self.player.write(SEND, struct.pack("<I", port))
        self.player.write(PORTS, struct.pack("<I", port))
        self.player.write(POLL, xen.SCHED_POLL.pack(PORTS, 1, 0))

    send: Ask = (Hypercall.EVENT_CHANNEL_OP, EvtchnOp.SEND, SEND)
    wait: tuple[Ask, ...] = ((Hypercall.SCHED_OP, SchedOp.POLL, POLL), (STORE, PENDING, 0))


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
    for end in (ping, pong):
        results = end.player.finish(3 * ROUNDS)
        assert all(result == 0 for result in results[::3])
