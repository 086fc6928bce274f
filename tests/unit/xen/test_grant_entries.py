"""Entries that the guest changes at the very moment at which the hypervisor pins them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bivisor.abi.xen import grant_table as abi
from bivisor.memory import PAGE
from bivisor.memory.atomics import atomics
from bivisor.xen.errors import GrantError
from bivisor.xen.grant_entries import RETRIES, EntriesV1, EntriesV2
from bivisor.xen.grant_frames import TableFrames

DOMID, REF = 3, 9
V1, V2 = abi.GRANT_ENTRY_V1, abi.GRANT_ENTRY_V2_FULL_PAGE


class Race:
    """A table whose guest does `meanwhile` just before each compare-and-exchange; `tries` counts them."""

    def __init__(self, meanwhile: Callable[[Race], None]) -> None:
        self.tries = 0
        self.shared, self.status = TableFrames(), TableFrames()
        self.shared.grow(1)
        self.status.grow(1)

        def cmpxchg(address: int, expected: int, new: int) -> int:
            self.tries += 1
            meanwhile(self)
            return atomics().cmpxchg_u32(address, expected, new)

        racing = replace(atomics(), cmpxchg_u32=cmpxchg)
        self.v1 = EntriesV1(self.shared, racing)
        self.v2 = EntriesV2(self.shared, self.status, racing)

    def write_v1(self, flags: int, domid: int = DOMID, gfn: int = 5) -> None:
        V1.pack_into(self.shared[0].view, REF * V1.size, flags, domid, gfn)

    def write_v2(self, flags: int, domid: int = DOMID, gfn: int = 5) -> None:
        V2.pack_into(self.shared[0].view, REF * V2.size, flags, domid, gfn)

    @property
    def flags_v1(self) -> int:
        flags: int = V1.unpack_from(self.shared[0].view, REF * V1.size)[0]
        return flags


def test_an_entry_that_changes_once_is_pinned_as_it_is_then() -> None:
    race = Race(lambda race: race.write_v1(abi.GTF_PERMIT_ACCESS | abi.GTF_PWT) if race.tries == 1 else None)
    race.write_v1(abi.GTF_PERMIT_ACCESS)
    race.v1.pin(REF, DOMID, readonly=True, pinned=False, mapping=True)
    assert race.flags_v1 == abi.GTF_PERMIT_ACCESS | abi.GTF_PWT | abi.GTF_READING
    assert race.tries == 2


@pytest.mark.parametrize(
    ("flags", "domid"),
    [(abi.GTF_INVALID, DOMID), (abi.GTF_PERMIT_ACCESS, 4), (abi.GTF_PERMIT_ACCESS | abi.GTF_READONLY, DOMID)],
    ids=["revoked", "granted to another", "made read-only"],
)
def test_an_entry_that_is_taken_back_at_that_moment_is_not_pinned(flags: int, domid: int) -> None:
    race = Race(lambda race: race.write_v1(flags, domid))
    race.write_v1(abi.GTF_PERMIT_ACCESS)
    with pytest.raises(GrantError):
        race.v1.pin(REF, DOMID, readonly=False, pinned=False, mapping=True)
    assert race.flags_v1 == flags

    race = Race(lambda race: race.write_v2(flags, domid))
    race.write_v2(abi.GTF_PERMIT_ACCESS)
    with pytest.raises(GrantError):
        race.v2.pin(REF, DOMID, readonly=False, pinned=False, mapping=True)
    assert bytes(race.status[0].view) == bytes(PAGE)


def test_an_entry_that_never_stands_still_is_given_up() -> None:
    race = Race(lambda race: race.write_v1(abi.GTF_PERMIT_ACCESS | race.tries % 2 * abi.GTF_PWT, gfn=race.tries))
    race.write_v1(abi.GTF_PERMIT_ACCESS)
    with pytest.raises(GrantError):
        race.v1.pin(REF, DOMID, readonly=False, pinned=False, mapping=True)
    assert race.tries == RETRIES
    assert not race.flags_v1 & abi.GTF_READING


def test_a_writer_that_is_refused_leaves_the_readers_status() -> None:
    race = Race(lambda race: race.write_v2(abi.GTF_PERMIT_ACCESS | abi.GTF_READONLY) if race.tries == 2 else None)
    race.write_v2(abi.GTF_PERMIT_ACCESS)
    race.v2.pin(REF, DOMID, readonly=True, pinned=False, mapping=True)
    with pytest.raises(GrantError):
        race.v2.pin(REF, DOMID, readonly=False, pinned=True, mapping=True)
    assert race.status[0].halves[REF] == abi.GTF_READING


def test_unpinning_leaves_everything_else_of_an_entry() -> None:
    race = Race(lambda _: None)
    race.write_v1(abi.GTF_PERMIT_ACCESS | abi.GTF_READING | abi.GTF_WRITING | abi.GTF_PCD, 0xABCD, 0xDEADBEEF)
    race.v1.unpin(REF, abi.GTF_READING)
    assert V1.unpack_from(race.shared[0].view, REF * V1.size) == (
        abi.GTF_PERMIT_ACCESS | abi.GTF_WRITING | abi.GTF_PCD, 0xABCD, 0xDEADBEEF,
    )  # fmt: skip
