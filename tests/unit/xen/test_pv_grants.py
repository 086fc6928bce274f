"""A PV guest maps what others grant it, in its page tables, and gets no more of it than it was given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grant_guests import PAGES, Guest, world
from pv_guests import RW, US, P

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.grant_table import GrantStatus, GrantTableOp
from bivisor.abi.xen.xen import DOMID_SELF, REGISTER_VCPU_INFO, Hypercall, VcpuOp
from bivisor.memory import PAGE
from bivisor.xen.errors import GrantError, XenError
from bivisor.xen.grant_ops import GrantEnd, copy_to, map_grant_ref, unmap_grant_ref
from bivisor.xen.hypervisor import Xen
from bivisor.xen.pv.call import PvCall
from bivisor.xen.pv.frames import Frames
from bivisor.xen.pv.machine import PvMachine
from bivisor.xen.pv.pages import L1, WRITABLE, Pages
from bivisor.xen.pv.private import Private
from bivisor.xen.pv.ring3 import hidden
from bivisor.xen.pv.ring3.machine import Ring3Frames
from bivisor.xen.pv.ring3.pages import Ring3Pages
from bivisor.xen.pv.table import TABLE

REF, LEAF, VA, UOP = 9, 4, 0x5000, 0x1000
BY_ADDRESS, BY_ENTRY = abi.GNTMAP_HOST_MAP, abi.GNTMAP_HOST_MAP | abi.GNTMAP_CONTAINS_PTE


class Cpu:
    """A processor that counts what it was told to forget."""

    flushes = 0

    def flush_tlb(self) -> None:
        self.flushes += 1


class Mapper:
    """The second DomU as a PV guest: tables in frames 1 to 4, and frame 20 at `UOP`."""

    def __init__(self, xen: Xen, guest: Guest, frames_type: type[Frames] = Frames) -> None:
        self.guest = guest
        self.private = Private(PAGES)
        if frames_type is Ring3Frames:  # which has the types of frames there
            self.private.kind = memoryview(bytearray(PAGES))  # type: ignore[attr-defined]
            self.private.count = memoryview(bytearray(4 * PAGES)).cast("I")  # type: ignore[attr-defined]
        frames = self.frames = frames_type(guest.domain, self.private, 512, None)  # type: ignore[arg-type]
        self.machine = PvMachine(frames, 0, ())
        self.machine.cpu = self.cpu = Cpu()  # type: ignore[assignment]
        self.words = frames.pages.words
        for level in range(3):
            self.words[1 + level << 9] = 2 + level << 12 | P | RW | US
        self.words[LEAF << 9 | UOP >> 12] = 20 << 12 | P | RW
        self.machine.start(1)
        self.call = PvCall(xen, guest.domain, 0, self.machine, lambda: True)

    def entry(self, va: int = VA) -> int:
        return self.words[LEAF << 9 | va >> 12]

    def op(self, cmd: int, structure: bytes) -> bytes:
        self.guest.page(20)[: len(structure)] = structure
        assert TABLE[Hypercall.GRANT_TABLE_OP](self.call, cmd, UOP, 1) == 0
        return bytes(self.guest.page(20)[: len(structure)])

    def map(self, domid: int, host_addr: int = VA, flags: int = BY_ADDRESS) -> tuple[int, int, int]:
        """Status, handle and the frame's machine address."""
        fields = abi.MAP_GRANT_REF.pack(host_addr, flags, REF, domid, 0, 0, 0)
        *_, status, handle, address = abi.MAP_GRANT_REF.unpack(self.op(GrantTableOp.MAP_GRANT_REF, fields))
        return status, handle, address

    def unmap(self, handle: int, host_addr: int = VA, address: int = 0) -> int:
        fields = abi.UNMAP_GRANT_REF.pack(host_addr, address, handle, 0)
        return int(abi.UNMAP_GRANT_REF.unpack(self.op(GrantTableOp.UNMAP_GRANT_REF, fields))[3])

    def replace(self, handle: int, host_addr: int, new_addr: int) -> int:
        fields = abi.UNMAP_AND_REPLACE.pack(host_addr, new_addr, handle, 0)
        return int(abi.UNMAP_AND_REPLACE.unpack(self.op(GrantTableOp.UNMAP_AND_REPLACE, fields))[3])


class World:
    def __init__(self, xen: Xen, granter: Guest, mapper: Mapper) -> None:
        self.xen, self.granter, self.mapper = xen, granter, mapper
        granter.grant(REF, mapper.guest, 5)


@pytest.fixture
def w() -> Iterator[World]:
    with world() as (xen, guests):
        mapper = Mapper(xen, guests[2])
        yield World(xen, guests[1], mapper)
        mapper.frames.close()
        mapper.private.close()


@pytest.mark.parametrize("flags", [BY_ADDRESS, BY_ENTRY], ids=["by address", "by entry"])
def test_a_grant_is_where_it_was_asked_for_until_it_is_unmapped(w: World, flags: int) -> None:
    mapper = w.mapper
    at = VA if flags == BY_ADDRESS else LEAF << 12 | 8 * (VA >> 12)
    status, handle, address = mapper.map(w.granter.domid, at, flags)
    assert status == GrantStatus.OKAY
    assert mapper.entry() & ~0xFFF == address
    assert mapper.entry() & (P | RW | US) == P | RW | US
    assert mapper.machine.translate(VA + 8) == address + 8
    w.granter.page(5)[:4] = b"gave"
    assert mapper.guest.memory.read(address, 4) == b"gave"
    flushes = mapper.cpu.flushes
    assert mapper.unmap(handle, at, address) == GrantStatus.OKAY
    assert (mapper.entry(), mapper.cpu.flushes > flushes) == (0, True)
    assert not w.granter.pinned(REF)
    assert mapper.unmap(handle, at) == GrantStatus.BAD_HANDLE


def test_a_frame_that_is_granted_can_be_mapped_by_a_grant_alone(w: World) -> None:
    mapper = w.mapper
    _, handle, address = mapper.map(w.granter.domid, flags=BY_ADDRESS | abi.GNTMAP_READONLY)
    pages = mapper.frames.pages
    assert not mapper.entry() & RW
    for slot, flags in ((6, P), (6, P | RW), (5, P | RW)):
        with pytest.raises(XenError):
            pages.update(LEAF << 12 | 8 * slot, address | flags, False)
    mapper.guest.memory.write(address, b"mine")  # into a copy of its own
    assert bytes(w.granter.page(5)[:4]) == bytes(4)
    assert mapper.unmap(handle) == GrantStatus.OKAY


def test_what_was_mapped_before_is_let_go_of_and_comes_back_by_replacing(w: World) -> None:
    mapper = w.mapper
    pages = mapper.frames.pages
    pages.update(LEAF << 12 | 8 * (VA >> 12), 30 << 12 | P | RW, False)
    _, handle, _ = mapper.map(w.granter.domid)
    assert pages.count[30] == 0
    pages.update(LEAF << 12 | 8 * 6, 31 << 12 | P | RW, False)
    assert mapper.replace(handle, VA, 0x6000) == GrantStatus.OKAY
    assert (mapper.entry(), mapper.entry(0x6000), pages.count[31]) == (31 << 12 | P | RW, 0, 1)


@pytest.mark.parametrize(
    ("address", "flags"),
    [
        (1 << 30, BY_ADDRESS),
        (1 << 60, BY_ADDRESS),
        (0xFFFF_8000_0000_0000, BY_ADDRESS),
        (20 << 12, BY_ENTRY),
        (1 << 12, BY_ENTRY),
        (LEAF << 12 | 4, BY_ENTRY),
        (PAGES << 12, BY_ENTRY),
        (VA, abi.GNTMAP_DEVICE_MAP | BY_ADDRESS),
    ],
    ids=["no table", "not canonical", "hypervisor", "page", "level 4", "not aligned", "no memory", "device"],
)
def test_there_has_to_be_an_entry_for_it(w: World, address: int, flags: int) -> None:
    before = w.mapper.words.tobytes()
    assert w.mapper.map(w.granter.domid, address, flags)[0] == GrantStatus.GENERAL_ERROR
    now = bytearray(w.mapper.words.tobytes())
    now[20 * PAGE : 21 * PAGE] = before[20 * PAGE : 21 * PAGE]
    assert now == before
    assert not w.granter.pinned(REF)


def test_an_entry_that_is_another_is_not_unmapped(w: World) -> None:
    _, handle, address = w.mapper.map(w.granter.domid)
    assert w.mapper.unmap(handle, 0x6000) == GrantStatus.GENERAL_ERROR
    assert w.mapper.unmap(handle, VA, address + PAGE) == GrantStatus.GENERAL_ERROR
    assert w.mapper.unmap(handle, 0) == GrantStatus.OKAY  # leaves it alone
    assert w.granter.pinned(REF)
    assert w.mapper.unmap(handle) == GrantStatus.OKAY


def test_a_stub_that_repeats_what_is_noted_has_the_same_entries_at_every_moment() -> None:
    with world() as (xen, guests):
        mapper = Mapper(xen, guests[2], Ring3Frames)
        w = World(xen, guests[1], mapper)
        pages, mirror = mapper.frames.pages, list(mapper.words)
        stores = pages.stores if isinstance(pages, Ring3Pages) else {}

        def repeats() -> bool:
            for address, value in stores.items():
                mirror[(address - hidden.WINDOW) // 8] = value
            stores.clear()
            return mirror[1 << 9 : LEAF + 1 << 9] == mapper.words[1 << 9 : LEAF + 1 << 9].tolist()

        pages.update(LEAF << 12 | 8 * 6, 31 << 12 | P | RW, False)
        assert repeats()
        _, handle, _ = mapper.map(w.granter.domid)
        assert mapper.entry() and repeats()
        assert mapper.unmap(handle) == GrantStatus.OKAY
        assert not mapper.entry() and repeats()
        _, handle, _ = mapper.map(w.granter.domid)
        assert mapper.replace(handle, VA, 0x6000) == GrantStatus.OKAY
        assert (mapper.entry() >> 12, mapper.entry(0x6000)) == (31, 0)
        assert repeats()
        mapper.frames.close()
        mapper.private.close()


def test_a_hypercall_writes_only_where_the_guest_may(w: World) -> None:
    mapper, seen = w.mapper, 0x8000
    mapper.words[LEAF << 9 | seen >> 12] = LEAF << 12 | P  # its page table, which it may look at
    before = bytes(mapper.guest.page(LEAF))
    mapper.guest.page(20)[:16] = (21 << 12 | 1).to_bytes(8, "little") + bytes(8)
    done = seen + 8 * (VA >> 12)
    for nowhere in (done, UOP + PAGE - 4, 1 << 40):
        with pytest.raises(XenError):
            mapper.call.write(nowhere, bytes(8))
    with pytest.raises(XenError):  # how many were carried out would be an entry
        TABLE[Hypercall.MMU_UPDATE](mapper.call, UOP, 1, done, DOMID_SELF)
    assert bytes(mapper.guest.page(LEAF)) == before
    mapper.call.write(UOP + PAGE - 8, bytes(8))


def test_others_write_no_frame_that_is_a_page_table_and_what_they_write_becomes_none(w: World) -> None:
    owner, other, pages = w.mapper.guest, w.granter, w.mapper.frames.pages
    owner.grant(REF, other, LEAF)
    before = bytes(owner.page(LEAF))
    reading = map_grant_ref(other.domain, owner.domid, REF, readonly=True)  # Xen lets others look
    for writes in (
        lambda: map_grant_ref(other.domain, owner.domid, REF, readonly=False),
        lambda: copy_to(other.domain, GrantEnd(owner.domid, REF, 0), bytes(8)),
    ):
        with pytest.raises(GrantError):
            writes()
    unmap_grant_ref(other.domain, reading.handle)
    with pytest.raises(GrantError):
        map_grant_ref(other.domain, owner.domid, REF, readonly=False)
    assert not owner.pinned(REF) and bytes(owner.page(LEAF)) == before
    owner.grant(REF, other, 30)
    mapping = map_grant_ref(other.domain, owner.domid, REF, readonly=False)
    with pytest.raises(XenError):
        pages.pin(30, L1)
    pages.get(30, WRITABLE)
    pages.put(30)
    unmap_grant_ref(other.domain, mapping.handle)
    pages.pin(30, L1)


def test_the_hypervisors_words_for_events_and_processors_are_in_no_page_table(w: World) -> None:
    mapper, events = w.mapper, w.mapper.guest.domain.events
    before = bytes(mapper.guest.page(LEAF))
    with pytest.raises(XenError):
        events.init_control(LEAF, 0, 0)
    events.init_control(30, 0, 0)
    with pytest.raises(XenError):
        events.expand_array(LEAF)
    events.expand_array(31)
    with pytest.raises(XenError):
        pages_of(mapper).pin(31, L1)
    mapper.guest.page(20)[: REGISTER_VCPU_INFO.size] = REGISTER_VCPU_INFO.pack(LEAF, 64)
    with pytest.raises(XenError):
        TABLE[Hypercall.VCPU_OP](mapper.call, VcpuOp.REGISTER_VCPU_INFO, 0, UOP)
    assert bytes(mapper.guest.page(LEAF)) == before
    events.reset()
    pages_of(mapper).pin(31, L1)


def pages_of(mapper: Mapper) -> Pages:
    return mapper.frames.pages
