"""The back-end's side of a shared ring, with a front-end that keeps to the rules, one that does not, and one that
meets a second back-end after the first was killed."""

from __future__ import annotations

import pytest
from fake_domu import FakeDomU, FrontRing, fake_host
from hypothesis import given
from hypothesis import strategies as st

from bivisor.abi.xen.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from bivisor.dom0.xenbus.ring import BackRing, RingError
from bivisor.memory import PAGE

ENTRY = 112


def back_ring(pages: int = 1, entry: int = ENTRY) -> tuple[BackRing, memoryview, list[memoryview]]:
    """A ring of zeroes, its indices, and its pages."""
    views = [memoryview(bytearray(PAGE)) for _ in range(pages)]
    indices = views[0].cast("I")
    indices[REQ_EVENT] = indices[RSP_EVENT] = 1
    return BackRing(views, entry), indices, views


@pytest.mark.parametrize(("pages", "entry", "size"), [(1, 112, 32), (2, 112, 64), (4, 112, 128), (1, 12, 256)])
def test_a_ring_has_as_many_entries_as_fit_rounded_down(pages: int, entry: int, size: int) -> None:
    assert back_ring(pages, entry)[0].size == size


@given(
    pages=st.sampled_from([1, 2, 4]),
    entry=st.sampled_from([12, 108, 112]),
    start=st.integers(0, 0xFFFF_FFFF),
    turns=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.booleans()), max_size=20),
)
def test_every_request_arrives_once_and_in_order_and_so_does_every_response(
    pages: int, entry: int, start: int, turns: list[tuple[int, int, bool]]
) -> None:
    with fake_host() as host:
        domu = FakeDomU(host)
        front = FrontRing(domu, [domu.new_page() for _ in range(pages)], entry)
        for index in (REQ_PROD, RSP_PROD):
            front.indices[index] = start
        front.indices[REQ_EVENT] = front.indices[RSP_EVENT] = start + 1 & 0xFFFF_FFFF
        front.req_prod = front.rsp_cons = start
        back = BackRing(front.views, entry)
        asked = answered = heard = 0
        owed: list[bytes] = []
        for puts, takes, killed in turns:
            for _ in range(min(puts, front.room)):
                front.put(asked.to_bytes(8, "little") * (entry // 8))
                asked += 1
            front.push()
            for _ in range(takes):
                request = back.take()
                if request is None:
                    break
                number = int.from_bytes(request[:8], "little")
                assert request[: entry // 8 * 8] == number.to_bytes(8, "little") * (entry // 8)
                owed.append(request)
            if killed:  # the next one is owed all that was not answered
                back.release()
                back = BackRing(front.views, entry)
                owed.clear()
            for request in owed[: len(owed) // 2 + 1]:
                back.respond(request[:12])
                answered += 1
            del owed[: len(owed) // 2 + 1]
            back.push()
            while (response := front.take(12)) is not None:
                assert int.from_bytes(response[:8], "little") == heard
                heard += 1
        assert heard == answered
        back.release()
        front.release()


def test_an_event_is_asked_for_and_given_only_where_the_other_end_waits() -> None:
    ring, indices, _ = back_ring()
    indices[REQ_PROD] = 3
    assert ring.rest()
    for _ in range(3):
        assert ring.take() is not None
    assert not ring.rest()
    assert indices[REQ_EVENT] == 4
    ring.respond(b"a")
    assert ring.push()  # rsp_event is 1
    ring.respond(b"b")
    assert not ring.push()
    assert not ring.push()
    indices[RSP_EVENT] = 3
    ring.respond(b"c")
    assert ring.push()


def test_more_requests_than_entries_break_the_ring() -> None:
    ring, indices, _ = back_ring()
    indices[REQ_PROD] = 33
    with pytest.raises(RingError, match="33 of 32"):
        ring.take()


def test_an_index_that_runs_backwards_breaks_the_ring() -> None:
    ring, indices, _ = back_ring()
    indices[REQ_PROD] = 5
    while ring.take():
        pass
    indices[REQ_PROD] = 4
    with pytest.raises(RingError):
        ring.take()
    with pytest.raises(RingError):
        ring.rest()


def test_a_ring_that_owes_more_than_it_has_entries_is_not_taken_over() -> None:
    page = memoryview(bytearray(PAGE))
    page.cast("I")[REQ_PROD], page.cast("I")[RSP_PROD] = 100, 40
    with pytest.raises(RingError):
        BackRing([page], ENTRY)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 0xFFFF_FFFF)), max_size=30), st.integers(1, 40))
def test_indices_of_a_hostile_front_end_cause_no_more_than_a_ring_error(
    writes: list[tuple[int, int]], takes: int
) -> None:
    ring, indices, _ = back_ring()
    given_out = 0
    try:
        for which, value in writes:
            indices[which] = value
            for _ in range(takes):
                if ring.take() is None:
                    ring.rest()
                    break
                given_out += 1
            while ring.unanswered:
                ring.respond(bytes(16))
            ring.push()
    except RingError:
        pass
    assert given_out <= 32 * (len(writes) + 1)


def test_a_released_ring_lets_go_of_its_pages() -> None:
    ring, indices, views = back_ring(4)
    ring.release()
    indices.release()
    for view in views:
        view.release()  # a BufferError if somebody held it
