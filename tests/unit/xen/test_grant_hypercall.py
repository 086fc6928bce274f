"""grant_table_op as a guest issues it: what comes back, what is refused to whom, and versions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grant_guests import OUTSIDE, PAGES, PINNED, UOP, Guest, world

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.grant_table import GrantStatus, GrantTableOp
from bivisor.abi.xen.xen import DOMID_SELF
from bivisor.memory import PAGE
from bivisor.xen.grant_frames import INVALID_GFN
from bivisor.xen.grant_ops import map_grant_ref, unmap_grant_ref
from bivisor.xen.hypervisor import Xen
from bivisor.xen.table import hypercall

REF = 9
LIST = UOP + PAGE


class World:
    """Dom0 and two guests."""

    def __init__(self, xen: Xen, guests: list[Guest]) -> None:
        self.xen = xen
        self.dom0, self.one, self.two = guests


@pytest.fixture
def w() -> Iterator[World]:
    with world() as (xen, guests):
        yield World(xen, guests)


def a_map(host_addr: int, ref: int, domid: int, flags: int = abi.GNTMAP_HOST_MAP) -> bytes:
    return abi.MAP_GRANT_REF.pack(host_addr, flags, ref, domid, 99, 0xDEAD, 0)


def test_a_guest_maps_a_frame_into_its_memory_and_out_again(w: World) -> None:
    w.one.grant(REF, w.two, 5)
    result, (answer,) = w.two.op(GrantTableOp.MAP_GRANT_REF, a_map(OUTSIDE * PAGE, REF, w.one.domid))
    *_, status, handle, _ = abi.MAP_GRANT_REF.unpack(answer)
    assert (result, status) == (0, GrantStatus.OKAY)
    w.two.page(OUTSIDE)[:3] = b"two"
    assert bytes(w.one.page(5)[:3]) == b"two"

    for host_addr, bus_addr, expected in [
        ((OUTSIDE + 1) * PAGE, 0, GrantStatus.GENERAL_ERROR),
        (OUTSIDE * PAGE, 4096, GrantStatus.GENERAL_ERROR),
        (0, 0, GrantStatus.OKAY),  # which means: leave it
    ]:
        _, (answer,) = w.two.op(GrantTableOp.UNMAP_GRANT_REF, abi.UNMAP_GRANT_REF.pack(host_addr, bus_addr, handle, 99))
        assert abi.UNMAP_GRANT_REF.unpack(answer)[-1] == expected
        assert w.one.pinned(REF) == PINNED

    statuses = []
    for _ in range(2):
        _, (answer,) = w.two.op(GrantTableOp.UNMAP_GRANT_REF, abi.UNMAP_GRANT_REF.pack(OUTSIDE * PAGE, 0, handle, 99))
        statuses.append(abi.UNMAP_GRANT_REF.unpack(answer)[-1])
    assert statuses == [GrantStatus.OKAY, GrantStatus.BAD_HANDLE]
    assert w.one.pinned(REF) == 0
    assert not w.two.domain.physmap.foreign


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        (0, GrantStatus.BAD_GNTREF),
        (abi.GNTMAP_READONLY, GrantStatus.BAD_GNTREF),
        (abi.GNTMAP_DEVICE_MAP, GrantStatus.GENERAL_ERROR),
        (abi.GNTMAP_HOST_MAP | abi.GNTMAP_CONTAINS_PTE, GrantStatus.GENERAL_ERROR),
        (abi.GNTMAP_HOST_MAP | abi.GNTMAP_APPLICATION_MAP, GrantStatus.GENERAL_ERROR),
    ],
)
def test_a_guest_maps_for_its_processors_only(w: World, flags: int, status: GrantStatus) -> None:
    w.one.grant(REF, w.two, 5)
    _, (answer,) = w.two.op(GrantTableOp.MAP_GRANT_REF, a_map(OUTSIDE * PAGE, REF, w.one.domid, flags))
    assert abi.MAP_GRANT_REF.unpack(answer)[4] == status
    assert w.one.pinned(REF) == 0


def test_unmap_and_replace_replaces_nothing_in_a_translated_guest(w: World) -> None:
    w.one.grant(REF, w.two, 5)
    _, (answer,) = w.two.op(GrantTableOp.MAP_GRANT_REF, a_map(OUTSIDE * PAGE, REF, w.one.domid))
    handle = abi.MAP_GRANT_REF.unpack(answer)[5]
    statuses = []
    for new_addr, which in [(0x1000, handle), (0x1000, 1234), (0, handle)]:
        _, (answer,) = w.two.op(
            GrantTableOp.UNMAP_AND_REPLACE, abi.UNMAP_AND_REPLACE.pack(OUTSIDE * PAGE, new_addr, which, 99)
        )
        statuses.append(abi.UNMAP_AND_REPLACE.unpack(answer)[-1])
    assert statuses == [GrantStatus.GENERAL_ERROR, GrantStatus.BAD_HANDLE, GrantStatus.OKAY]
    assert w.one.pinned(REF) == 0


def test_handles_are_no_use_to_another_domain(w: World) -> None:
    w.one.grant(REF, w.two, 5)
    _, (answer,) = w.two.op(GrantTableOp.MAP_GRANT_REF, a_map(OUTSIDE * PAGE, REF, w.one.domid))
    handle = abi.MAP_GRANT_REF.unpack(answer)[5]
    _, (answer,) = w.one.op(GrantTableOp.UNMAP_GRANT_REF, abi.UNMAP_GRANT_REF.pack(OUTSIDE * PAGE, 0, handle, 99))
    assert abi.UNMAP_GRANT_REF.unpack(answer)[-1] == GrantStatus.BAD_HANDLE


@pytest.mark.parametrize("op", [*range(13), 0xFFFF_FFFF])
def test_structures_outside_the_guest_are_a_fault_and_nothing_happens(w: World, op: int) -> None:
    for uop in (PAGES * PAGE, (1 << 64) - 1, 1 << 47):
        expected = -Errno.ENOSYS if op in (3, 0xFFFF_FFFF) else -Errno.EFAULT
        assert hypercall(w.one.call, 20, (op, uop, 1)) == expected


def test_more_structures_than_sense_are_refused_and_none_are_nothing(w: World) -> None:
    for count in (1 << 31, (1 << 32) - 1):
        assert hypercall(w.one.call, 20, (GrantTableOp.COPY, UOP, count)) == -Errno.EINVAL
    assert hypercall(w.one.call, 20, (GrantTableOp.COPY, UOP, 0)) == 0


def test_setup_table_says_where_the_frames_are(w: World) -> None:
    w.one.grants.move_frame(0, w.one.page(20), 20)
    structure = abi.SETUP_TABLE.pack(DOMID_SELF, 2, 99, LIST)
    result, (answer,) = w.one.op(GrantTableOp.SETUP_TABLE, structure)
    assert (result, abi.SETUP_TABLE.unpack(answer)[2]) == (0, GrantStatus.OKAY)
    assert w.one.memory.read(LIST, 16) == (20).to_bytes(8, "little") + INVALID_GFN.to_bytes(8, "little")
    assert w.one.grants.nr_frames == 2


@pytest.mark.parametrize(
    ("domid", "frames", "address", "status"),
    [
        (DOMID_SELF, 65, LIST, GrantStatus.GENERAL_ERROR),
        (DOMID_SELF, (1 << 32) - 1, LIST, GrantStatus.GENERAL_ERROR),
        (DOMID_SELF, 1, PAGES * PAGE, GrantStatus.BAD_VIRT_ADDR),
        (2, 1, LIST, GrantStatus.PERMISSION_DENIED),
        (0, 1, LIST, GrantStatus.PERMISSION_DENIED),
        (77, 1, LIST, GrantStatus.BAD_DOMAIN),
    ],
)
def test_setup_table_refuses(w: World, domid: int, frames: int, address: int, status: GrantStatus) -> None:
    _, (answer,) = w.one.op(GrantTableOp.SETUP_TABLE, abi.SETUP_TABLE.pack(domid, frames, 99, address))
    assert abi.SETUP_TABLE.unpack(answer)[2] == status


def test_only_a_privileged_domain_asks_about_another(w: World) -> None:
    for guest, expected in [(w.dom0, GrantStatus.OKAY), (w.one, GrantStatus.PERMISSION_DENIED)]:
        _, (answer,) = guest.op(GrantTableOp.QUERY_SIZE, abi.QUERY_SIZE.pack(w.two.domid, 0, 0, 99))
        *_, frames, limit, status = abi.QUERY_SIZE.unpack(answer)
        assert status == expected
        assert expected or (frames, limit) == (1, 64)
    assert w.one.op(GrantTableOp.GET_VERSION, abi.GET_VERSION.pack(w.two.domid, 0))[0] == -Errno.EPERM
    result, (answer,) = w.dom0.op(GrantTableOp.GET_VERSION, abi.GET_VERSION.pack(w.two.domid, 0))
    assert (result, abi.GET_VERSION.unpack(answer)) == (0, (w.two.domid, 1))
    assert w.dom0.op(GrantTableOp.GET_VERSION, abi.GET_VERSION.pack(77, 0))[0] == -Errno.ESRCH


def set_version(guest: Guest, version: int) -> tuple[int, int]:
    result, (answer,) = guest.op(GrantTableOp.SET_VERSION, abi.SET_VERSION.pack(version))
    return result, abi.SET_VERSION.unpack(answer)[0]


def test_the_version_changes_and_the_guest_learns_which_it_has(w: World) -> None:
    assert set_version(w.one, 2) == (0, 2)
    assert set_version(w.one, 2) == (0, 2)
    assert set_version(w.one, 3) == (-Errno.EINVAL, 2)
    assert set_version(w.one, 1) == (0, 1)


def test_the_version_stays_while_an_entry_is_mapped(w: World) -> None:
    w.one.grant(REF, w.dom0, 5)
    mapping = map_grant_ref(w.dom0.domain, w.one.domid, REF)
    assert set_version(w.one, 2) == (-Errno.EBUSY, 1)
    unmap_grant_ref(w.dom0.domain, mapping.handle)
    assert set_version(w.one, 2) == (0, 2)


def test_the_reserved_entries_outlive_a_change_of_version_even_mapped_and_others_do_not(w: World) -> None:
    w.one.grant(abi.RESERVED_CONSOLE, w.dom0, 3)
    w.one.grant(abi.RESERVED_XENSTORE, w.dom0, 4)
    w.one.grant(REF, w.dom0, 5)
    mapping = map_grant_ref(w.dom0.domain, w.one.domid, abi.RESERVED_CONSOLE)
    for version in (2, 1, 2):
        assert set_version(w.one, version) == (0, version)
        assert (w.one.pinned(0), w.one.pinned(1), w.one.pinned(REF)) == (PINNED, 0, 0)
        store = map_grant_ref(w.dom0.domain, w.one.domid, abi.RESERVED_XENSTORE)
        store.view[0] = version
        assert w.one.page(4)[0] == version
        unmap_grant_ref(w.dom0.domain, store.handle)
    unmap_grant_ref(w.dom0.domain, mapping.handle)
    assert w.one.pinned(0) == 0
    _, (answer,) = w.dom0.op(
        GrantTableOp.COPY, abi.COPY.pack(REF, w.one.domid, 0, 7, DOMID_SELF, 0, 1, abi.GNTCOPY_SOURCE_GREF, 99)
    )
    assert abi.COPY.unpack(answer)[-1] == GrantStatus.GENERAL_ERROR


def test_a_reserved_entry_that_version_1_cannot_say_keeps_version_2(w: World) -> None:
    set_version(w.one, 2)
    w.one.grant(0, w.dom0, 1 << 32)
    assert set_version(w.one, 1) == (-Errno.ERANGE, 2)
    w.one.pass_on(0, w.dom0, w.two, 3)
    assert set_version(w.one, 1) == (-Errno.ERANGE, 2)


def test_a_table_that_knows_only_version_1_behaves_as_before_there_were_others(w: World) -> None:
    w.one.grants.max_version = 1
    assert set_version(w.one, 2)[0] == -Errno.ENOSYS


def test_status_frames_exist_in_version_2(w: World) -> None:
    structure = abi.GET_STATUS_FRAMES.pack(1, DOMID_SELF, 99, LIST)
    _, (answer,) = w.one.op(GrantTableOp.GET_STATUS_FRAMES, structure)
    assert abi.GET_STATUS_FRAMES.unpack(answer)[2] == GrantStatus.GENERAL_ERROR
    set_version(w.one, 2)
    w.one.grants.move_status_frame(0, w.one.page(21), 21)
    _, (answer,) = w.one.op(GrantTableOp.GET_STATUS_FRAMES, structure)
    assert abi.GET_STATUS_FRAMES.unpack(answer)[2] == GrantStatus.OKAY
    assert w.one.memory.read_u64(LIST) == 21


def test_two_entries_change_places_unless_they_are_mapped(w: World) -> None:
    for version in (1, 2):
        set_version(w.one, version)
        w.one.grant(REF, w.dom0, 5)
        w.one.grant(REF + 1, w.two, 6)
        swap = abi.SWAP_GRANT_REF.pack(REF, REF + 1, 99)
        bad = abi.SWAP_GRANT_REF.pack(REF, 1 << 20, 99)
        _, answers = w.one.op(GrantTableOp.SWAP_GRANT_REF, swap, bad)
        assert [abi.SWAP_GRANT_REF.unpack(answer)[2] for answer in answers] == [0, GrantStatus.BAD_GNTREF]
        mapping = map_grant_ref(w.dom0.domain, w.one.domid, REF + 1)
        _, (answer,) = w.one.op(GrantTableOp.SWAP_GRANT_REF, swap)
        assert abi.SWAP_GRANT_REF.unpack(answer)[2] == GrantStatus.EAGAIN
        unmap_grant_ref(w.dom0.domain, mapping.handle)


def test_frames_are_not_transferred_between_translated_guests(w: World) -> None:
    _, (answer,) = w.one.op(GrantTableOp.TRANSFER, abi.TRANSFER.pack(5, w.two.domid, REF, 99))
    assert abi.TRANSFER.unpack(answer)[-1] == GrantStatus.BAD_PAGE


@pytest.mark.parametrize(
    ("address", "offset", "length", "op", "result"),
    [
        (5 * PAGE, 0, PAGE, abi.CACHE_CLEAN | abi.CACHE_INVAL, 0),
        (5 * PAGE, 0, 0, abi.CACHE_CLEAN, 0),
        (5 * PAGE, 1, PAGE, abi.CACHE_CLEAN, -Errno.EINVAL),
        (5 * PAGE, 0, 8, 1 << 5, -Errno.EINVAL),
        (5 * PAGE, 0, 8, abi.CACHE_SOURCE_GREF, -Errno.EOPNOTSUPP),
        (PAGES * PAGE, 0, 8, abi.CACHE_CLEAN, -Errno.EINVAL),
    ],
)
def test_cache_flush_checks_its_arguments_and_has_nothing_to_do(
    w: World, address: int, offset: int, length: int, op: int, result: int
) -> None:
    structure = abi.CACHE_FLUSH.pack(address, offset, length, op)
    assert w.one.op(GrantTableOp.CACHE_FLUSH, structure)[0] == result


def test_structures_have_the_sizes_of_the_abi() -> None:
    sizes = [
        layout.size
        for layout in (
            abi.MAP_GRANT_REF, abi.UNMAP_GRANT_REF, abi.SETUP_TABLE, abi.DUMP_TABLE, abi.TRANSFER, abi.COPY,
            abi.QUERY_SIZE, abi.UNMAP_AND_REPLACE, abi.SET_VERSION, abi.GET_STATUS_FRAMES, abi.GET_VERSION,
            abi.SWAP_GRANT_REF, abi.CACHE_FLUSH, abi.GRANT_ENTRY_V1, abi.GRANT_ENTRY_V2_FULL_PAGE,
            abi.GRANT_ENTRY_V2_SUB_PAGE, abi.GRANT_ENTRY_V2_TRANSITIVE,
        )
    ]  # fmt: skip
    assert sizes == [32, 24, 24, 4, 24, 40, 16, 24, 4, 16, 8, 12, 16, 8, 16, 16, 16]
