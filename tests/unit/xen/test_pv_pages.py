"""Page types: a PV guest never holds a writable mapping of a page table or descriptors, whatever it asks for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pv_guests import FRAMES, PS, RW, SLOTS, US, P, Table

from bivisor.abi.xen.errno import Errno
from bivisor.xen.errors import XenError
from bivisor.xen.pv.pages import DESCRIPTORS, L1, L2, L4, NONE, WRITABLE, Pages

ROOT, LEAF, PAGE_40 = 1, 4, 40


def refused(errno: Errno) -> pytest.RaisesExc[XenError]:
    return pytest.raises(XenError, check=lambda error: error.errno == errno)


def test_a_pinned_tree_has_types_all_the_way_down_and_none_when_it_is_unpinned() -> None:
    table = Table()
    table.pages.pin(table.tree(), L4)
    assert list(table.pages.kind[1:5]) == [L4, 3, L2, L1]
    assert (table.pages.kind[PAGE_40], table.pages.count[PAGE_40]) == (WRITABLE, 1)
    assert tuple(table.words[ROOT << 9 | 256 : ROOT << 9 | 258]) == SLOTS
    table.pages.unpin(ROOT)
    assert set(table.pages.kind) == {NONE}
    assert not any(table.pages.count)


@pytest.mark.parametrize("own", [1, 2, 3, 4])
def test_page_tables_that_map_themselves_writable_are_refused(own: int) -> None:
    table = Table()
    table.tree(leaf=own << 12 | P | RW)
    with refused(Errno.EBUSY):
        table.pages.pin(ROOT, L4)
    assert not any(table.pages.count)


def test_page_tables_may_map_themselves_read_only() -> None:
    table = Table()
    table.pages.pin(table.tree(leaf=LEAF << 12 | P), L4)
    with refused(Errno.EBUSY):
        table.pages.update(LEAF << 12, LEAF << 12 | P | RW, False)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_pin_of_the_wrong_kind_is_refused(level: int) -> None:
    table = Table()
    table.pages.pin(table.tree(), L4)
    with refused(Errno.EINVAL):
        table.pages.pin(ROOT, level)
    with refused(Errno.EINVAL):
        table.pages.pin(PAGE_40, level)  # it is mapped writable
    with refused(Errno.EINVAL):
        table.pages.pin(ROOT, L4)  # twice
    with refused(Errno.EINVAL):
        table.pages.unpin(2)


@pytest.mark.parametrize(
    "entry",
    [FRAMES << 12 | P, 1 << 45 | P | RW, 41 << 12 | P | PS, 41 << 12 | P | 1 << 62, 999 << 12 | P],
    ids=["behind the memory", "far away", "large", "reserved bit", "not shared"],
)
def test_foreign_and_out_of_range_frames_are_refused_at_every_level(entry: int) -> None:
    table = Table()
    table.pages.pin(table.tree(), L4)
    for mfn in (ROOT, 2, 3, LEAF):
        beyond = mfn == LEAF and entry & ~0xFFF >= FRAMES << 12 and not entry >> 62  # it could be a device's
        with refused(Errno.EPERM if beyond else Errno.EINVAL):
            table.pages.update(mfn << 12 | 8, entry, False)
    with refused(Errno.EINVAL):
        table.pages.update(entry & ~0xFFF, 0, False) if entry >> 12 >= FRAMES else table.pages.update(1 << 50, 0, False)


def test_a_shared_frame_can_be_mapped() -> None:
    table = Table()
    table.pages.pin(table.tree(), L4)
    table.pages.update(LEAF << 12 | 8, 1000 << 12 | P | RW, False)


def test_the_hypervisors_slots_and_the_users_right_to_the_kernels_half_are_not_the_guests() -> None:
    table = Table()
    table.pages.pin(table.tree(), L4)
    with refused(Errno.EINVAL):
        table.pages.update(ROOT << 12 | 8 * 257, 2 << 12 | P, False)
    table.pages.update(ROOT << 12 | 8 * 511, 2 << 12 | P | RW | US, False)
    assert not table.words[ROOT << 9 | 511] & US


@pytest.mark.parametrize(
    "descriptor",
    [
        0x0000_8E00_0008_0000,
        0x0000_EC00_E008_0000,
        0x0000_EC01_0008_0000,
        0x0000_E500_0008_0000,
        0x0000_8900_0000_0067,
        0x0000_8200_0000_0067,
    ],
    ids=["interrupt gate", "call gate to the hypervisor", "call gate with words", "task gate", "state", "local table"],
)
def test_descriptors_that_could_lead_to_ring_0_are_refused(descriptor: int) -> None:
    table = Table()
    with refused(Errno.EINVAL):
        table.pages.update_descriptor(30 << 12, descriptor)
    table.put(30, 5, descriptor)
    with refused(Errno.EINVAL):
        table.pages.get(30, DESCRIPTORS)


def test_a_call_gate_leads_to_programs_code() -> None:
    table = Table()
    for selector, becomes in ((0x0008, 0x000B), (0xE030, 0xE033)):
        table.pages.update_descriptor(30 << 12, 0x0000_EC00_0000_0000 | selector << 16)
        assert table.words[30 << 9] == 0x0000_EC00_0000_0000 | becomes << 16


def test_descriptors_are_for_programs_and_their_page_cannot_be_written() -> None:
    table = Table()
    table.put(30, 1, 0x00AF_9A00_0000_FFFF)
    table.pages.get(30, DESCRIPTORS)
    assert table.words[30 << 9 | 1] == 0x00AF_FB00_0000_FFFF
    table.pages.pin(table.tree(), L4)
    with refused(Errno.EBUSY):
        table.pages.update(LEAF << 12 | 8, 30 << 12 | P | RW, False)
    with refused(Errno.EINVAL):
        table.pages.update(30 << 12, 0, False)


frame = st.integers(0, 9)
entry = st.builds(
    lambda mfn, flags: mfn << 12 | flags, st.integers(0, 11), st.sampled_from([0, P, P | RW, P | RW | US])
)
step = st.one_of(
    st.tuples(st.just("write"), frame, st.integers(0, 3), entry),
    st.tuples(st.just("update"), frame, st.integers(0, 3), entry),
    st.tuples(st.just("pin"), frame, st.integers(1, 4), st.just(0)),
    st.tuples(st.just("unpin"), frame, st.just(0), st.just(0)),
)


def mapped_writable(pages: Pages) -> dict[int, int]:
    found: dict[int, int] = {}
    for mfn in range(10):
        if pages.kind[mfn] == L1:
            for slot in range(512):
                value = pages.words[mfn << 9 | slot]
                if value & 3 == 3:
                    found[value >> 12] = found.get(value >> 12, 0) + 1
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(step, max_size=40))
def test_no_order_of_operations_gives_a_writable_mapping_of_a_table(steps: list[tuple[str, int, int, int]]) -> None:
    table = Table()
    pages = table.pages
    for op, mfn, where, value in steps:
        try:
            match op:
                case "write" if pages.kind[mfn] in (NONE, WRITABLE):  # what the guest can do itself
                    table.put(mfn, where, value)
                case "update":
                    pages.update(mfn << 12 | 8 * where, value, False)
                case "pin":
                    pages.pin(mfn, where)
                case "unpin":
                    pages.unpin(mfn)
        except XenError:
            pass
        for mapped, count in mapped_writable(pages).items():
            assert (pages.kind[mapped], pages.count[mapped]) == (WRITABLE, count)
    for mfn in list(pages.pinned):
        pages.unpin(mfn)
    assert not any(pages.count)
