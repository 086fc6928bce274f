"""100,000 random hypercalls of a hostile domain leave the host, Dom0 and the other domains untouched."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from bivisor import boot
from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen import xen
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall, MemoryOp
from bivisor.image import Guest
from bivisor.image.place import default_root
from bivisor.toolstack.xenhost import XenHost
from bivisor.xen.domain import State
from holdings import holdings

from .fuzz import Fuzzer
from .player import MEMORY, SCRATCH, Ended, Player, build
from .test_xen_pvh import CMDLINE, Talk

pytestmark = pytest.mark.guest

CALLS, BATCH = 100_000, 500
SEED = 4_17
STUCK_S = 0.3
"""A hostile guest that makes no progress for so long has destroyed or blocked itself, and another takes its place."""
GRANTED = range(8, 16)
SHARED = 0x700
TABLE_GFN = 0x900


class Bystander:
    """A domain that grants some frames to whoever is hostile, and minds its own business."""

    def __init__(self, host: XenHost, image: Path) -> None:
        self.player = Player(host, image, "bystander")
        table = xen.ADD_TO_PHYSMAP.pack(DOMID_SELF, 0, xen.MAPSPACE_GRANT_TABLE, 0, TABLE_GFN)
        assert self.player.ask(Hypercall.MEMORY_OP, MemoryOp.ADD_TO_PHYSMAP, table)[0] == 0
        self.own = random.Random(SEED).randbytes(0x20_0000)
        self.player.write(0x50_0000, self.own)
        self.before = self.rest()

    def grant_to(self, domid: int) -> None:
        for ref in GRANTED:
            entry = abi.GRANT_ENTRY_V1.pack(abi.GTF_PERMIT_ACCESS, domid, SHARED + ref)
            self.player.write(TABLE_GFN * 4096 + 8 * ref, entry)

    def rest(self) -> bytes:
        """All of its memory but the frames that it grants, and but its console and store."""
        memory = self.player.memory.read(0, MEMORY - 4 * 4096)
        return memory[: SHARED * 4096] + memory[(SHARED + GRANTED.stop) * 4096 :]


class Linux:
    """A stock kernel that has something to say for itself."""

    def __init__(self, host: XenHost, guest: Guest) -> None:
        self.talk = Talk()
        cache = boot.PayloadCache(Path(default_root()) / "kernels")
        self.unit = host.create(
            "linux", guest.kernel, initrd=guest.initrd, cmdline=CMDLINE, console=self.talk, cache=cache
        )
        self.talk.wait_for(b"Leave with exit")

    def answers(self, number: int) -> None:
        self.unit.send(f"echo it is $((40000 + {number}))\n".encode())
        self.talk.wait_for(f"it is {40000 + number}".encode())


def test_a_hostile_domain_disturbs_nobody_with_a_hundred_thousand_random_hypercalls(
    guest: Guest, tmp_path: Path
) -> None:
    image = build(tmp_path)
    with XenHost("soft") as host:
        linux = Linux(host, guest)
        bystander = Bystander(host, image)
        fuzzer = Fuzzer(random.Random(SEED), (linux.unit.domid, bystander.player.domid))
        linux.answers(0)
        destroy(Player(host, image))
        held, ports = holdings(), host.control.domain.events.open_ports
        played = deaths = mapped = 0
        hostile = None
        while played < CALLS:
            if hostile is None:
                hostile = Player(host, image)
                bystander.grant_to(hostile.domid)
            calls, structures = fuzzer.batch(BATCH)
            hostile.write(SCRATCH, structures)
            try:
                hostile.play(calls, STUCK_S)
                played += BATCH
                mapped = max(mapped, len(hostile.domain.grants.maptrack))
            except Ended as ended:
                played += ended.played
                deaths += 1
                destroy(hostile)
                hostile = None
            if played // BATCH % 20 == 0:
                linux.answers(played)
                host.store.write("/tool/alive", played)
                assert host.store.read("/tool/alive") == str(played)
        if hostile is not None:
            destroy(hostile)
        assert host.error is None
        assert mapped > 4, "the fuzzer has got nowhere"
        assert bystander.rest() == bystander.before
        assert bystander.player.load(0x50_0000) == struct.unpack_from("<Q", bystander.own)[0], "it still runs"
        assert not bystander.player.domain.grants.in_use
        linux.answers(-1)
        assert {info.domid for info in host.control.domains.list()} == {
            0,
            linux.unit.domid,
            bystander.player.domid,
        }
        assert host.control.domain.events.open_ports == ports
        after = holdings()
        assert (after.descriptors, after.threads, after.tasks) == (held.descriptors, held.threads, held.tasks)
        assert after.mappings - held.mappings < 2 * deaths + 20, "the allocators' own, and none for each domain"


def destroy(hostile: Player) -> None:
    """Nothing that the hypervisor did for it has raised, and it goes."""
    hostile.unit.destroy()
    error = hostile.unit._built.guest.error
    if error is not None:
        raise error
    assert hostile.domain.state is State.GONE
