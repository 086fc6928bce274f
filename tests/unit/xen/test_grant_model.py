"""Three domains that grant, map, copy, scribble, change versions and die in any order, against a model of what holds.

After each step: who maps what is what the model says, a mapped frame is the granter's memory and no other, an entry's
flags say whether it is mapped, and no byte has changed that was not granted for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from grant_guests import OUTSIDE, PAGES, PINNED, Guest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.grant_table import GrantStatus, GrantTableOp
from bivisor.memory import PAGE, GuestMemory
from bivisor.xen.domain import State
from bivisor.xen.errors import GrantError, XenError
from bivisor.xen.grant_ops import FrameEnd, GrantEnd, copy, map_grant_ref, unmap_grant_ref
from bivisor.xen.hypervisor import Xen
from bivisor.xen.maptrack import Mapping
from bivisor.xen.table import hypercall

DATA = 12
"""Frames 0 to 11 of a guest hold data; 40 to 47 its grant table, where it has put it there."""

REFS = st.sampled_from([0, 1, 8, 9, 255, 256, 511, 512])
GFNS = st.sampled_from([*range(DATA), PAGES])
WHO = st.integers(0, 2)
FLAGS = st.sampled_from([0, 0, 0, abi.GTF_READONLY, abi.GTF_SUB_PAGE, abi.GTF_PCD])


@dataclass
class Entry:
    """What is agreed of an entry while it is mapped."""

    grantee: int
    gfn: int
    mappings: list[Mapping] = field(default_factory=list)

    @property
    def bits(self) -> int:
        return abi.GTF_READING | (0 if all(m.readonly for m in self.mappings) else abi.GTF_WRITING)


class Player(Guest):
    """A guest, and what the model knows of it."""

    def __init__(self, xen: Xen, *, privileged: bool) -> None:
        super().__init__(xen, GuestMemory(PAGES * PAGE), privileged=privileged)
        for gfn in range(DATA):
            self.page(gfn)[:] = bytes([self.domid << 4 & 0xFF | gfn]) * PAGE
        self.shadow = bytearray(self.memory.view(0, DATA * PAGE))
        self.entries: dict[int, Entry] = {}
        self.mapped: list[Mapping] = []

    @property
    def size(self) -> int:
        return 8 if self.grants.version == 1 else 16

    def raw(self, ref: int) -> bytes:
        per_frame = PAGE // self.size
        return bytes(self.grants.frame(ref // per_frame)[ref % per_frame * self.size :][: self.size])

    def has(self, ref: int) -> bool:
        return ref < self.grants.nr_entries

    def scribble(self, ref: int, flags: int, domid: int, gfn: int) -> None:
        """Write an entry, as rude as may be but for the hypervisor's bits."""
        flags &= ~PINNED
        if self.grants.version == 1:
            flags |= self.pinned(ref)
            self.write_entry(ref, abi.GRANT_ENTRY_V1.pack(flags, domid, gfn))
        else:
            self.write_entry(ref, abi.GRANT_ENTRY_V2_FULL_PAGE.pack(flags, domid, gfn))

    def allows(self, ref: int, mapper: Player, readonly: bool) -> int | GrantStatus:
        """The gfn that a mapping of `ref` would give, or why not."""
        if not self.has(ref):
            return GrantStatus.BAD_GNTREF
        layout = abi.GRANT_ENTRY_V1 if self.grants.version == 1 else abi.GRANT_ENTRY_V2_FULL_PAGE
        flags, domid, gfn = layout.unpack(self.raw(ref))
        entry = self.entries.get(ref)
        if entry is not None:
            writers = any(not m.readonly for m in entry.mappings)
            if entry.grantee != mapper.domid or (not readonly and not writers and flags & abi.GTF_READONLY):
                return GrantStatus.GENERAL_ERROR
            return entry.gfn
        if flags & (abi.GTF_TYPE_MASK | abi.GTF_SUB_PAGE) != abi.GTF_PERMIT_ACCESS or domid != mapper.domid:
            return GrantStatus.GENERAL_ERROR
        if not readonly and flags & abi.GTF_READONLY:
            return GrantStatus.GENERAL_ERROR
        return gfn if gfn < DATA else GrantStatus.BAD_PAGE


class Grants(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.xen = Xen()
        self.players = [Player(self.xen, privileged=not i) for i in range(3)]
        self.dying: list[Player] = []
        self.stamp = 0

    def by_domid(self, domid: int) -> Player:
        return next(p for p in [*self.players, *self.dying] if p.domid == domid)

    @rule(who=WHO, ref=REFS, to=WHO, gfn=GFNS, flags=FLAGS)
    def grant(self, who: int, ref: int, to: int, gfn: int, flags: int) -> None:
        granter = self.players[who]
        if granter.has(ref):
            granter.scribble(ref, abi.GTF_PERMIT_ACCESS | flags, self.players[to].domid, gfn)

    @rule(who=WHO, ref=REFS, flags=st.integers(0, 0xFFFF), domid=st.integers(0, 0xFFFF), gfn=GFNS)
    def scribble(self, who: int, ref: int, flags: int, domid: int, gfn: int) -> None:
        if self.players[who].has(ref):
            self.players[who].scribble(ref, flags, domid, gfn)

    @rule(who=WHO, ref=REFS)
    def revoke(self, who: int, ref: int) -> None:
        granter = self.players[who]
        if granter.has(ref):
            assert granter.revoke(ref) is (ref not in granter.entries)

    @rule(who=WHO, of=WHO, ref=REFS, readonly=st.booleans())
    def map(self, who: int, of: int, ref: int, readonly: bool) -> None:
        mapper, granter = self.players[who], self.players[of]
        expected = granter.allows(ref, mapper, readonly)
        try:
            mapping = map_grant_ref(mapper.domain, granter.domid, ref, readonly=readonly)
        except GrantError as error:
            assert error.status is expected
            return
        assert not isinstance(expected, GrantStatus)
        assert mapping.readonly is readonly
        granter.entries.setdefault(ref, Entry(mapper.domid, expected)).mappings.append(mapping)
        mapper.mapped.append(mapping)

    @rule(who=WHO, of=WHO, ref=REFS, gfn=GFNS, readonly=st.booleans(), times=st.integers(1, 3))
    def grant_and_map(self, who: int, of: int, ref: int, gfn: int, readonly: bool, times: int) -> None:
        self.grant(of, ref, who, gfn, 0)
        for i in range(times):
            self.map(who, of, ref, readonly ^ bool(i % 2))

    @rule(
        who=WHO, of=WHO, ref=REFS, gfns=st.tuples(GFNS, GFNS), flags=FLAGS, into=st.booleans(),
        at=st.integers(0, 300), length=st.integers(0, 64),
    )  # fmt: skip
    def grant_and_copy(
        self, who: int, of: int, ref: int, gfns: tuple[int, int], flags: int, into: bool, at: int, length: int
    ) -> None:
        self.grant(of, ref, who, gfns[0], flags)
        granter = self.players[of]
        if flags & abi.GTF_SUB_PAGE and granter.has(ref) and granter.grants.version == 2:
            granter.grant_part(ref, self.players[who], gfns[0], 16, 200)
        self.copy(who, of, ref, gfns[1], into, at, length)

    @precondition(lambda self: any(player.mapped for player in self.players))
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        for mapper in data.draw(st.permutations([player for player in self.players if player.mapped])):
            mapping = data.draw(st.sampled_from(mapper.mapped))
            unmap_grant_ref(mapper.domain, mapping.handle)
            mapper.mapped.remove(mapping)
            self.forget(mapping)

    @rule(who=WHO, handle=st.integers(0, 8))
    def unmap_what_is_not_mapped(self, who: int, handle: int) -> None:
        mapper = self.players[who]
        if all(m.handle != handle for m in mapper.mapped):
            try:
                unmap_grant_ref(mapper.domain, handle)
            except GrantError as error:
                assert error.status is GrantStatus.BAD_HANDLE
            else:
                raise AssertionError

    def forget(self, mapping: Mapping) -> None:
        granter = self.by_domid(mapping.domid)
        entry = granter.entries[mapping.ref]
        entry.mappings.remove(mapping)
        if not entry.mappings:
            del granter.entries[mapping.ref]
        if granter in self.dying and not granter.entries:
            assert granter.domain.state is State.GONE
            self.dying.remove(granter)
            granter.memory.close()

    @rule(who=WHO, of=WHO, ref=REFS, own=GFNS, into=st.booleans(), at=st.integers(0, PAGE), length=st.integers(0, 64))
    def copy(self, who: int, of: int, ref: int, own: int, into: bool, at: int, length: int) -> None:
        caller, granter = self.players[who], self.players[of]
        theirs, mine = GrantEnd(granter.domid, ref, at), FrameEnd(own, 0)
        gfn = granter.allows(ref, caller, not into)
        try:
            copy(caller.domain, mine if into else theirs, theirs if into else mine, length)
        except GrantError:
            return
        if isinstance(gfn, GrantStatus):  # a part of a frame can be copied, if never mapped
            layout = abi.GRANT_ENTRY_V1 if granter.grants.version == 1 else abi.GRANT_ENTRY_V2_SUB_PAGE
            flags, domid, *extent, gfn = layout.unpack(granter.raw(ref))
            assert flags & (abi.GTF_TYPE_MASK | abi.GTF_SUB_PAGE) == abi.GTF_PERMIT_ACCESS | abi.GTF_SUB_PAGE
            assert domid == caller.domid
            assert not into or not flags & abi.GTF_READONLY
            assert not extent or extent[0] <= at <= at + length <= sum(extent)
        theirs_at, mine_at = gfn * PAGE + at, own * PAGE
        if into:
            granter.shadow[theirs_at : theirs_at + length] = caller.shadow[mine_at : mine_at + length]
        else:
            caller.shadow[mine_at : mine_at + length] = granter.shadow[theirs_at : theirs_at + length]

    @rule(who=WHO, version=st.sampled_from([1, 2]))
    def set_version(self, who: int, version: int) -> None:
        guest = self.players[who]
        busy = any(ref >= abi.RESERVED_ENTRIES for ref in guest.entries)
        before = guest.grants.version
        if (before, version) == (2, 1) and any(guest.raw(ref)[0] & abi.GTF_TYPE_MASK == 0 for ref in guest.entries):
            return  # Xen clears entries without a type then, the bits of those in use too: the guest's own doing
        try:
            guest.grants.set_version(version)
        except XenError:
            assert guest.grants.version == before != version
        else:
            assert guest.grants.version == version
            assert version == before or not busy

    @rule(who=WHO, frame=st.integers(0, 2), gfn=st.integers(40, 47), status=st.booleans())
    def put_a_frame_of_the_table_into_the_guest(self, who: int, frame: int, gfn: int, status: bool) -> None:
        guest = self.players[who]
        grants = guest.grants
        try:
            (grants.move_status_frame if status else grants.move_frame)(frame, guest.page(gfn), gfn)
        except XenError:
            assert status
            assert grants.version == 1

    @precondition(lambda self: len(self.dying) < 3)
    @rule(who=st.integers(1, 2), life=st.integers(0, 5))
    def die(self, who: int, life: int) -> None:
        if life:
            return
        dead = self.players[who]
        self.players[who] = Player(self.xen, privileged=False)
        self.dying.append(dead)
        mapped, dead.mapped = dead.mapped, []
        self.xen.destroy(dead.domain)
        for mapping in mapped:
            self.forget(mapping)
        if dead in self.dying and not dead.entries:
            assert dead.domain.state is State.GONE
            self.dying.remove(dead)
            dead.domain.physmap.close()

    @invariant()
    def what_is_mapped_is_the_granters_memory(self) -> None:
        for mapper in self.players:
            assert len(mapper.grants.maptrack) == len(mapper.mapped)
            for mapping in mapper.mapped:
                granter = self.by_domid(mapping.domid)
                gfn = granter.entries[mapping.ref].gfn
                self.stamp = self.stamp + 1 & 0xFFFF_FFFF
                stamp = self.stamp.to_bytes(4, "little")
                granter.page(gfn)[:4] = stamp
                assert bytes(mapping.view[:4]) == stamp
                granter.shadow[gfn * PAGE : gfn * PAGE + 4] = stamp

    @invariant()
    def flags_and_references_say_what_is_mapped(self) -> None:
        for granter in [*self.players, *self.dying]:
            assert set(granter.grants.in_use) == granter.entries.keys()
            assert granter.domain.references == {m for entry in granter.entries.values() for m in entry.mappings}
            for ref in (0, 1, 8, 9, 255, 256, 511):
                if granter.has(ref):
                    entry = granter.entries.get(ref)
                    assert granter.pinned(ref) == (entry.bits if entry else 0)

    @invariant()
    def no_byte_changed_that_was_not_granted(self) -> None:
        for player in [*self.players, *self.dying]:
            assert player.memory.view(0, DATA * PAGE) == player.shadow

    def teardown(self) -> None:
        for player in self.players:
            self.xen.destroy(player.domain)
        assert not self.xen.domains
        for player in [*self.players, *self.dying]:
            player.domain.physmap.close()


TestGrants = Grants.TestCase
TestGrants.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    version=st.sampled_from([1, 2]),
    table=st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=8),
    op=st.sampled_from(list(GrantTableOp)),
    structures=st.lists(
        st.one_of(
            st.binary(min_size=40, max_size=40),
            st.builds(
                abi.COPY.pack,
                *[st.integers(0, 20), st.sampled_from([1, 2, 0x7FF0]), st.integers(0, 4200)] * 2,
                *[st.integers(0, 4200), st.integers(0, 3), st.just(0)],
            ),
            st.builds(
                lambda ref, domid, flags: abi.MAP_GRANT_REF.pack(OUTSIDE * PAGE, flags, ref, domid, 0, 0, 0) + bytes(8),
                *[st.integers(0, 20), st.integers(0, 3), st.integers(0, 31)],
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    count=st.one_of(st.integers(0, 4), st.integers(0, 1 << 32)),
)
def test_whatever_a_guest_writes_it_gets_an_answer_and_touches_nobody_else(
    version: int, table: list[bytes], op: GrantTableOp, structures: list[bytes], count: int
) -> None:
    xen = Xen()
    players = [Player(xen, privileged=not i) for i in range(3)]
    dom0, hostile, bystander = players
    try:
        hostile.grants.set_version(version)
        data = b"".join(table)
        hostile.grants.frame(0)[: len(data)] = data
        data = b"".join(structures)
        hostile.memory.view(32 * PAGE, len(data))[:] = data
        result = hypercall(hostile.call, 20, (op, 32 * PAGE, count))
        assert -200 < result <= 0
        for mapper in players:
            for ref in range(len(table) * 2):
                try:
                    mapping = map_grant_ref(mapper.domain, hostile.domid, ref, readonly=True)
                except GrantError:
                    continue
                assert mapping.view.obj is hostile.memory.ram.view.obj
        for other in (dom0, bystander):
            assert other.memory.view(0, DATA * PAGE) == other.shadow
            assert other.grants.frame(0) == bytes(PAGE)
    finally:
        for player in players:
            xen.destroy(player.domain)
            player.domain.grants.destroy()
        assert not xen.domains
        for player in players:
            player.domain.physmap.close()
