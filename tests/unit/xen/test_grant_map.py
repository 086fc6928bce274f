"""Mapping grants: who may map what, that it is the same memory, and what is left afterwards."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from grant_guests import OUTSIDE, PAGES, PINNED, Guest, world

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.grant_table import GrantStatus
from bivisor.memory import PAGE
from bivisor.xen.domain import State
from bivisor.xen.errors import GrantError, XenError
from bivisor.xen.grant_ops import map_grant_ref, map_grant_refs, unmap_grant_ref
from bivisor.xen.grant_table import PIN_LIMIT
from bivisor.xen.hypervisor import Xen
from bivisor.xen.maptrack import ENTRIES_PER_FRAME

REF = 9


class World:
    """Dom0 and two guests, the first of which grants."""

    def __init__(self, xen: Xen, guests: list[Guest]) -> None:
        self.xen = xen
        self.dom0, self.granter, self.other = guests


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def w(request: pytest.FixtureRequest) -> Iterator[World]:
    with world() as (xen, guests):
        for guest in guests:
            guest.grants.set_version(request.param)
        yield World(xen, guests)


def refused(status: GrantStatus) -> pytest.RaisesExc[GrantError]:
    return pytest.RaisesExc(GrantError, check=lambda error: error.status is status)


def test_a_mapped_frame_is_the_same_memory(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    mapping = map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    mapping.view[:4] = b"dom0"
    assert bytes(w.granter.page(5)[:4]) == b"dom0"
    w.granter.page(5)[4:8] = b"domu"
    assert bytes(mapping.view[:8]) == b"dom0domu"


def test_the_entry_says_that_it_is_mapped_until_it_is_not(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    mapping = map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    assert w.granter.pinned(REF) == PINNED
    assert not w.granter.revoke(REF)
    unmap_grant_ref(w.dom0.domain, mapping.handle)
    assert w.granter.pinned(REF) == 0
    assert not w.granter.domain.references


def test_a_read_only_mapping_cannot_be_written(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5, abi.GTF_READONLY)
    mapping = map_grant_ref(w.dom0.domain, w.granter.domid, REF, readonly=True)
    assert w.granter.pinned(REF) == abi.GTF_READING
    with pytest.raises(TypeError):
        mapping.view[0] = 1


def test_a_read_only_grant_is_not_mapped_for_writing(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5, abi.GTF_READONLY)
    with refused(GrantStatus.GENERAL_ERROR):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    map_grant_ref(w.dom0.domain, w.granter.domid, REF, readonly=True)
    with refused(GrantStatus.GENERAL_ERROR):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    assert w.granter.pinned(REF) == abi.GTF_READING


def test_the_writing_flag_goes_with_the_last_writer_and_the_reading_flag_with_the_last_of_all(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    handles = [
        map_grant_ref(w.dom0.domain, w.granter.domid, REF, readonly=readonly).handle
        for readonly in (True, False, False, True)
    ]
    seen = []
    for i in (1, 0, 2, 3):
        unmap_grant_ref(w.dom0.domain, handles[i])
        seen.append(w.granter.pinned(REF))
    assert seen == [PINNED, PINNED, abi.GTF_READING, 0]


def test_nobody_maps_what_was_granted_to_another(w: World) -> None:
    w.granter.grant(REF, w.other, 5)
    with refused(GrantStatus.GENERAL_ERROR):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    map_grant_ref(w.other.domain, w.granter.domid, REF)
    with refused(GrantStatus.GENERAL_ERROR):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)


@pytest.mark.parametrize(
    "flags", [abi.GTF_INVALID, abi.GTF_ACCEPT_TRANSFER, abi.GTF_TRANSITIVE, abi.GTF_PERMIT_ACCESS | abi.GTF_SUB_PAGE]
)
def test_only_grants_of_whole_frames_are_mapped(w: World, flags: int) -> None:
    entry = abi.GRANT_ENTRY_V1 if w.granter.grants.version == 1 else abi.GRANT_ENTRY_V2_FULL_PAGE
    w.granter.write_entry(REF, entry.pack(flags, w.dom0.domid, 5))
    with refused(GrantStatus.GENERAL_ERROR):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    assert w.granter.pinned(REF) == 0


def test_a_reference_past_the_table_is_refused(w: World) -> None:
    for ref in (w.granter.grants.nr_entries, 1 << 31, (1 << 32) - 1):
        with refused(GrantStatus.BAD_GNTREF):
            map_grant_ref(w.dom0.domain, w.granter.domid, ref)


def test_a_frame_that_the_granter_does_not_have_is_refused(w: World) -> None:
    for gfn in (PAGES, (1 << 32) - 1):
        w.granter.grant(REF, w.dom0, gfn)
        with refused(GrantStatus.BAD_PAGE):
            map_grant_ref(w.dom0.domain, w.granter.domid, REF)
        assert w.granter.pinned(REF) == 0


def test_a_frame_that_was_ballooned_out_is_refused(w: World) -> None:
    w.granter.domain.release(5, 1)
    w.granter.grant(REF, w.dom0, 5)
    with refused(GrantStatus.BAD_PAGE):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)


def test_a_frame_outside_the_granters_own_ram_is_refused(w: World) -> None:
    w.granter.domain.frame_for(PAGES + 7)  # stands for what another granted to it
    w.granter.grant(REF, w.dom0, PAGES + 7)
    with refused(GrantStatus.BAD_PAGE):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)


def test_an_unknown_domain_is_refused(w: World) -> None:
    for domid in (77, 0x7FF0, 0x7FF2, 0xFFFF):
        with refused(GrantStatus.BAD_DOMAIN):
            map_grant_ref(w.dom0.domain, domid, REF)


def test_a_revoked_grant_is_refused_and_a_changed_frame_does_not_change_a_mapping(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    first = map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    w.granter.page(5)[0] = 55
    w.granter.grant(REF, w.dom0, 6)  # which a guest must not do, and nothing stops it from doing
    again = map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    assert again.view[0] == 55
    unmap_grant_ref(w.dom0.domain, first.handle)
    unmap_grant_ref(w.dom0.domain, again.handle)
    assert w.granter.revoke(REF)
    with refused(GrantStatus.GENERAL_ERROR):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)


def test_the_view_of_a_mapping_that_is_gone_is_unusable(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    mapping = map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    unmap_grant_ref(w.dom0.domain, mapping.handle)
    with pytest.raises(ValueError, match="released"):
        mapping.view[0]


def test_a_mapping_in_use_by_the_host_is_not_unmapped(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    mapping = map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    user = struct.iter_unpack("Q", mapping.view)
    with refused(GrantStatus.GENERAL_ERROR):
        unmap_grant_ref(w.dom0.domain, mapping.handle)
    assert w.granter.pinned(REF) == PINNED
    del user
    unmap_grant_ref(w.dom0.domain, mapping.handle)


def test_a_stale_handle_is_refused_and_not_given_again_soon(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    stale = map_grant_ref(w.dom0.domain, w.granter.domid, REF).handle
    unmap_grant_ref(w.dom0.domain, stale)
    fresh = {map_grant_ref(w.dom0.domain, w.granter.domid, REF, readonly=True).handle for _ in range(PIN_LIMIT)}
    assert stale not in fresh
    for handle in (stale, -1, 1 << 31, (1 << 32) - 1):
        with refused(GrantStatus.BAD_HANDLE):
            unmap_grant_ref(w.dom0.domain, handle)


def test_the_handle_table_does_not_grow_with_use(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    handles = set()
    for _ in range(3 * ENTRIES_PER_FRAME):
        handle = map_grant_ref(w.dom0.domain, w.granter.domid, REF).handle
        unmap_grant_ref(w.dom0.domain, handle)
        handles.add(handle)
    assert len(handles) == ENTRIES_PER_FRAME
    assert len(w.dom0.grants.maptrack) == 0


def test_handles_are_limited(w: World) -> None:
    w.dom0.grants.maptrack.limit = 2
    w.granter.grant(REF, w.dom0, 5)
    first = map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    with refused(GrantStatus.NO_SPACE):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    unmap_grant_ref(w.dom0.domain, first.handle)
    map_grant_ref(w.dom0.domain, w.granter.domid, REF)


def test_one_entry_is_mapped_a_limited_number_of_times(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    for _ in range(PIN_LIMIT):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    with refused(GrantStatus.GENERAL_ERROR):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    map_grant_ref(w.dom0.domain, w.granter.domid, REF, readonly=True)


def test_a_domain_that_dies_stays_until_what_it_granted_is_unmapped(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    mapping = map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    w.xen.destroy(w.granter.domain)
    assert w.granter.domain.state == State.DYING
    mapping.view[0] = 1
    with refused(GrantStatus.GENERAL_ERROR):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    unmap_grant_ref(w.dom0.domain, mapping.handle)
    assert w.granter.domid not in w.xen.domains
    with refused(GrantStatus.BAD_DOMAIN):
        map_grant_ref(w.dom0.domain, w.granter.domid, REF)


def test_what_a_dying_domain_had_mapped_is_released(w: World) -> None:
    w.granter.grant(REF, w.other, 5)
    for _ in range(3):
        map_grant_ref(w.other.domain, w.granter.domid, REF)
    w.xen.destroy(w.other.domain)
    assert w.other.domain.state is State.GONE
    assert w.granter.pinned(REF) == 0
    assert not w.granter.domain.references
    with refused(GrantStatus.GENERAL_ERROR):
        map_grant_ref(w.other.domain, w.granter.domid, REF)


def test_two_domains_that_map_each_other_both_go(w: World) -> None:
    w.granter.grant(REF, w.other, 5)
    w.other.grant(REF, w.granter, 6)
    map_grant_ref(w.other.domain, w.granter.domid, REF)
    map_grant_ref(w.granter.domain, w.other.domid, REF)
    w.xen.destroy(w.granter.domain)
    assert w.granter.domain.state is State.DYING
    w.xen.destroy(w.other.domain)
    assert not {w.granter.domid, w.other.domid} & w.xen.domains.keys()


def test_a_domain_may_map_its_own_grant_and_die_with_it(w: World) -> None:
    w.granter.grant(REF, w.granter, 5)
    map_grant_ref(w.granter.domain, w.granter.domid, REF)
    w.xen.destroy(w.granter.domain)
    assert w.granter.domain.state is State.GONE


def test_the_granters_engine_learns_that_a_mapped_frame_may_have_been_written(w: World) -> None:
    written: list[tuple[int, int]] = []
    w.granter.memory.listen(lambda gpa, length: written.append((gpa, length)))
    w.granter.grant(REF, w.dom0, 5)
    for readonly in (True, False):
        unmap_grant_ref(w.dom0.domain, map_grant_ref(w.dom0.domain, w.granter.domid, REF, readonly=readonly).handle)
    assert written == [(5 * PAGE, PAGE)]


def test_a_frame_that_cannot_be_mapped_into_the_guest_leaves_nothing_behind(w: World) -> None:
    w.granter.grant(REF, w.other, 5)
    map_grant_ref(w.other.domain, w.granter.domid, REF, gfn=OUTSIDE)
    with refused(GrantStatus.GENERAL_ERROR):
        map_grant_ref(w.other.domain, w.granter.domid, REF, gfn=OUTSIDE, readonly=True)
    w.xen.destroy(w.other.domain)
    assert not w.other.domain.physmap.foreign
    assert w.granter.pinned(REF) == 0


def test_frames_of_the_table_live_in_the_guest_once_it_has_put_them_there(w: World) -> None:
    w.granter.grant(REF, w.dom0, 5)
    w.granter.grants.move_frame(0, w.granter.page(20), 20)
    if w.granter.grants.version == 2:
        w.granter.grants.move_status_frame(0, w.granter.page(21), 21)
    mapping = map_grant_ref(w.dom0.domain, w.granter.domid, REF)
    at = (20 * PAGE + 8 * REF) if w.granter.grants.version == 1 else (21 * PAGE + 2 * REF)
    assert w.granter.memory.read(at, 1)[0] & PINNED == PINNED
    w.granter.grants.reclaim(20)
    w.granter.grants.reclaim(21)
    w.granter.page(20)[:] = w.granter.page(21)[:] = b"\xff" * PAGE
    unmap_grant_ref(w.dom0.domain, mapping.handle)
    assert w.granter.pinned(REF) == 0
    assert w.granter.page(20) == b"\xff" * PAGE


def test_a_table_grows_to_its_limit_and_no_further(w: World) -> None:
    w.granter.grants.grow(64)
    assert w.granter.grants.nr_status_frames == (0 if w.granter.grants.version == 1 else 8)
    with pytest.raises(XenError):
        w.granter.grants.grow(65)
    with pytest.raises(XenError):
        w.granter.grants.move_frame(64, w.granter.page(20))
    ref = w.granter.grants.nr_entries - 1
    w.granter.grant(ref, w.dom0, 5)
    map_grant_ref(w.dom0.domain, w.granter.domid, ref)
    assert w.granter.pinned(ref) == PINNED


def test_a_grant_that_is_revoked_while_it_is_being_mapped_is_not_mapped(w: World) -> None:
    for ref in (REF, REF + 1):
        w.granter.grant(ref, w.dom0, 5)
    w.granter.domain.quiesce = lambda: w.granter.write_entry(REF, bytes(8 if w.granter.grants.version == 1 else 16))
    for refs in ([REF], [REF + 1, REF]):
        w.granter.grant(REF, w.dom0, 5)
        with refused(GrantStatus.GENERAL_ERROR):
            map_grant_refs(w.dom0.domain, w.granter.domid, refs)
        assert not w.granter.grants.in_use
        assert not w.dom0.grants.maptrack
        assert w.granter.pinned(REF + 1) == 0
    assert map_grant_ref(w.dom0.domain, w.granter.domid, REF + 1)


def test_the_granter_is_asked_to_stand_still_once_for_all_that_is_mapped_for_the_first_time(w: World) -> None:
    asked: list[None] = []
    w.granter.domain.quiesce = lambda: asked.append(None)
    for ref in range(8, 12):
        w.granter.grant(ref, w.dom0, 5)
    map_grant_refs(w.dom0.domain, w.granter.domid, range(8, 12))
    assert len(asked) == 1
    map_grant_ref(w.dom0.domain, w.granter.domid, 8)
    assert len(asked) == 1
