"""Copies through grants: between whichever ends, within what was granted, and with nothing left pinned."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grant_guests import PAGES, PINNED, Guest, world

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.grant_table import GrantStatus, GrantTableOp
from bivisor.abi.xen.xen import DOMID_SELF
from bivisor.memory import PAGE
from bivisor.xen.errors import GrantError
from bivisor.xen.grant_ops import GrantEnd, copy_from, copy_to, map_grant_ref, unmap_grant_ref

REF, ONWARD = 9, 10
SOURCE, DEST = abi.GNTCOPY_SOURCE_GREF, abi.GNTCOPY_DEST_GREF


class World:
    """A caller, and two guests that grant."""

    def __init__(self, guests: list[Guest]) -> None:
        self.caller, self.one, self.two = guests[1:]
        for guest in guests:
            for gfn in range(PAGES):
                guest.page(gfn)[:] = bytes([guest.domid << 6 | gfn]) * PAGE

    def copy(self, source: tuple[int, int, int], dest: tuple[int, int, int], length: int, flags: int) -> int:
        """One GNTTABOP_copy of the caller's; the status."""
        result, (answer,) = self.caller.op(GrantTableOp.COPY, abi.COPY.pack(*source, *dest, length, flags, 99))
        assert result == 0
        status: int = abi.COPY.unpack(answer)[-1]
        return status

    def leaves_nothing(self) -> bool:
        return not any(guest.pinned(ref) for guest in (self.caller, self.one, self.two) for ref in range(64))


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def w(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(3) as (_, guests):
        for guest in guests:
            guest.grants.set_version(request.param)
        yield World(guests)


@pytest.fixture
def v2() -> Iterator[World]:
    with world(3) as (_, guests):
        for guest in guests:
            guest.grants.set_version(2)
        yield World(guests)


def test_from_a_grant_to_a_frame_of_ones_own(w: World) -> None:
    w.one.grant(REF, w.caller, 5, abi.GTF_READONLY)
    w.one.page(5)[100:104] = b"data"
    assert w.copy((REF, w.one.domid, 100), (7, DOMID_SELF, 200), 4, SOURCE) == GrantStatus.OKAY
    assert bytes(w.caller.page(7)[199:205]) == bytes([w.caller.page(7)[0]]) + b"data" + bytes([w.caller.page(7)[0]])
    assert w.leaves_nothing()


def test_from_a_frame_of_ones_own_to_a_grant(w: World) -> None:
    w.one.grant(REF, w.caller, 5)
    written: list[tuple[int, int]] = []
    w.one.memory.listen(lambda gpa, length: written.append((gpa, length)))
    assert w.copy((7, DOMID_SELF, 0), (REF, w.one.domid, 0), PAGE, DEST) == GrantStatus.OKAY
    assert w.one.page(5) == w.caller.page(7)
    assert written == [(5 * PAGE, PAGE)]


def test_from_a_grant_to_a_grant(w: World) -> None:
    w.one.grant(REF, w.caller, 5)
    w.two.grant(REF, w.caller, 6)
    assert w.copy((REF, w.one.domid, 0), (REF, w.two.domid, 8), 16, SOURCE | DEST) == GrantStatus.OKAY
    assert bytes(w.two.page(6)[8:24]) == bytes(w.one.page(5)[:16])
    assert w.leaves_nothing()


def test_both_ends_in_the_same_frame_may_overlap(w: World) -> None:
    w.one.grant(REF, w.caller, 5)
    w.one.page(5)[:8] = b"01234567"
    assert w.copy((REF, w.one.domid, 0), (REF, w.one.domid, 2), 6, SOURCE | DEST) == GrantStatus.OKAY
    assert bytes(w.one.page(5)[:8]) == b"01012345"
    assert w.leaves_nothing()


def test_a_copy_within_ones_own_memory_needs_no_grant(w: World) -> None:
    assert w.copy((7, DOMID_SELF, 0), (8, DOMID_SELF, 0), 10, 0) == GrantStatus.OKAY
    assert bytes(w.caller.page(8)[:10]) == bytes(w.caller.page(7)[:10])


@pytest.mark.parametrize(
    ("source", "dest", "length", "flags", "status"),
    [
        ((7, DOMID_SELF, PAGE - 3), (8, DOMID_SELF, 0), 4, 0, GrantStatus.BAD_COPY_ARG),
        ((7, DOMID_SELF, 0), (8, DOMID_SELF, 0xFFFF), 0xFFFF, 0, GrantStatus.BAD_COPY_ARG),
        ((7, 2, 0), (8, DOMID_SELF, 0), 4, 0, GrantStatus.PERMISSION_DENIED),
        ((7, DOMID_SELF, 0), (8, 2, 0), 4, 0, GrantStatus.PERMISSION_DENIED),
        ((REF, 77, 0), (8, DOMID_SELF, 0), 4, SOURCE, GrantStatus.BAD_DOMAIN),
        ((1 << 20, 2, 0), (8, DOMID_SELF, 0), 4, SOURCE, GrantStatus.BAD_GNTREF),
        ((REF, 2, 0), (8, DOMID_SELF, 0), 4, SOURCE, GrantStatus.GENERAL_ERROR),
        ((PAGES, DOMID_SELF, 0), (8, DOMID_SELF, 0), 4, 0, GrantStatus.BAD_PAGE),
        (((1 << 64) - 1, DOMID_SELF, 0), (8, DOMID_SELF, 0), 4, 0, GrantStatus.BAD_PAGE),
        ((7, DOMID_SELF, 0), (PAGES, DOMID_SELF, 0), 4, 0, GrantStatus.BAD_PAGE),
    ],
)
def test_what_is_refused(
    w: World, source: tuple[int, int, int], dest: tuple[int, int, int], length: int, flags: int, status: GrantStatus
) -> None:
    before = bytes(w.caller.page(8))
    assert w.copy(source, dest, length, flags) == status
    assert bytes(w.caller.page(8)) == before
    assert w.leaves_nothing()


def test_a_read_only_grant_is_not_copied_to(w: World) -> None:
    w.one.grant(REF, w.caller, 5, abi.GTF_READONLY)
    assert w.copy((7, DOMID_SELF, 0), (REF, w.one.domid, 0), 4, DEST) == GrantStatus.GENERAL_ERROR
    assert w.leaves_nothing()


def test_a_grant_to_another_is_no_use(w: World) -> None:
    w.one.grant(REF, w.two, 5)
    assert w.copy((REF, w.one.domid, 0), (7, DOMID_SELF, 0), 4, SOURCE) == GrantStatus.GENERAL_ERROR
    map_grant_ref(w.two.domain, w.one.domid, REF)
    assert w.copy((REF, w.one.domid, 0), (7, DOMID_SELF, 0), 4, SOURCE) == GrantStatus.GENERAL_ERROR


def test_a_failure_at_the_second_end_lets_go_of_the_first(w: World) -> None:
    w.one.grant(REF, w.caller, 5)
    assert w.copy((REF, w.one.domid, 0), (REF, w.two.domid, 0), 4, SOURCE | DEST) == GrantStatus.GENERAL_ERROR
    assert w.leaves_nothing()


def test_a_copy_through_a_mapped_entry_uses_the_frame_that_is_mapped_and_leaves_the_mappings_flags(w: World) -> None:
    w.one.grant(REF, w.caller, 5)
    mapping = map_grant_ref(w.caller.domain, w.one.domid, REF, readonly=True)
    w.one.grant(REF, w.caller, 6, abi.GTF_READING)
    assert w.copy((7, DOMID_SELF, 0), (REF, w.one.domid, 0), 4, DEST) == GrantStatus.OKAY
    assert bytes(w.one.page(5)[:4]) == bytes(w.caller.page(7)[:4])
    assert w.one.pinned(REF) == abi.GTF_READING
    unmap_grant_ref(w.caller.domain, mapping.handle)
    assert w.leaves_nothing()


def test_each_of_a_batch_has_its_own_status(w: World) -> None:
    w.one.grant(REF, w.caller, 5)
    ops = [
        abi.COPY.pack(REF if i % 3 else 1 << 20, w.one.domid, 0, 8, DOMID_SELF, 0, 4, SOURCE, 99) for i in range(200)
    ]
    result, answers = w.caller.op(GrantTableOp.COPY, *ops)
    assert result == 0
    statuses = [abi.COPY.unpack(answer)[-1] for answer in answers]
    assert statuses == [GrantStatus.OKAY if i % 3 else GrantStatus.BAD_GNTREF for i in range(200)]
    assert [answer[:36] for answer in answers] == [op[:36] for op in ops]


def test_a_part_of_a_frame_is_copied_and_nothing_beside_it(v2: World) -> None:
    v2.one.grant_part(REF, v2.caller, 5, 100, 50)
    statuses = {
        (start, length): v2.copy((REF, v2.one.domid, start), (7, DOMID_SELF, 0), length, SOURCE)
        for start, length in [(100, 50), (120, 30), (99, 2), (149, 2), (100, 51), (0, PAGE)]
    }
    inside = {(100, 50), (120, 30)}
    assert statuses == {at: GrantStatus.OKAY if at in inside else GrantStatus.GENERAL_ERROR for at in statuses}
    assert v2.leaves_nothing()


def test_a_transitive_grant_gives_what_its_granter_was_given(v2: World) -> None:
    v2.two.grant(ONWARD, v2.one, 6)
    v2.one.pass_on(REF, v2.caller, v2.two, ONWARD)
    assert v2.copy((7, DOMID_SELF, 0), (REF, v2.one.domid, 0), 4, DEST) == GrantStatus.OKAY
    assert bytes(v2.two.page(6)[:4]) == bytes(v2.caller.page(7)[:4])
    assert v2.leaves_nothing()


def test_a_transitive_grant_of_a_part_gives_that_part(v2: World) -> None:
    v2.two.grant_part(ONWARD, v2.one, 6, 8, 8)
    v2.one.pass_on(REF, v2.caller, v2.two, ONWARD)
    assert v2.copy((REF, v2.one.domid, 8), (7, DOMID_SELF, 0), 8, SOURCE) == GrantStatus.OKAY
    assert v2.copy((REF, v2.one.domid, 8), (7, DOMID_SELF, 0), 9, SOURCE) == GrantStatus.GENERAL_ERROR
    assert v2.leaves_nothing()


def test_a_transitive_grant_gives_no_more_than_its_granter_has(v2: World) -> None:
    v2.two.grant(ONWARD, v2.one, 6, abi.GTF_READONLY)
    v2.one.pass_on(REF, v2.caller, v2.two, ONWARD)
    assert v2.copy((7, DOMID_SELF, 0), (REF, v2.one.domid, 0), 4, DEST) == GrantStatus.GENERAL_ERROR
    v2.two.grant(ONWARD, v2.caller, 6)
    assert v2.copy((7, DOMID_SELF, 0), (REF, v2.one.domid, 0), 4, DEST) == GrantStatus.GENERAL_ERROR
    v2.one.pass_on(REF, v2.caller, v2.two, 1 << 20)
    assert v2.copy((7, DOMID_SELF, 0), (REF, v2.one.domid, 0), 4, DEST) == GrantStatus.BAD_GNTREF
    assert v2.leaves_nothing()


def test_transitive_grants_do_not_go_in_circles(v2: World) -> None:
    v2.one.pass_on(REF, v2.caller, v2.two, REF)
    v2.two.pass_on(REF, v2.one, v2.one, REF)
    assert v2.copy((REF, v2.one.domid, 0), (7, DOMID_SELF, 0), 4, SOURCE) == GrantStatus.GENERAL_ERROR
    v2.one.pass_on(REF, v2.caller, v2.one, REF)
    assert v2.copy((REF, v2.one.domid, 0), (7, DOMID_SELF, 0), 4, SOURCE) == GrantStatus.GENERAL_ERROR
    assert v2.leaves_nothing()


def test_a_transitive_grant_is_not_mapped(v2: World) -> None:
    v2.two.grant(ONWARD, v2.one, 6)
    v2.one.pass_on(REF, v2.caller, v2.two, ONWARD)
    with pytest.raises(GrantError):
        map_grant_ref(v2.caller.domain, v2.one.domid, REF)


def test_dom0_copies_from_and_to_its_own_buffers(w: World) -> None:
    w.one.grant(REF, w.caller, 5)
    copy_to(w.caller.domain, GrantEnd(w.one.domid, REF, 10), b"hello")
    into = bytearray(5)
    copy_from(w.caller.domain, GrantEnd(w.one.domid, REF, 10), memoryview(into))
    assert bytes(into) == b"hello"
    with pytest.raises(GrantError):
        copy_to(w.caller.domain, GrantEnd(w.one.domid, REF, PAGE - 1), b"ab")
    with pytest.raises(GrantError):
        copy_from(w.caller.domain, GrantEnd(w.one.domid, REF, PAGE), memoryview(into))
    assert w.one.pinned(REF) & PINNED == 0
