"""Two guests share memory by grants: what the processor of one stores, the other's loads."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen import xen
from bivisor.abi.xen.grant_table import GrantStatus, GrantTableOp
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall, MemoryOp
from bivisor.errors import HostError
from bivisor.toolstack.xenhost import XenHost
from bivisor.xen.domain import State
from bivisor.xen.errors import GrantError
from bivisor.xen.grant_ops import map_grant_ref, unmap_grant_ref

from .player import CALL, SCRATCH, Player, assembled, build

pytestmark = pytest.mark.guest

PAGE = 4096
TABLE_GFN = 0x900  # outside the 8 MiB of a player, as its grant table and what it maps are
REF = 20
SHARED = 0x500_000


class Pair:
    """A guest that grants, and one that maps."""

    def __init__(self, host: XenHost, image: Path) -> None:
        self.host = host
        self.granter, self.mapper = Player(host, image, "granter"), Player(host, image, "mapper")
        table = xen.ADD_TO_PHYSMAP.pack(DOMID_SELF, 0, xen.MAPSPACE_GRANT_TABLE, 0, TABLE_GFN)
        assert self.granter.ask(Hypercall.MEMORY_OP, MemoryOp.ADD_TO_PHYSMAP, table)[0] == 0

    def entry(self, ref: int) -> int:
        """Grant-table entry `ref` as the granter's processor finds it."""
        return self.granter.load(TABLE_GFN * PAGE + 8 * ref)

    def grant(self, ref: int, address: int, flags: int = 0) -> None:
        """The granter's processor writes the entry."""
        entry = struct.pack("<HHI", abi.GTF_PERMIT_ACCESS | flags, self.mapper.domid, address // PAGE)
        self.granter.store(TABLE_GFN * PAGE + 8 * ref, int.from_bytes(entry, "little"))

    def map(self, ref: int, address: int, flags: int = abi.GNTMAP_HOST_MAP) -> tuple[int, int]:
        """The mapper's hypercall: status and handle."""
        asked = abi.MAP_GRANT_REF.pack(address, flags, ref, self.granter.domid, 0, 0, 0)
        result, answer = self.mapper.ask(Hypercall.GRANT_TABLE_OP, GrantTableOp.MAP_GRANT_REF, asked, 1)
        *_, status, handle, _ = abi.MAP_GRANT_REF.unpack(answer)
        assert result == 0
        return status, handle

    def unmap(self, address: int, handle: int) -> int:
        """The mapper's hypercall: its status."""
        asked = abi.UNMAP_GRANT_REF.pack(address, 0, handle, 0)
        result, answer = self.mapper.ask(Hypercall.GRANT_TABLE_OP, GrantTableOp.UNMAP_GRANT_REF, asked, 1)
        assert result == 0
        return int(abi.UNMAP_GRANT_REF.unpack(answer)[3])


@pytest.fixture(params=["soft", pytest.param("kvm", marks=pytest.mark.kvm)])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    try:
        host = XenHost(request.param)
    except HostError as error:
        pytest.skip(str(error))
    with host:
        yield Pair(host, build(tmp_path))


def release(player: Player, gfn: int) -> None:
    """XENMEM_decrease_reservation of one frame."""
    player.write(SCRATCH + 64, struct.pack("<Q", gfn))
    asked = xen.MEMORY_RESERVATION.pack(SCRATCH + 64, 1, 0, 0, DOMID_SELF)
    assert player.ask(Hypercall.MEMORY_OP, MemoryOp.DECREASE_RESERVATION, asked)[0] == 1


@pytest.mark.parametrize("place", [0xA00_000, 0x600_000], ids=["outside RAM", "ballooned out"])
def test_two_guests_see_the_same_memory_until_it_is_unmapped(pair: Pair, place: int) -> None:
    granter, mapper = pair.granter, pair.mapper
    mapper.store(0x600_000, 0x1111)
    assert mapper.load(0x600_000) == 0x1111
    if place == 0x600_000:
        release(mapper, place // PAGE)
    pair.grant(REF, SHARED)
    granter.store(SHARED, 0xAAAA)
    status, handle = pair.map(REF, place)
    assert status == GrantStatus.OKAY
    assert pair.entry(REF) & 0xFFFF == abi.GTF_PERMIT_ACCESS | abi.GTF_READING | abi.GTF_WRITING
    assert mapper.load(place) == 0xAAAA
    mapper.store(place + 8, 0xBBBB)
    assert granter.load(SHARED + 8) == 0xBBBB
    granter.store(SHARED, 0xCCCC)
    assert mapper.load(place) == 0xCCCC

    assert pair.unmap(place, handle) == GrantStatus.OKAY
    assert pair.entry(REF) & 0xFFFF == abi.GTF_PERMIT_ACCESS
    mapper.store(place, 0xDDDD)
    assert granter.load(SHARED) == 0xCCCC
    assert pair.unmap(place, handle) == GrantStatus.BAD_HANDLE


def test_a_guest_cannot_change_what_was_granted_for_reading(pair: Pair) -> None:
    granter, mapper = pair.granter, pair.mapper
    pair.grant(REF, SHARED, abi.GTF_READONLY)
    granter.store(SHARED, 0xAAAA)
    assert pair.map(REF, 0xA00_000)[0] == GrantStatus.GENERAL_ERROR
    status, _ = pair.map(REF, 0xA00_000, abi.GNTMAP_HOST_MAP | abi.GNTMAP_READONLY)
    assert status == GrantStatus.OKAY
    assert mapper.load(0xA00_000) == 0xAAAA
    mapper.store(0xA00_000, 0xBBBB)
    assert granter.load(SHARED) == 0xAAAA


def test_a_granter_that_dies_stays_until_its_frame_is_unmapped(pair: Pair) -> None:
    granter, mapper = pair.granter, pair.mapper
    pair.grant(REF, SHARED)
    granter.store(SHARED, 0xAAAA)
    _, handle = pair.map(REF, 0xA00_000)
    granter.unit.destroy()
    domains = pair.host.control.domains
    assert domains.info(granter.domid).letters[-1] == "d"
    mapper.store(0xA00_000, 0xBBBB)
    assert mapper.load(0xA00_000) == 0xBBBB
    assert pair.unmap(0xA00_000, handle) == GrantStatus.OKAY
    assert granter.domain.state is State.GONE
    assert [info.domid for info in domains.list()] == [0, mapper.domid]


def test_a_mapper_that_dies_lets_go(pair: Pair) -> None:
    pair.grant(REF, SHARED)
    pair.map(REF, 0xA00_000)
    pair.mapper.unit.destroy()
    assert pair.mapper.domain.state is State.GONE
    assert pair.entry(REF) & 0xFFFF == abi.GTF_PERMIT_ACCESS


GRANT_AND_REVOKE = """
again:  movl    ${granted}, {entry}
        mov     $200, %ecx
delay:  dec     %ecx
        jnz     delay
busy:   mov     {entry}, %eax
        test    $0x18, %al
        jnz     busy
        xor     %edx, %edx
        lock cmpxchg %edx, {entry}
        jnz     busy
        cmpq    $0, {stop}
        je      again
        ret
"""
"""What a kernel does to end foreign access, over and over: give the entry back if nobody has it mapped."""


@pytest.mark.parametrize("pair", ["soft"], indirect=True)
def test_what_is_mapped_while_the_granter_revokes_is_either_mapped_or_revoked(pair: Pair, tmp_path: Path) -> None:
    granter = pair.granter
    entry, stop = TABLE_GFN * PAGE + 8 * REF, 0x610_000
    dom0 = pair.host.control.domain
    code = GRANT_AND_REVOKE.format(granted=abi.GTF_PERMIT_ACCESS | dom0.domid << 16, entry=entry, stop=stop)
    granter.write(0x600_000, assembled(tmp_path, code))
    pair.grant(REF, SHARED)
    granter.begin([(CALL, 0x600_000)])
    mapped = 0
    while mapped < 4000:  # without a handshake about one in a thousand is both
        try:
            mapping = map_grant_ref(dom0, granter.domid, REF)
        except GrantError:
            continue
        mapped += 1
        assert granter.memory.read_u16(entry) & (abi.GTF_READING | abi.GTF_WRITING), f"revoked and mapped: {mapped}"
        unmap_grant_ref(dom0, mapping.handle)
    granter.write(stop, b"\1")
    granter.finish(1)
