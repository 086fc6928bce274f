"""What few PV kernels ask for: much memory, local descriptors, an NMI, others' pages."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bivisor.abi import elf
from bivisor.abi.xen import grant_table as grants
from bivisor.abi.xen.domctl import Trigger
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.grant_table import GrantStatus, GrantTableOp
from bivisor.abi.xen.pv import MmuExt
from bivisor.abi.xen.xen import Hypercall, VersionOp
from bivisor.boot import PayloadCache
from bivisor.image import default_guest, quiet
from bivisor.image.place import default_root
from bivisor.memory import PAGE
from bivisor.toolstack.xenhost import XenHost

from .pv_player import BASE, COPY, SPARE, Player
from .test_xen_pv import ask
from .test_xen_pvh import CMDLINE, Talk

pytestmark = pytest.mark.guest

P, RW = 1, 2
READ, WRITE, NEVER = SPARE, SPARE + PAGE, SPARE + 2 * PAGE
# modify_ldt(1, descriptor, 16); mov fs, 7; mov eax, fs:[0], which is "good"; write(1, it, 5); exit(0). And the
# descriptor of entry 0: its base is where "good" stands.
PROGRAM = bytes.fromhex(
    "bf01000000 488d353b000000 ba10000000 b89a000000 0f05 bf07000000 8ee7 488d3535000000 648b042500000000 8906"
    "bf01000000 ba05000000 89f8 0f05 31ff b83c000000 0f05 00000000 cf004000 ff0f0000 51000000 676f6f64 2e2e2e2e0a"
)


def program() -> bytes:
    """The program as a file of one sector."""
    ident = elf.ELFMAG + bytes([elf.ELFCLASS64, elf.ELFDATA2LSB, 1]) + bytes(9)
    start, base = elf.EHDR64.size + elf.PHDR64.size, 0x40_0000
    header = elf.EHDR64.pack(
        ident, elf.ET_EXEC, elf.EM_X86_64, 1, base + start, elf.EHDR64.size, 0, 0, 64, 56, 1, 0, 0, 0
    )
    size = start + len(PROGRAM)
    return (header + elf.PHDR64.pack(elf.PT_LOAD, 7, 0, base, base, size, size, PAGE) + PROGRAM).ljust(512, b"\0")


def test_a_stock_kernel_uses_more_than_4_gib_and_local_descriptors_and_takes_an_nmi(tmp_path: Path) -> None:
    disk = tmp_path / "program"
    disk.write_bytes(program())
    talk, guest = Talk(), default_guest(quiet)
    with XenHost("soft") as host:
        domain = host.create(
            "u1",
            guest.kernel,
            type="pv",
            vcpus=2,
            memory=4352,
            initrd=guest.initrd,
            cmdline=f"{CMDLINE} nmi_watchdog=0",
            console=talk,
            cache=PayloadCache(Path(default_root()) / "kernels"),
            disks=[f"{disk},raw,xvda,r"],
        )
        talk.wait_for(b"Leave with exit")
        ask(domain, talk, "free -m | awk '/Mem/ {print ($2 > 4100) \" much\"}'", "1 much")
        # the last 292 MiB are behind the machine's hole; Linux takes the highest memory first
        ask(domain, talk, "dd if=/dev/urandom of=/tmp/a bs=1M count=8; cp /tmp/a /tmp/b; cmp /tmp/? && echo o''k", "ok")
        frames = host.xen.domains[domain.domid].memory
        assert any(bytes(frames.view(0x1_0000_0000 + (at << 20), PAGE)).strip(b"\0") for at in range(200))
        ask(domain, talk, "cat /dev/xvda > /tmp/p; chmod +x /tmp/p; (/tmp/p; taskset 2 /tmp/p) | uniq -c", "2 good")
        ask(domain, talk, "(for i in 1 2 3 4; do /tmp/p & done; wait)", "good")
        # With the prompt, which one processor would else put into the kernel's words of the other.
        ask(domain, talk, "dmesg | grep -c 'W+X.*passed\\|BUG:'", "\r\n1\r\n~ # ")
        for vcpu in (0, 1):
            host.control.domains.trigger(domain.domid, Trigger.NMI, vcpu)
            talk.wait_for(f"NMI received for unknown reason 00 on CPU {vcpu}".encode())
        ask(domain, talk, "grep NMI /proc/interrupts | tr -s ' '", "NMI: 1 1 ")


def test_a_local_descriptor_table_has_no_gate_to_the_hypervisor_and_stays_as_it_was_checked(tmp_path: Path) -> None:
    data, gate = 0x00CF_F300_0000_FFFF, 0x0000_EE00_0008_0000
    with XenHost("soft") as host:
        player = Player(host, tmp_path / "kernel")
        good, bad = READ, WRITE
        player.memory.write(good, struct.pack("<Q", data))
        player.memory.write(bad, struct.pack("<Q", gate))
        wanted: list[int] = []

        def update(page: int, entry: int, errno: int = 0) -> None:
            player.update(player.entry(BASE + page), entry)
            wanted.append(-errno)

        update(good, good | P)
        update(bad, bad | P)
        player.extended(MmuExt.SET_LDT, BASE + good, 1024)  # the second page is refused, and so not in the table
        update(good, good | P | RW, Errno.EBUSY)
        update(bad, bad | P | RW)
        for descriptor, errno in ((gate, Errno.EINVAL), (data, 0)):
            player.call(Hypercall.UPDATE_DESCRIPTOR, good + 8, descriptor)
            wanted.append(-errno)
        player.extended(MmuExt.PIN_L1_TABLE, good >> 12)
        player.extended(MmuExt.SET_LDT, 0, 0)
        update(good, good | P | RW)
        wanted[2:2] = [0]
        wanted[-1:-1] = [-Errno.EINVAL, 0]
        pages = player.domain._built.guest.frames.pages  # type: ignore[attr-defined]
        assert player.play() == wanted
        assert pages.count[good >> 12] and player.memory.read(good + 8, 8) == struct.pack("<Q", data | 1 << 40)


def _map(player: Player, owner: int, ref: int, host_addr: int, flags: int) -> int:
    """Have the kernel map a grant; where the structure is."""
    at = player.argument(grants.MAP_GRANT_REF.pack(host_addr, flags, ref, owner, 0, 0, 0))
    player.call(Hypercall.GRANT_TABLE_OP, GrantTableOp.MAP_GRANT_REF, at, 1)
    return at - BASE


def _unmap(player: Player, handle: int, host_addr: int) -> int:
    at = player.argument(grants.UNMAP_GRANT_REF.pack(host_addr, 0, handle, 0))
    player.call(Hypercall.GRANT_TABLE_OP, GrantTableOp.UNMAP_GRANT_REF, at, 1)
    return at - BASE


def test_a_pv_kernel_uses_what_another_grants_it_and_cannot_name_it(tmp_path: Path) -> None:
    with XenHost("soft") as host:
        granter, mapper = Player(host, tmp_path / "a", "granter"), Player(host, tmp_path / "b", "mapper")
        theirs, owner = mapper.domain.domid, granter.domain.domid
        table = host.xen.domains[owner].grants.frame(0)
        for ref, flags in ((8, 0), (9, grants.GTF_READONLY)):
            entry = grants.GRANT_ENTRY_V1.pack(grants.GTF_PERMIT_ACCESS | flags, theirs, SPARE // PAGE + ref - 8)
            table[8 * ref : 8 * ref + 8] = entry
        granter.memory.write(SPARE, b"given")
        granter.memory.write(SPARE + PAGE, b"shown")
        found, mine = mapper.argument(bytes(16)), mapper.argument(b"mine")
        by_entry = grants.GNTMAP_HOST_MAP | grants.GNTMAP_CONTAINS_PTE
        maps = [
            _map(mapper, owner, 8, BASE + WRITE, grants.GNTMAP_HOST_MAP),
            _map(mapper, owner, 9, mapper.entry(BASE + READ), by_entry | grants.GNTMAP_READONLY),
            _map(mapper, owner, 9, mapper.entry(BASE + NEVER), by_entry),  # to write what may be read
            _map(mapper, owner, 8, mapper.root << 12, by_entry),  # not in a table of level 1
        ]
        mapper.call(COPY, found, BASE + WRITE, 5)
        mapper.call(COPY, found + 5, BASE + READ, 5)
        mapper.call(COPY, BASE + WRITE, mine, 4)
        mapper.call(Hypercall.XEN_VERSION, VersionOp.EXTRAVERSION, BASE + WRITE + 16)
        guest = mapper.domain._built.guest
        foreign = guest.shared_mfn + 512  # type: ignore[attr-defined]
        mapper.update(mapper.entry(BASE + NEVER), foreign << 12 | P | RW)
        mapper.extended(MmuExt.PIN_L1_TABLE, foreign)
        unmaps = [
            _unmap(mapper, 1, BASE + NEVER),
            _unmap(mapper, 0, BASE + WRITE),
            _unmap(mapper, 1, mapper.entry(BASE + READ)),
        ]
        results = mapper.play()
        assert results[-5:-3] == [-Errno.EPERM, -Errno.EINVAL]
        read = mapper.memory.read
        statuses = [grants.MAP_GRANT_REF.unpack(read(at, grants.MAP_GRANT_REF.size))[4] for at in maps]
        assert statuses == [GrantStatus.OKAY] * 2 + [GrantStatus.GENERAL_ERROR] * 2
        statuses = [grants.UNMAP_GRANT_REF.unpack(read(at, grants.UNMAP_GRANT_REF.size))[3] for at in unmaps]
        assert statuses == [GrantStatus.GENERAL_ERROR, GrantStatus.OKAY, GrantStatus.OKAY]
        assert read(found - BASE, 10) == b"givenshown"
        assert granter.memory.read(SPARE, 5) == b"minen"
        assert granter.memory.read(SPARE + 16, 1) == b"."
        assert struct.unpack_from("<H", table, 64)[0] == struct.unpack_from("<H", table, 72)[0] & ~grants.GTF_READONLY
        table.release()
