"""Frames of others in a guest's own address space, against a model: any order of map, unmap, balloon and death.

After each step a mapped frame is the granter's memory, whoever writes it; a frame number where nothing is mapped is
nobody's; and at the end every descriptor is given back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from grant_guests import OUTSIDE, PAGES, PINNED, Guest, world
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bivisor.abi.xen.grant_table import GrantStatus
from bivisor.memory import PAGE, GuestMemory
from bivisor.xen.domain import State
from bivisor.xen.errors import GrantError
from bivisor.xen.grant_ops import map_grant_ref, unmap_grant_ref
from bivisor.xen.hypervisor import Xen
from bivisor.xen.maptrack import Mapping
from bivisor.xen.physmap import MAX_WINDOWS

REF = 9
WHO = st.integers(0, 2)
PLACES = st.sampled_from(
    [20, 21, 22, 0xFEDFF, 0xFEE01, OUTSIDE, OUTSIDE + 1, OUTSIDE + 511, OUTSIDE + 512, PAGES, (1 << 21) - 1]
)
"""Three frames of RAM, and frame numbers outside it."""


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    with world() as (_, made):
        yield made


def test_both_domains_see_what_either_writes(guests: list[Guest]) -> None:
    _, one, two = guests
    one.grant(REF, two, 5)
    map_grant_ref(two.domain, one.domid, REF, gfn=OUTSIDE)
    two.page(OUTSIDE)[:3] = b"two"
    assert bytes(one.page(5)[:3]) == b"two"
    one.page(5)[:3] = b"one"
    assert bytes(two.page(OUTSIDE)[:3]) == b"one"


def test_what_is_written_to_a_read_only_grant_does_not_reach_the_granter(guests: list[Guest]) -> None:
    _, one, two = guests
    one.grant(REF, two, 5)
    one.page(5)[:3] = b"one"
    map_grant_ref(two.domain, one.domid, REF, gfn=OUTSIDE, readonly=True)
    assert bytes(two.page(OUTSIDE)[:3]) == b"one"
    two.page(OUTSIDE)[:3] = b"two"
    assert bytes(one.page(5)[:3]) == b"one"


@pytest.mark.parametrize("gfn", [5, PAGES - 1, 0xFEE00, 1 << 21, 1 << 28, (1 << 52) - 1])
def test_a_frame_is_not_mapped_over_the_guests_own_memory_or_where_no_guest_can_look(
    guests: list[Guest], gfn: int
) -> None:
    _, one, two = guests
    one.grant(REF, two, 5)
    with pytest.raises(GrantError) as caught:
        map_grant_ref(two.domain, one.domid, REF, gfn=gfn)
    assert caught.value.status is GrantStatus.GENERAL_ERROR
    assert one.pinned(REF) == 0


def test_what_is_mapped_is_not_the_mappers_to_give_away(guests: list[Guest]) -> None:
    dom0, one, two = guests
    one.grant(REF, two, 5)
    map_grant_ref(two.domain, one.domid, REF, gfn=OUTSIDE)
    two.grant(REF, dom0, OUTSIDE)
    with pytest.raises(GrantError) as caught:
        map_grant_ref(dom0.domain, two.domid, REF)
    assert caught.value.status is GrantStatus.BAD_PAGE
    assert not two.domain.release(OUTSIDE, 1)


def test_a_guest_gains_a_bounded_amount_of_memory_by_mapping(guests: list[Guest]) -> None:
    _, one, two = guests
    one.grant(REF, two, 5)
    for window in range(MAX_WINDOWS):
        map_grant_ref(two.domain, one.domid, REF, gfn=OUTSIDE + 512 * window)
    with pytest.raises(GrantError):
        map_grant_ref(two.domain, one.domid, REF, gfn=OUTSIDE + 512 * MAX_WINDOWS)


def descriptors() -> int:
    """How many this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@dataclass
class Seen:
    """A frame of `granter` that a guest has mapped at `place`."""

    granter: Player
    frame: int
    place: int
    mapping: Mapping


class Player(Guest):
    """A guest, and what the model knows of it."""

    def __init__(self, xen: Xen) -> None:
        super().__init__(xen, GuestMemory(PAGES * PAGE))
        self.seen: dict[int, Seen] = {}
        self.released: set[int] = set()

    def accepts(self, place: int) -> bool:
        """Whether something can be mapped there."""
        return place not in self.seen and (place >= PAGES or place in self.released)


class Maps(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.before = descriptors()
        self.xen = Xen()
        self.players = [Player(self.xen) for _ in range(3)]
        self.dying: list[Player] = []
        self.stamp = 0

    @rule(who=WHO, gfn=st.sampled_from([20, 21, 22]), give=st.booleans())
    def balloon(self, who: int, gfn: int, give: bool) -> None:
        player = self.players[who]
        if give:
            assert player.domain.release(gfn, 1) is (gfn not in player.released)
            player.released.add(gfn)
        else:
            expected = gfn in player.released and gfn not in player.seen
            assert player.domain.populate(gfn, 1) is expected
            if expected:
                player.released.discard(gfn)

    @rule(who=WHO, of=WHO, frame=st.integers(4, 7), place=PLACES)
    def map(self, who: int, of: int, frame: int, place: int) -> None:
        mapper, granter = self.players[who], self.players[of]
        ref = 16 + 4 * mapper.domid + frame  # one for each mapper and frame
        granter.grant(ref, mapper, frame, PINNED if granter.pinned(ref) else 0)
        try:
            mapping = map_grant_ref(mapper.domain, granter.domid, ref, gfn=place)
        except GrantError as error:
            assert error.status is GrantStatus.GENERAL_ERROR
            assert not mapper.accepts(place)
            return
        assert mapper.accepts(place)
        mapper.seen[place] = Seen(granter, frame, place, mapping)

    @precondition(lambda self: any(player.seen for player in self.players))
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        mapper = data.draw(st.sampled_from([player for player in self.players if player.seen]))
        place = data.draw(st.sampled_from(sorted(mapper.seen)))
        unmap_grant_ref(mapper.domain, mapper.seen.pop(place).mapping.handle)
        assert bytes(mapper.page(place)) == bytes(PAGE)
        self.bury()

    @precondition(lambda self: len(self.dying) < 3)
    @rule(who=WHO, life=st.integers(0, 3))
    def die(self, who: int, life: int) -> None:
        if life:
            return
        dead = self.players[who]
        self.players[who] = Player(self.xen)
        self.dying.append(dead)
        dead.seen.clear()
        self.xen.destroy(dead.domain)
        self.bury()

    def bury(self) -> None:
        """Close the memory of domains that are gone."""
        for dead in list(self.dying):
            mapped = any(seen.granter is dead for player in self.players for seen in player.seen.values())
            assert (dead.domain.state is State.DYING) is mapped
            if not mapped:
                dead.domain.physmap.close()
                self.dying.remove(dead)

    @invariant()
    def what_is_mapped_is_the_granters_memory_and_nothing_else_is_mapped(self) -> None:
        for mapper in self.players:
            assert mapper.domain.physmap.foreign == mapper.seen.keys()
            for seen in mapper.seen.values():
                self.stamp += 1
                stamp = self.stamp.to_bytes(4, "little")
                ours, theirs = mapper.page(seen.place), seen.granter.page(seen.frame)
                (ours if self.stamp % 2 else theirs)[:4] = stamp
                assert bytes(ours[:4]) == bytes(theirs[:4]) == stamp

    def teardown(self) -> None:
        for player in self.players:
            self.xen.destroy(player.domain)
            player.seen.clear()
        assert not self.xen.domains
        for player in [*self.players, *self.dying]:
            player.domain.physmap.close()
        assert descriptors() == self.before


TestMaps = Maps.TestCase
TestMaps.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
