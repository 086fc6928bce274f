"""XENMEM_exchange: a PV guest gets other frames for its own, in one piece, and never has both or what is in use."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import pytest
from grant_guests import PAGES, Guest, world
from pv_guests import RW, US, P

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.pv import INVALID_M2P_ENTRY
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall, MemoryOp
from bivisor.boot.xenframes import DEVICES, SPARE, MachineFrames
from bivisor.memory import PAGE
from bivisor.xen.errors import XenError
from bivisor.xen.grant_ops import map_grant_ref, unmap_grant_ref
from bivisor.xen.hypervisor import Xen
from bivisor.xen.pv.call import PvCall
from bivisor.xen.pv.frames import Frames
from bivisor.xen.pv.machine import PvMachine
from bivisor.xen.pv.pages import GONE, NONE
from bivisor.xen.pv.private import Private
from bivisor.xen.pv.table import TABLE

ARGUMENT, GIVEN, WANTED, HOLE = 0x1000, 0x1100, 0x1200, range(48, 64)


class Cpu:
    """A processor that has nothing to forget."""

    def flush_tlb(self) -> None: ...


class Exchanger:
    """A PV guest with 48 frames of a machine of 64: tables in 1 to 4, and frame 20 at `ARGUMENT`."""

    granter: Guest
    """The guest itself."""
    grantee: Guest
    """One that it can grant frames to."""

    def __init__(self, xen: Xen, guest: Guest) -> None:
        self.domain = guest.domain
        self.domain.absent.update(HOLE)
        self.domain.max_pages = HOLE.start
        self.private = Private(PAGES)
        self.frames = Frames(guest.domain, self.private, 512, None)  # type: ignore[arg-type]
        machine = PvMachine(self.frames, 0, ())
        self.words = self.frames.pages.words
        for level in range(3):
            self.words[1 + level << 9] = 2 + level << 12 | P | RW | US
        self.words[4 << 9 | 1] = 20 << 12 | P | RW
        machine.cpu = Cpu()  # type: ignore[assignment]
        machine.start(1)
        self.call = PvCall(xen, guest.domain, 0, machine, lambda: True)
        self.m2p = self.private.m2p

    def ask(
        self, given: Sequence[int], orders: tuple[int, int], pfns: Sequence[int], flags: int = 0, done: int = 0
    ) -> tuple[int, int, tuple[int, ...]]:
        """The answer, how much was done, and the second list."""
        call = self.call
        call.write(GIVEN, struct.pack(f"<{len(given)}Q", *given))
        call.write(WANTED, struct.pack(f"<{len(pfns)}Q", *pfns))
        lists = (GIVEN, len(given), orders[0], 0, DOMID_SELF, WANTED, len(pfns), orders[1], flags, DOMID_SELF, done)
        call.write(ARGUMENT, abi.MEMORY_EXCHANGE.pack(*lists))
        try:
            result = TABLE[Hypercall.MEMORY_OP](call, MemoryOp.EXCHANGE, ARGUMENT)
        except XenError as error:
            result = -error.errno
        (done,) = struct.unpack("<Q", call.read(ARGUMENT + abi.MEMORY_EXCHANGE.size - 8, 8))
        return result, done, struct.unpack(f"<{len(pfns)}Q", call.read(WANTED, 8 * len(pfns)))


@pytest.fixture
def guest() -> Iterator[Exchanger]:
    with world() as (xen, guests):
        exchanger = Exchanger(xen, guests[2])
        exchanger.granter, exchanger.grantee = guests[2], guests[1]
        yield exchanger
        assert exchanger.domain.pages == HOLE.start
        exchanger.frames.close()
        exchanger.private.close()


def test_scattered_frames_become_one_piece_and_scattered_ones_again(guest: Exchanger) -> None:
    given = [30, 9, 33, 12, 40, 41, 5, 7]
    result, done, found = guest.ask(given, (0, 2), [100, 200])
    assert (result, done, found) == (0, 8, (48, 52))
    assert [guest.m2p[mfn] for mfn in range(48, 56)] == [100, 101, 102, 103, 200, 201, 202, 203]
    assert all(guest.m2p[mfn] == INVALID_M2P_ENTRY and not guest.frames.pages.has(mfn) for mfn in given)
    kinds = guest.frames.pages.kind
    assert {kinds[mfn] for mfn in given} == {GONE} and set(kinds[48:56]) == {NONE}
    result, done, found = guest.ask([48], (2, 0), [30, 9, 33, 12])
    assert (result, done) == (0, 1)
    assert sorted(found) == [5, 7, 9, 12]
    assert [guest.m2p[mfn] for mfn in found] == [30, 9, 33, 12]


def test_what_stands_before_the_first_wrong_frame_is_done_and_no_more(guest: Exchanger) -> None:
    for wrong in (20, 1, 60, 1 << 40, 30):  # it has it mapped; a table; not its own; no memory; given up already
        result, done, found = guest.ask([30, 31, wrong, 32], (0, 1), [7, 8])
        assert (result, done, found[1]) == (-Errno.EINVAL, 2, 8)
        assert guest.frames.pages.has(32)
        assert guest.ask([found[0]], (1, 0), [7, 8]) == (0, 1, (30, 31))  # and back
    assert guest.ask([30, 30], (0, 1), [7])[:2] == (-Errno.EINVAL, 0)


@pytest.mark.parametrize("readonly", [False, True])
def test_a_frame_that_another_has_mapped_is_refused_until_he_lets_go(guest: Exchanger, readonly: bool) -> None:
    guest.granter.grant(8, guest.grantee, 33)
    mapping = map_grant_ref(guest.grantee.domain, guest.domain.domid, 8, readonly=readonly)
    assert guest.ask([30, 31, 32, 33], (0, 1), [7, 8])[:2] == (-Errno.EINVAL, 2)
    assert guest.frames.pages.has(32) and guest.frames.pages.has(33)
    assert guest.ask([33], (0, 0), [7])[0] == -Errno.EINVAL
    unmap_grant_ref(guest.grantee.domain, mapping.handle)
    assert guest.ask([32, 33], (0, 1), [7])[:2] == (0, 2)


def test_the_machine_has_no_more_than_it_has(guest: Exchanger) -> None:
    assert guest.ask(range(24, 40), (0, 4), [7])[:2] == (0, 16)
    assert guest.ask([48], (4, 5), [7])[0] == -Errno.EINVAL
    assert guest.ask(range(48, 64), (0, 4), [7], flags=17)[:2] == (-Errno.ENOMEM, 0)  # all that is free is above
    assert guest.ask(range(48, 64), (0, 3), [7, 8], flags=18)[0:3] == (0, 16, (24, 32))
    guest.frames.devices = HOLE
    assert guest.ask([30], (0, 0), [7])[:2] == (-Errno.ENOMEM, 0)


def test_lists_that_do_not_fit_are_refused(guest: Exchanger) -> None:
    assert guest.ask([30], (10, 10), [7])[0] == -Errno.EPERM
    assert guest.ask([30], (0, 0), [7, 8])[0] == -Errno.EINVAL
    assert guest.ask([30], (0, 0), [7], done=2)[0] == -Errno.EINVAL
    assert guest.ask([30], (0, 0), [7], done=1)[0] == 0
    assert guest.frames.pages.has(30)


@pytest.mark.parametrize("mib", [16, 4040, 4352])
def test_every_frame_of_a_domain_is_memory_and_the_lists_are_each_others_inverse(mib: int) -> None:
    frames = MachineFrames.of(mib << 20)
    assert frames.count == mib << 8
    assert len(frames.hole) * PAGE >= SPARE
    mfns = memoryview(frames.p2m()).cast("Q")
    m2p = memoryview(bytearray(struct.pack(f"<{frames.end}Q", *range(frames.end)))).cast("Q")
    frames.fill_m2p(m2p)
    for pfn in {0, 1, frames.count - 1, frames.count // 2, *range(max(0, frames.hole.start - 2), frames.count, 9999)}:
        mfn = mfns[pfn]
        assert m2p[mfn] == pfn and mfn not in frames.hole and mfn < frames.end
        assert not DEVICES[0] <= mfn * PAGE < DEVICES[1]
    assert m2p[frames.hole[0]] == INVALID_M2P_ENTRY
