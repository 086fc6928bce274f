"""A hostile guest, on a processor of its own, tries to reach what is another's: every way that hypercalls offer."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.abi.xen import domctl, sysctl, xen, xs_wire
from bivisor.abi.xen import event_channel as evtchn
from bivisor.abi.xen import grant_table as grant
from bivisor.abi.xen.domctl import Dominf
from bivisor.abi.xen.event_channel import EvtchnOp
from bivisor.abi.xen.grant_table import GrantStatus, GrantTableOp
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall, MemoryOp
from bivisor.abi.xen.xs_wire import MessageType
from bivisor.toolstack.xenhost import XenHost
from bivisor.xen.domain import State
from bivisor.xen.grant_ops import map_grant_ref, unmap_grant_ref

from .player import MEMORY, SCRATCH, Ask, Player, build

pytestmark = pytest.mark.guest

PAGE, SLOT = 4096, 256
TABLE_GFN = 0x900
PLACE = 0xA00_000
SHARED = 0x500
_MOVING = Dominf.RUNNING | Dominf.BLOCKED
TO_DOM0, TO_HOSTILE, REVOKED, READ_ONLY = 20, 21, 22, 23


class Scene:
    """A victim with secrets, some of which it shares, and the guest that is after the others."""

    def __init__(self, host: XenHost, image: Path) -> None:
        self.host = host
        self.victim, self.hostile = Player(host, image, "victim"), Player(host, image, "hostile")
        table = xen.ADD_TO_PHYSMAP.pack(DOMID_SELF, 0, xen.MAPSPACE_GRANT_TABLE, 0, TABLE_GFN)
        assert self.victim.ask(Hypercall.MEMORY_OP, MemoryOp.ADD_TO_PHYSMAP, table)[0] == 0
        self.victim.write(SHARED * PAGE, b"secret" * 1000)
        self.permit(TO_DOM0, 0)
        self.permit(TO_HOSTILE, self.hostile.domid)
        self.permit(READ_ONLY, self.hostile.domid, grant.GTF_READONLY)
        self.before = self.state()

    def permit(self, ref: int, domid: int, flags: int = 0) -> None:
        """The victim permits `domid` access to frame SHARED + `ref`."""
        entry = grant.GRANT_ENTRY_V1.pack(grant.GTF_PERMIT_ACCESS | flags, domid, SHARED + ref)
        self.victim.write(TABLE_GFN * PAGE + 8 * ref, entry)

    def state(self) -> tuple[object, ...]:
        """What may not change: the victim's memory, what it is, its ports, and its part of the store."""
        events, store = self.victim.domain.events, self.host.store
        info = self.host.control.domains.info(self.victim.domid)
        ports = [events.status(DOMID_SELF, port) for port in range(1, 60)]
        nodes = {name: store.get(f"{self.victim.unit.path}/{name}") for name in ("name", "domid", "data", "control")}
        return self.victim.read(0, MEMORY), info.flags & ~_MOVING, info.tot_pages, info.max_pages, ports, nodes

    def ask_all(self, asked: list[tuple[Ask, bytes]]) -> list[tuple[int, bytes]]:
        """Hypercalls of the hostile guest, each with its structure: results, and the structures afterwards.

        In the arguments -1 stands for the address of the structure.
        """
        calls = []
        for index, (call, data) in enumerate(asked):
            address = SCRATCH + SLOT * index
            self.hostile.write(address, data.ljust(SLOT, b"\0"))
            calls.append(tuple(address if argument == -1 else argument for argument in call))
        results = self.hostile.play(calls)
        return [(result, self.hostile.read(SCRATCH + SLOT * i, SLOT)) for i, result in enumerate(results)]

    def map(self, *refs: int, flags: int = grant.GNTMAP_HOST_MAP) -> list[int]:
        """The statuses with which the hostile guest maps the victim's grants, each at a place of its own."""
        asked = [
            grant.MAP_GRANT_REF.pack(PLACE + PAGE * i, flags, ref & 0xFFFF_FFFF, self.victim.domid, 0, 0, 0)
            for i, ref in enumerate(refs)
        ]
        answers = self.ask_all(
            [((Hypercall.GRANT_TABLE_OP, GrantTableOp.MAP_GRANT_REF, -1, 1), data) for data in asked]
        )
        return [grant.MAP_GRANT_REF.unpack_from(answer)[4] for _, answer in answers]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with XenHost("soft") as host:
        yield Scene(host, build(tmp_path))
        assert host.error is None


def test_what_is_dom0s_alone_is_refused_whomever_it_is_about(scene: Scene) -> None:
    asked: list[tuple[Ask, bytes]] = []
    for domid in (scene.victim.domid, scene.hostile.domid, 0):
        for cmd in range(1, 87):
            head = domctl.HEADER.pack(cmd, domctl.INTERFACE_VERSION, domid)
            asked.append(((Hypercall.DOMCTL, -1), head))
    for cmd in range(1, 30):
        asked.append(((Hypercall.SYSCTL, -1), sysctl.HEADER.pack(cmd, sysctl.INTERFACE_VERSION)))
    for nr in (Hypercall.PLATFORM_OP, Hypercall.KEXEC_OP, Hypercall.HYPFS_OP, Hypercall.XSM_OP, Hypercall.DM_OP):
        asked.append(((nr, -1, 1, -1), struct.pack("<II", 1, 0x0300_0001)))
    asked += [((Hypercall.PHYSDEV_OP, cmd, -1), b"") for cmd in range(32)]
    asked.append(((Hypercall.CONSOLE_IO, 0, 6, -1), b"(XEN) "))
    assert all(result < 0 for result, _ in scene.ask_all(asked))
    assert scene.state() == scene.before


def test_frames_of_another_cannot_be_reached_or_taken(scene: Scene) -> None:
    victim = scene.victim.domid
    memory = Hypercall.MEMORY_OP
    lists = SCRATCH + SLOT * 60
    scene.hostile.write(lists, struct.pack("<4Q", SHARED, SHARED, PLACE // PAGE, 0))
    asked: list[tuple[Ask, bytes]] = []
    for space in range(6):
        asked.append(((memory, 7, -1), xen.ADD_TO_PHYSMAP.pack(victim, 1, space, SHARED, PLACE // PAGE)))
        batch = xen.ADD_TO_PHYSMAP_BATCH.pack(victim, space, 1, 0, lists, lists + 16, lists + 24)
        asked.append(((memory, 23, -1), batch))
        batch = xen.ADD_TO_PHYSMAP_BATCH.pack(DOMID_SELF, space, 1, victim, lists, lists + 16, lists + 24)
        if space > xen.MAPSPACE_GMFN:
            asked.append(((memory, 23, -1), batch))
    asked.append(((memory, 15, -1), xen.REMOVE_FROM_PHYSMAP.pack(victim, SHARED)))
    asked.append(((memory, 28, -1), xen.ACQUIRE_RESOURCE.pack(victim, 1, 0, 1, 0, 0, lists)))
    asked.append(((memory, 11, -1), struct.pack("<QQIIH6x", lists, 1, 0, 0, victim) * 2 + bytes(8)))
    for cmd in (3, 4, 14):
        asked.append(((memory, cmd, -1), struct.pack("<H", victim)))
    asked.append(((Hypercall.HVM_OP, 15, -1), xen.GET_MEM_TYPE.pack(victim, 0, SHARED)))
    for cmd in (0, 1):
        asked.append(((Hypercall.HVM_OP, cmd, -1), xen.HVM_PARAM.pack(victim, 1, SHARED)))
    refused = scene.ask_all(asked)
    # A batch says for each frame what became of it.
    wrong = [asked[i] for i, (result, _) in enumerate(refused) if result >= 0 and asked[i][0][1] != 23]
    assert not wrong
    nothing = scene.ask_all(
        [((memory, cmd, -1), xen.MEMORY_RESERVATION.pack(lists, 1, 0, 0, victim)) for cmd in (0, 1, 6)]
    )
    assert [result for result, _ in nothing] == [0, 0, 0]
    copies = [
        grant.COPY.pack(SHARED, victim, 0, 0x600, DOMID_SELF, 0, 64, 0, 0),
        grant.COPY.pack(0x600, DOMID_SELF, 0, SHARED, victim, 0, 64, 0, 0),
    ]
    for result, answer in scene.ask_all([((Hypercall.GRANT_TABLE_OP, GrantTableOp.COPY, -1, 1), c) for c in copies]):
        assert (result, grant.COPY.unpack_from(answer)[8]) == (0, GrantStatus.PERMISSION_DENIED)
    assert scene.hostile.read(0x600_000, 64) == bytes(64)
    assert scene.state() == scene.before


def test_only_what_was_granted_is_mapped_and_only_as_it_was(scene: Scene) -> None:
    scene.permit(REVOKED, scene.hostile.domid)
    scene.permit(REVOKED, 0xFFFF)
    refs = [*range(60), *(TO_HOSTILE + turn for turn in (64, 256, 512, 1 << 16, 1 << 28, 1 << 31)), -1]
    statuses = scene.map(*refs)
    assert [ref for ref, status in zip(refs, statuses, strict=True) if status == 0] == [TO_HOSTILE]
    assert scene.map(TO_DOM0, READ_ONLY, flags=grant.GNTMAP_HOST_MAP | grant.GNTMAP_READONLY) == [
        GrantStatus.GENERAL_ERROR,
        GrantStatus.OKAY,
    ]
    assert scene.hostile.load(PLACE + PAGE * TO_HOSTILE) == int.from_bytes(scene.victim.read(0x515_000, 8), "little")


def test_what_was_given_back_stays_given_back(scene: Scene) -> None:
    hostile, victim = scene.hostile, scene.victim
    assert scene.map(TO_HOSTILE) == [GrantStatus.OKAY]
    unmap = grant.UNMAP_GRANT_REF.pack(PLACE, 0, 0, 0)
    answers = scene.ask_all([((Hypercall.GRANT_TABLE_OP, GrantTableOp.UNMAP_GRANT_REF, -1, 1), unmap)] * 2)
    assert [struct.unpack_from("<h", answer, 20)[0] for _, answer in answers] == [0, GrantStatus.BAD_HANDLE]
    victim.write(TABLE_GFN * PAGE + 8 * TO_HOSTILE, bytes(8))
    victim.write(0x515_000, b"new secret")
    assert scene.map(TO_HOSTILE) == [GrantStatus.GENERAL_ERROR]
    copy = grant.COPY.pack(TO_HOSTILE, victim.domid, 0, 0x600, DOMID_SELF, 0, 64, grant.GNTCOPY_SOURCE_GREF, 0)
    _, answer = hostile.ask(Hypercall.GRANT_TABLE_OP, GrantTableOp.COPY, copy, 1)
    assert grant.COPY.unpack(answer)[8] == GrantStatus.GENERAL_ERROR
    assert hostile.load(PLACE) == 0
    hostile.store(PLACE, 0x666)
    assert victim.read(0x515_000, 10) == b"new secret"


def test_nobody_unmaps_what_dom0_has_mapped(scene: Scene) -> None:
    dom0 = scene.host.control.domain
    mapping = map_grant_ref(dom0, scene.victim.domid, TO_DOM0)
    for handle in range(40):
        unmap = grant.UNMAP_GRANT_REF.pack(PLACE, 0, handle, 0)
        _, answer = scene.hostile.ask(Hypercall.GRANT_TABLE_OP, GrantTableOp.UNMAP_GRANT_REF, unmap, 1)
        assert grant.UNMAP_GRANT_REF.unpack(answer)[3] == GrantStatus.BAD_HANDLE
    mapping.view[:4] = b"dom0"
    assert scene.victim.read((SHARED + TO_DOM0) * PAGE, 4) == b"dom0"
    unmap_grant_ref(dom0, mapping.handle)


def test_ports_of_others_cannot_be_bound_asked_about_or_closed(scene: Scene) -> None:
    nr = Hypercall.EVENT_CHANNEL_OP
    asked: list[tuple[Ask, bytes]] = []
    for domid in (0, scene.victim.domid):
        for port in range(1, 70):
            asked.append(((nr, EvtchnOp.BIND_INTERDOMAIN, -1), evtchn.BIND_INTERDOMAIN.pack(domid, port, 0)))
            asked.append(((nr, EvtchnOp.STATUS, -1), evtchn.STATUS.pack(domid, port, 0, 0, 0, 0)))
        asked.append(((nr, EvtchnOp.ALLOC_UNBOUND, -1), evtchn.ALLOC_UNBOUND.pack(domid, DOMID_SELF, 0)))
        asked.append(((nr, EvtchnOp.RESET, -1), evtchn.RESET.pack(domid)))
    assert all(result < 0 for result, _ in scene.ask_all(asked))
    everything = [(nr, op, SCRATCH) for op in (EvtchnOp.SEND, EvtchnOp.UNMASK, EvtchnOp.CLOSE)]
    dom0 = scene.host.control.domain.events
    open_in_dom0 = dom0.open_ports
    for port in range(1, 1030):  # its own go, and nobody else's
        scene.hostile.write(SCRATCH, struct.pack("<I", port))
        scene.hostile.play(everything)
    assert dom0.open_ports == open_in_dom0
    assert scene.state() == scene.before


class StoreRing:
    """The hostile guest's connection to the store, spoken by its own processor."""

    def __init__(self, player: Player) -> None:
        self._player = player
        self._page = player.unit._built.store_gfn * PAGE
        self._port = player.unit._built.store_port

    def ask(self, kind: MessageType | int, *payload: str, tx: int = 0) -> tuple[int, bytes]:
        """Send a request, and wait: the kind and payload of the answer."""
        player, page = self._player, self._page
        body = b"".join(part.encode() + b"\0" for part in payload)
        message = xs_wire.SOCKMSG.pack(kind, 7, tx, len(body)) + body
        prod = player.memory.read_u32(page + 2052)
        for offset, byte in enumerate(message):
            player.write(page + (prod + offset) % 1024, bytes([byte]))
        player.write(page + 2052, struct.pack("<I", prod + len(message) & 0xFFFF_FFFF))
        assert player.ask(Hypercall.EVENT_CHANNEL_OP, EvtchnOp.SEND, struct.pack("<I", self._port))[0] == 0
        head = self._take(16)
        answer, _, _, length = xs_wire.SOCKMSG.unpack(head)
        return answer, self._take(length)

    def _take(self, count: int) -> bytes:
        player, page = self._player, self._page
        taken = b""
        while len(taken) < count:
            cons, prod = struct.unpack("<II", player.read(page + 2056, 8))
            if cons == prod:
                player.call(Hypercall.SCHED_OP, 0)
                continue
            taken += player.read(page + 1024 + cons % 1024, 1)
            player.write(page + 2056, struct.pack("<I", cons + 1 & 0xFFFF_FFFF))
        return taken


def test_the_stores_nodes_of_others_are_not_read_written_or_watched(scene: Scene) -> None:
    ring = StoreRing(scene.hostile)
    theirs, own = scene.victim.unit.path, scene.hostile.unit.path
    assert ring.ask(MessageType.READ, f"{own}/name") == (MessageType.READ, b"hostile")
    name = f"{theirs}/name\0"
    for kind, payload in (
        (MessageType.READ, [f"{theirs}/name"]),
        (MessageType.DIRECTORY, [theirs]),
        (MessageType.GET_PERMS, [f"{theirs}/data"]),
        (MessageType.RM, [theirs]),
        (MessageType.RM, [f"{theirs}/name"]),
        (MessageType.MKDIR, [f"{theirs}/data/mine"]),
        (MessageType.SET_PERMS, [f"{theirs}/name", f"n{scene.hostile.domid}"]),
        (MessageType.INTRODUCE, [str(scene.victim.domid), "1", "1"]),
        (MessageType.RELEASE, [str(scene.victim.domid)]),
        (MessageType.RESUME, [str(scene.victim.domid)]),
        (MessageType.SET_TARGET, [str(scene.hostile.domid), str(scene.victim.domid)]),
        (MessageType.CONTROL, ["help"]),
        (MessageType.WRITE, ["/tool/mine", ""]),
        (MessageType.RM, ["/local"]),
    ):
        assert ring.ask(kind, *payload) == (MessageType.ERROR, b"EACCES\0"), (kind, payload)
    assert ring.ask(MessageType.READ, f"{own}/../{scene.victim.domid}/name") == (MessageType.ERROR, b"EINVAL\0")
    assert ring.ask(MessageType.READ, name, tx=1)[0] == MessageType.ERROR
    assert ring.ask(99)[0] == MessageType.ERROR
    assert scene.state() == scene.before


def test_a_store_ring_full_of_rubbish_harms_its_own_domain_only(scene: Scene) -> None:
    hostile = scene.hostile
    page = hostile.unit._built.store_gfn * PAGE
    send = struct.pack("<I", hostile.unit._built.store_port)
    for indices in ((0, 1 << 31, 0, 0), (5, 2, 7, 0xFFFF_FFFF), (0, 1024, 0, 1025), (1, 0, 1, 0)):
        hostile.write(page, bytes(range(256)) * 8)
        hostile.write(page + 2048, struct.pack("<4I", *indices))
        hostile.ask(Hypercall.EVENT_CHANNEL_OP, EvtchnOp.SEND, send)
    scene.host.store.write("/tool/well", "yes")
    assert scene.host.store.read("/tool/well") == "yes"
    assert scene.state() == scene.before


def test_a_granter_may_die_while_what_it_granted_is_mapped_and_unmapped(scene: Scene) -> None:
    asked: list[tuple[Ask, bytes]] = []
    for handle in range(2000):
        host_map = grant.MAP_GRANT_REF.pack(PLACE, grant.GNTMAP_HOST_MAP, TO_HOSTILE, scene.victim.domid, 0, 0, 0)
        asked.append(((Hypercall.GRANT_TABLE_OP, GrantTableOp.MAP_GRANT_REF, -1, 1), host_map))
        unmap = grant.UNMAP_GRANT_REF.pack(PLACE, 0, handle, 0)
        asked.append(((Hypercall.GRANT_TABLE_OP, GrantTableOp.UNMAP_GRANT_REF, -1, 1), unmap))
    calls = []
    for index, (call, data) in enumerate(asked):
        address = SCRATCH + 64 * index
        scene.hostile.write(address, data)
        calls.append(tuple(address if argument == -1 else argument for argument in call))
    scene.hostile.begin(calls)
    while not scene.hostile.memory.read_u64(0x1F_F020):
        pass
    scene.victim.unit.destroy()
    scene.hostile.finish(len(calls))
    mapped = len(scene.hostile.domain.grants.maptrack)
    assert (scene.victim.domain.state is State.GONE) is (mapped == 0)
    scene.hostile.unit.destroy()
    assert scene.victim.domain.state is State.GONE
    assert [info.domid for info in scene.host.control.domains.list()] == [0]


def test_a_domain_in_an_endless_hypercall_can_be_paused_and_destroyed(scene: Scene) -> None:
    hostile = scene.hostile
    hostile.begin([(Hypercall.MULTICALL, SCRATCH, 1 << 31)] * 100)
    while not hostile.memory.read_u64(SCRATCH + 8):  # the first result of the first of its calls
        pass
    domains = scene.host.control.domains
    domains.pause(hostile.domid)
    hostile.unit._built.guest.wait_until_still()
    assert domains.info(hostile.domid).letters[2] == "p"
    domains.unpause(hostile.domid)
    hostile.unit.destroy()
    assert hostile.domain.state is State.GONE
    assert scene.victim.call(Hypercall.XEN_VERSION, 0) == xen.XEN_VERSION, "others go on"
