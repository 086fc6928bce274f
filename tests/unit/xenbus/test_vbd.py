"""The block back-end with a front-end in Python: every kind of request, every way to connect, and what is refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blk_front import MIB, BlkFront, disk, service
from fake_domu import FakeDomU, FakeHost, fake_host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bivisor.abi.xen import blkif
from bivisor.abi.xen.blkif import BlkifOp
from bivisor.abi.xen.ring import REQ_PROD
from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.block.image import Offer
from bivisor.dom0.block.vbd import driver
from bivisor.dom0.xenbus.service import Service
from bivisor.host.disk import Disk
from bivisor.memory import PAGE
from bivisor.toolstack import xendevices

OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
SIZE = 4 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def host() -> Iterator[FakeHost]:
    with fake_host() as host:
        yield host


Plug = Callable[..., BlkFront]


@pytest.fixture
def plug(host: FakeHost, image: Path) -> Iterator[Plug]:
    """`plug(offer=…, mode=…, …)`: a front-end of a new disk, and the other arguments are for `connect`."""
    services = []

    def plug(offer: Offer | None = None, mode: str = "w", protocol: str = "x86_64-abi", **options: object) -> BlkFront:
        services.append(service(host, offer))
        domu = FakeDomU(host)
        device = disk(domu.domid, image, mode)
        xendevices.add(host.store, device)
        host.settle()
        front = BlkFront(domu, device, protocol)
        front.connect(**options)  # type: ignore[arg-type]
        return front

    yield plug
    for each in services:
        each.close()


def pattern(seed: int, length: int = PAGE) -> bytes:
    return random.Random(seed).randbytes(length)


WAYS: dict[str, dict[str, object]] = {
    "one page": {},
    "persistent": {"persistent": True},
    "two pages": {"order": 1},
    "sixteen pages": {"order": 4, "persistent": True},
    "a ring-ref0": {"order": 0},
    "32 bits": {"protocol": "x86_32-abi"},
    "32 bits, four pages": {"protocol": "x86_32-abi", "order": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_is_in_the_image_and_comes_back(plug: Plug, image: Path, way: str) -> None:
    front = plug(**WAYS[way])
    domu = front.domu
    gfns = [domu.new_page() for _ in range(11)]
    for number, gfn in enumerate(gfns):
        domu.page(gfn)[:] = pattern(number)
    refs = [domu.grant(gfn) for gfn in gfns]
    whole = [(ref, 0, 7) for ref in refs]
    for turn in range(2 * front.queues[0].ring.size // 11):  # often enough to go around the ring
        assert front.ask(*[front.transfer(BlkifOp.WRITE, 8 * turn, whole)] * 11) == [OKAY] * 11
    assert image.read_bytes()[8 * 512 * turn :][: 11 * PAGE] == b"".join(map(pattern, range(11)))
    domu.written.clear()
    # sectors 1 to 3 of the first page and all of the second
    assert front.ask(front.transfer(BlkifOp.READ, 100, [(refs[0], 1, 3), (refs[1], 0, 7)])) == [OKAY]
    stored = image.read_bytes()[100 * 512 :]
    assert domu.page(gfns[0]) == pattern(0)[:512] + stored[: 3 * 512] + pattern(0)[4 * 512 :]
    assert domu.page(gfns[1]) == stored[3 * 512 : 3 * 512 + PAGE]
    # an engine hears of both, with grants that stay mapped too
    assert {gpa // PAGE for gpa, _ in domu.written} == {gfns[0], gfns[1]}
    front.close()
    for ref in refs:
        domu.revoke(ref)


@pytest.mark.parametrize("persistent", [False, True])
def test_an_indirect_request_moves_a_megabyte(plug: Plug, image: Path, persistent: bool) -> None:
    front = plug(persistent=persistent)
    domu = front.domu
    gfns = [domu.new_page() for _ in range(256)]
    refs = [domu.grant(gfn) for gfn in gfns]
    list_gfn = domu.new_page()
    list_ref = domu.grant(list_gfn)
    domu.page(list_gfn)[: 256 * 8] = b"".join(blkif.SEGMENT.pack(ref, 0, 7) for ref in refs)
    assert front.ask(front.indirect(BlkifOp.READ, 16, [list_ref], 256)) == [OKAY]
    assert b"".join(map(domu.page, gfns)) == image.read_bytes()[16 * 512 :][:MIB]
    for number, gfn in enumerate(gfns):
        domu.page(gfn)[:] = pattern(number)
    assert front.ask(front.indirect(BlkifOp.WRITE, 4096, [list_ref], 256)) == [OKAY]
    assert image.read_bytes()[4096 * 512 :][:MIB] == b"".join(map(pattern, range(256)))
    assert domu.in_use(refs[0]) is persistent
    front.close()
    for ref in (*refs, list_ref):
        domu.revoke(ref)


def test_persistent_grants_stay_mapped_up_to_a_limit_and_the_least_used_go_first(plug: Plug, host: FakeHost) -> None:
    front = plug(Offer(persistent_limit=4), persistent=True)
    domu = front.domu
    refs = [domu.grant(domu.new_page()) for _ in range(6)]
    for ref in (*refs[:4], refs[0], refs[4], refs[5]):
        assert front.ask(front.transfer(BlkifOp.READ, 0, [(ref, 0, 7)])) == [OKAY]
    assert [domu.in_use(ref) for ref in refs] == [True, False, False, True, True, True]


def test_several_queues_work_side_by_side(plug: Plug, image: Path) -> None:
    front = plug(queues=4, order=1)
    domu = front.domu
    for index in range(4):
        gfn = domu.new_page()
        ref = domu.grant(gfn)
        assert front.ask(front.transfer(BlkifOp.READ, 8 * index, [(ref, 0, 7)]), queue=index) == [OKAY]
        assert domu.page(gfn) == image.read_bytes()[PAGE * index :][:PAGE]


def test_flush_barrier_and_discard_are_carried_out_in_order(plug: Plug, image: Path) -> None:
    front = plug()
    domu = front.domu
    gfn = domu.new_page()
    domu.page(gfn)[:] = pattern(7)
    ref = domu.grant(gfn)
    page = [(ref, 0, 7)]
    assert (
        front.ask(
            front.transfer(BlkifOp.WRITE, 0, page),
            front.flush(),
            front.transfer(BlkifOp.WRITE, 8, page),
            front.transfer(BlkifOp.WRITE_BARRIER, 16, page),
            front.transfer(BlkifOp.WRITE_BARRIER, 0, []),
            front.discard(2048, 1024),
            front.transfer(BlkifOp.WRITE, 24, page),
            front.flush(),
        )
        == [OKAY] * 8
    )
    stored = image.read_bytes()
    assert stored[: 4 * PAGE] == pattern(7) * 4
    assert stored[MIB : MIB + MIB // 2] == bytes(MIB // 2)
    assert not domu.in_use(ref)


def test_the_nodes_of_a_disk_say_what_it_is_and_can(host: FakeHost, image: Path) -> None:
    block = service(host)
    domu = FakeDomU(host)
    kind: dict[str, str | int] = {"device-type": "cdrom", "removable": 1}
    device = disk(domu.domid, image, "r", **kind)
    xendevices.add(host.store, device)
    host.settle()
    front = BlkFront(domu, device)
    front.connect()
    said = front.nodes.backend
    assert said("sectors") == str(SIZE // 512)
    assert said("sector-size") == "512"
    assert said("physical-sector-size") == "4096"
    assert said("info") == str(blkif.VDISK_CDROM | blkif.VDISK_REMOVABLE | blkif.VDISK_READONLY)
    assert said("feature-discard") is None
    assert said("feature-flush-cache") == "1"
    assert said("feature-max-indirect-segments") == "256"
    assert said("max-ring-page-order") == "4"
    block.close()


def test_nothing_changes_a_read_only_disk(plug: Plug, image: Path) -> None:
    before = image.read_bytes()
    front = plug(mode="r")
    ref = front.domu.grant(front.domu.new_page())
    list_gfn = front.domu.new_page()
    front.domu.page(list_gfn)[:8] = blkif.SEGMENT.pack(ref, 0, 7)
    list_ref = front.domu.grant(list_gfn)
    page = [(ref, 0, 7)]
    assert front.ask(
        front.transfer(BlkifOp.WRITE, 0, page),
        front.transfer(BlkifOp.WRITE_BARRIER, 0, page),
        front.discard(0, 8),
        front.indirect(BlkifOp.WRITE, 0, [list_ref], 1),
        front.transfer(BlkifOp.READ, 0, page),
    ) == [ERROR, ERROR, ERROR, ERROR, OKAY]
    assert image.read_bytes() == before


def bad_requests(front: BlkFront) -> dict[str, bytes]:
    domu = front.domu
    good = domu.grant(domu.new_page())
    readonly = domu.grant(domu.new_page(), readonly=True)
    foreign = domu.grant(domu.new_page(), to=7)
    nowhere = domu.grant(1 << 27)
    list_gfn = domu.new_page()
    domu.page(list_gfn)[:8] = blkif.SEGMENT.pack(good, 0, 7)
    list_ref = domu.grant(list_gfn)
    read, write, sectors = BlkifOp.READ, BlkifOp.WRITE, SIZE // 512
    return {
        "no segment": front.transfer(read, 0, []),
        "more segments than there is room for": front.transfer(read, 0, [(good, 0, 7)] * 11, count=12),
        "255 segments": front.transfer(write, 0, [(good, 0, 7)] * 11, count=255),
        "last before first": front.transfer(read, 0, [(good, 4, 3)]),
        "a sector beyond the page": front.transfer(read, 0, [(good, 0, 8)]),
        "255 sectors": front.transfer(write, 0, [(good, 0, 255)]),
        "beyond the disk": front.transfer(read, sectors - 7, [(good, 0, 7)]),
        "far beyond the disk": front.transfer(write, (1 << 64) - 8, [(good, 0, 7)]),
        "2^55, which overflows in bytes": front.transfer(write, 1 << 55, [(good, 0, 7)]),
        "a grant for reading only": front.transfer(read, 0, [(readonly, 0, 7)]),
        "a grant to another domain": front.transfer(read, 0, [(foreign, 0, 7)]),
        "a grant of no memory": front.transfer(read, 0, [(nowhere, 0, 7)]),
        "no grant": front.transfer(read, 0, [(1999, 0, 7)]),
        "a reference beyond the table": front.transfer(read, 0, [(0xFFFF_FFFF, 0, 7)]),
        "a good and a bad grant": front.transfer(read, 0, [(good, 0, 7), (1999, 0, 7)]),
        "an indirect list that is not granted": front.indirect(read, 0, [1999], 1),
        "no indirect segment": front.indirect(read, 0, [list_ref], 0),
        "more indirect segments than offered": front.indirect(read, 0, [list_ref], 257),
        "an indirect flush": front.indirect(BlkifOp.FLUSH_DISKCACHE, 0, [list_ref], 1),
        "indirect in indirect": front.indirect(BlkifOp.INDIRECT, 0, [list_ref], 1),
        "a discard of nothing": front.discard(0, 0),
        "a discard beyond the disk": front.discard(sectors - 1, 2),
        "a discard that overflows": front.discard((1 << 64) - 1, (1 << 64) - 1),
        "a barrier beyond the disk": front.transfer(BlkifOp.WRITE_BARRIER, sectors, [(good, 0, 7)]),
    }


@pytest.mark.parametrize("persistent", [False, True])
def test_a_request_that_makes_no_sense_is_an_error_and_the_next_one_works(
    plug: Plug, image: Path, persistent: bool
) -> None:
    before = image.read_bytes()
    front = plug(persistent=persistent)
    requests = bad_requests(front)
    statuses = dict(zip(requests, front.ask(*requests.values()), strict=True))
    assert statuses == dict.fromkeys(requests, ERROR)
    ref = front.domu.grant(front.domu.new_page())
    assert front.ask(front.transfer(4, 0, []), front.transfer(99, 0, [(ref, 0, 7)])) == [EOPNOTSUPP] * 2
    assert front.ask(front.transfer(BlkifOp.READ, 0, [(ref, 0, 7)])) == [OKAY]
    assert image.read_bytes() == before


def test_a_disk_that_fails_is_an_error_of_the_request_alone(plug: Plug, image: Path) -> None:
    front = plug()
    ref = front.domu.grant(front.domu.new_page())
    with image.open("r+b") as file:
        file.truncate(PAGE)
    reads = [front.transfer(BlkifOp.READ, sector, [(ref, 0, 7)]) for sector in (0, 4, 8)]
    assert front.ask(*reads) == [OKAY, ERROR, ERROR]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({"ring_ref": 1999}, "cannot be mapped"),
        ({"ring_ref": "x"}, "not a number"),
        ({"ring_ref": "9" * 4000}, "not a number"),
        ({"event_channel": 77}, "cannot be bound"),
        ({"event_channel": "-1"}, "not a number"),
        ({"protocol": "vax-abi"}, "protocol"),
        ({"ring_page_order": 5}, "not a number below 5"),
        ({"num_ring_pages": 3}, "power of two"),
        ({"multi_queue_num_queues": 0}, "no queue"),
        ({"multi_queue_num_queues": 5}, "not a number below 5"),
        ({"multi_queue_num_queues": 2}, "has no queue-0/ring-ref"),
        ({"feature_persistent": "yes"}, "not a number"),
    ],
)
def test_nodes_that_make_no_sense_are_refused_with_a_reason_and_can_be_put_right(
    host: FakeHost, image: Path, nodes: dict[str, str | int], reason: str
) -> None:
    block = service(host)
    domu = FakeDomU(host)
    device = disk(domu.domid, image)
    xendevices.add(host.store, device)
    host.settle()
    front = BlkFront(domu, device)
    front.nodes.write(**nodes)
    if "ring_ref" in nodes or "event_channel" in nodes:
        front.initialise()
        front.nodes.switch(XenbusState.CLOSED)
        host.settle()
        front.nodes.write(**nodes)
        front.nodes.switch(XenbusState.INITIALISING)
        host.settle()
        front.nodes.switch(XenbusState.INITIALISED)
        host.settle()
    else:
        front.nodes.write(ring_ref=domu.grant(domu.new_page()), event_channel=domu.new_port(), **nodes)
        front.nodes.switch(XenbusState.INITIALISED)
        host.settle()
    assert front.nodes.state is XenbusState.CLOSING
    assert reason in (front.nodes.error() or "")
    assert not len(host.control.domain.grants.maptrack)
    block.close()


def test_a_ring_that_breaks_ends_the_connection_and_not_the_back_end(plug: Plug, host: FakeHost) -> None:
    front = plug()
    front.queues[0].ring.indices[REQ_PROD] = 1000
    front.domu.send(front.queues[0].port)
    host.settle()
    assert front.nodes.state is XenbusState.CLOSING
    assert "1000 of 32 requests" in (front.nodes.error() or "")
    front.queues[0].ring.indices[REQ_PROD] = 0
    front.close()
    front.nodes.switch(XenbusState.INITIALISING)
    host.settle()
    front.connect()
    ref = front.domu.grant(front.domu.new_page())
    assert front.ask(front.transfer(BlkifOp.READ, 0, [(ref, 0, 7)])) == [OKAY]


def test_two_domains_cannot_write_one_image(plug: Plug, host: FakeHost, image: Path) -> None:
    plug()
    other = FakeDomU(host)
    device = disk(other.domid, image)
    xendevices.add(host.store, device)
    host.settle()
    front = BlkFront(other, device)
    assert front.nodes.state is XenbusState.CLOSING
    assert "another machine is using it" in (front.nodes.error() or "")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_rubbish_in_a_ring_changes_nothing_but_the_disk_and_granted_pages(image: Path, data: st.DataObject) -> None:
    with fake_host() as host:
        block = service(host)
        domu = FakeDomU(host)
        device = disk(domu.domid, image)
        xendevices.add(host.store, device)
        host.settle()
        front = BlkFront(domu, device, data.draw(st.sampled_from(["x86_64-abi", "x86_32-abi"])))
        front.connect(persistent=data.draw(st.booleans()))
        refs = [domu.grant(domu.new_page()) for _ in range(4)]
        bystander = domu.new_page()
        domu.page(bystander)[:] = pattern(3)
        queue = front.queues[0]
        for request in data.draw(st.lists(rubbish(front, refs), min_size=1, max_size=8)):
            queue.put(request[: queue.ring.entry_size])
        queue.push()
        for index, value in data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 0xFFFF_FFFF)), max_size=3)):
            host.settle()
            queue.ring.indices[index] = value
            domu.send(queue.port)
        host.settle()
        assert domu.page(bystander) == pattern(3)
        assert image.stat().st_size == SIZE
        domu.die()
        host.settle()
        xendevices.remove(host.store, device)
        host.settle()
        block.close()


def rubbish(front: BlkFront, refs: list[int]) -> st.SearchStrategy[bytes]:
    """Requests of all kinds, some of which are nearly right."""
    a_ref = st.sampled_from([*refs, 0, 1999, 0xFFFF_FFFF])
    segment = st.tuples(a_ref, st.integers(0, 255), st.one_of(st.just(7), st.integers(0, 255)))
    sector = st.one_of(st.integers(0, SIZE // 512), st.integers(0, (1 << 64) - 1))
    lie = st.one_of(st.none(), st.integers(0, 255))
    return st.one_of(
        st.binary(min_size=112, max_size=112),
        st.builds(front.transfer, st.integers(0, 7), sector, st.lists(segment, max_size=11), lie),
        st.builds(front.indirect, st.integers(0, 7), sector, st.lists(a_ref, max_size=8), st.integers(0, 0xFFFF)),
        st.builds(front.discard, sector, sector),
    )


def test_closing_an_image_keeps_nobody_waiting(host: FakeHost, image: Path) -> None:
    """The image takes as long as the test wants, and the disk is closed only then."""
    begun, end = threading.Event(), threading.Event()

    class Slow(Disk):
        def close(self) -> None:
            begun.set()
            end.wait(10)
            super().close()

    with ThreadPoolExecutor(1) as pool:
        block = Service(
            host.control,
            host.store,
            "vbd",
            driver(lambda params, read_only: Slow(Path(params), read_only=read_only), closer=pool.submit),
        )
        device = disk(FakeDomU(host).domid, image)
        xendevices.add(host.store, device)
        host.settle()
        xendevices.order_to_close(host.store, device)
        host.settle()
        assert begun.wait(10)
        host.settle()
        state = f"{device.backend_path}/state"
        assert host.store.get(state) == str(int(XenbusState.CLOSING))
        end.set()
        pool.submit(int).result()
        host.settle()
        assert host.store.get(state) == str(int(XenbusState.CLOSED))
        Disk(image).close()
        block.close()
