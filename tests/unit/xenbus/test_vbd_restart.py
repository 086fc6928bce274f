"""A block back-end that is killed and started again, and domains that die in the middle of I/O."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from blk_front import MIB, BlkFront, disk, service
from fake_domu import FakeDomU, FakeHost, fake_host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bivisor.abi.xen.blkif import BlkifOp
from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.block.image import Offer
from bivisor.dom0.block.vbd import driver
from bivisor.dom0.xenbus.service import Service
from bivisor.host.disk import Disk
from bivisor.memory import PAGE
from bivisor.toolstack import xendevices

SIZE = MIB


def blank(path: Path) -> Path:
    path.write_bytes(bytes(SIZE))
    return path


class Gated(Disk):
    """A disk whose flushes wait until the test lets them; it counts what is written."""

    gate = threading.Event()
    writes: list[int]

    def flush(self) -> None:
        assert self.gate.wait(30)
        super().flush()

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        self.writes.append(offset // PAGE)
        return super().writev(views, offset)


def test_what_a_killed_back_end_had_done_and_not_answered_is_done_again(tmp_path: Path) -> None:
    image = blank(tmp_path / "disk")
    Gated.gate.clear()
    Gated.writes = []

    def start(host: FakeHost) -> Service:
        return Service(host.control, host.store, "vbd", driver(lambda path, ro: Gated(path, read_only=ro)))

    with fake_host() as host:
        block = start(host)
        domu = FakeDomU(host)
        device = disk(domu.domid, image)
        xendevices.add(host.store, device)
        host.settle()
        front = BlkFront(domu, device)
        front.connect()
        queue = front.queues[0]
        gfn = domu.new_page()
        ref = domu.grant(gfn)
        domu.page(gfn)[:] = b"a" * PAGE
        for request in (
            front.transfer(BlkifOp.WRITE, 0, [(ref, 0, 7)]),
            front.flush(),
            front.transfer(BlkifOp.WRITE, 8, [(ref, 0, 7)]),
            front.transfer(BlkifOp.WRITE, 16, [(ref, 0, 7)]),
        ):
            queue.put(request)
        queue.push()
        host.settle()
        first = queue.responses()
        assert [each.operation for each in first] == [BlkifOp.WRITE]
        assert Gated.writes == [0, 1, 2], "writes do not wait for the flush, only their answers do"
        Gated.gate.set()
        block.close()
        assert not domu.in_use(ref)
        assert queue.responses() == []
        block = start(host)
        while len(first) < 4:
            host.settle()
            first += queue.responses()
        assert [each.status for each in first] == [0] * 4
        assert [each.operation for each in first] == [1, 3, 1, 1]
        assert Gated.writes == [0, 1, 2, 1, 2]
        assert front.nodes.state is XenbusState.CONNECTED
        front.close()
        block.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1 << 32),
    persistent=st.booleans(),
    turns=st.lists(st.sampled_from(["write", "flush", "discard", "settle", "kill", "barrier"]), max_size=40),
)
def test_nothing_is_lost_or_done_twice_to_the_disk_whenever_the_back_end_is_killed(
    tmp_path: Path, seed: int, persistent: bool, turns: list[str]
) -> None:
    """Requests that are under way at the same time do not touch the same sectors: no front-end does that."""
    chance = random.Random(seed)
    image = blank(tmp_path / "disk")
    expected = bytearray(SIZE)
    with fake_host() as host:
        block = service(host)
        domu = FakeDomU(host)
        device = disk(domu.domid, image)
        xendevices.add(host.store, device)
        host.settle()
        front = BlkFront(domu, device)
        front.connect(persistent=persistent)
        queue = front.queues[0]
        pages = [domu.new_page() for _ in range(32)]
        refs = [domu.grant(gfn) for gfn in pages]
        under_way: dict[int, int] = {}  # id to page
        asked: list[int] = []
        answered: list[int] = []

        def collect() -> None:
            for response in queue.responses():
                assert response.status == 0
                answered.append(response.id)
                under_way.pop(response.id, None)

        for turn in turns:
            collect()
            free = set(range(32)) - set(under_way.values())
            if turn in ("write", "barrier", "discard", "flush"):
                if not free or not queue.ring.room:
                    continue
                page = chance.choice(sorted(free))
                match turn:
                    case "flush":
                        request = front.flush()
                    case "discard":
                        request = front.discard(8 * page, 8)
                        expected[PAGE * page : PAGE * page + PAGE] = bytes(PAGE)
                    case _:
                        data = chance.randbytes(PAGE)
                        domu.page(pages[page])[:] = data
                        expected[PAGE * page : PAGE * page + PAGE] = data
                        operation = BlkifOp.WRITE if turn == "write" else BlkifOp.WRITE_BARRIER
                        request = front.transfer(operation, 8 * page, [(refs[page], 0, 7)])
                number = front.layout.request.unpack_from(request)[2]
                asked.append(number)
                under_way[number] = page
                queue.put(request)
                queue.push()
            elif turn == "settle":
                host.settle()
            else:
                if chance.random() < 0.5:
                    host.settle()
                block.close()
                block = service(host)
        while len(answered) < len(asked):
            host.settle()
            collect()
        assert answered == asked
        assert image.read_bytes() == expected
        front.close()
        for ref in refs:
            domu.revoke(ref)
        block.close()


@pytest.mark.parametrize("persistent", [False, True])
def test_two_hundred_domains_that_die_in_the_middle_of_io_leave_nothing_behind(
    tmp_path: Path, persistent: bool
) -> None:
    image = blank(tmp_path / "disk")
    chance = random.Random(3)
    with fake_host() as host:
        block = service(host, Offer(persistent_limit=16))
        before = host.holdings()
        for _ in range(200):
            domu = FakeDomU(host)
            device = disk(domu.domid, image)
            xendevices.add(host.store, device)
            host.settle()
            front = BlkFront(domu, device)
            front.connect(persistent=persistent, queues=2, order=1)
            refs = [domu.grant(domu.new_page()) for _ in range(11)]
            for queue in front.queues:
                for _ in range(chance.randrange(1, 20)):
                    segments = [(ref, 0, 7) for ref in refs]
                    queue.put(
                        chance.choice((front.transfer(BlkifOp.WRITE, 0, segments), front.flush(), front.discard(0, 64)))
                    )
                queue.push()
            if chance.random() < 0.5:
                host.loop.run_soon()
            domu.die()
            host.settle()
            xendevices.remove(host.store, device)
            host.settle()
            assert not block.links
            assert host.holdings() == before
            domu.close()  # an error if anything of it is still mapped
        block.close()
