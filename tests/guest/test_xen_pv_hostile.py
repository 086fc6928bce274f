"""A PV kernel that means harm: it gets Xen's errors, or is the only one that dies of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.pv import MmuExt
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall, ShutdownReason, VcpuOp, VersionOp
from bivisor.toolstack.xenhost import XenHost

from .pv_player import BASE, KERNEL, PATIENCE_S, SPARE, Player
from .test_xen_pv import ask, create
from .test_xen_pvh import Talk

pytestmark = pytest.mark.guest

P, RW, US = 1, 2, 4
_TRAP = struct.Struct("<BBH4xQ")


@pytest.fixture
def host(pv_engine: str) -> Iterator[XenHost]:
    with XenHost(pv_engine) as host:
        yield host


def test_what_a_pv_kernel_may_not_do_gets_xens_errors(host: XenHost, tmp_path: Path) -> None:
    player = Player(host, tmp_path / "kernel")
    root, entry = player.root, player.entry(BASE + SPARE)
    wanted: list[int] = []

    def expect(errno: int) -> None:
        wanted.append(-errno)

    player.call(Hypercall.XEN_VERSION, VersionOp.VERSION)
    wanted.append(4 << 16 | 17)
    player.update(entry, root << 12 | P | RW)  # its own page tables, writable
    expect(Errno.EBUSY)
    player.update(entry, root << 12 | P)  # to read them is its right
    expect(0)
    player.update(entry, SPARE | P | RW)
    expect(0)
    for frame in (1 << 20, 1 << 26, (1 << 38) >> 12, (1 << 40) - 1):  # beyond its memory, the hypervisor's among them
        player.update(entry, frame << 12 | P | RW)
        expect(Errno.EPERM if frame < (1 << 40) - 1 else Errno.EINVAL)
        player.update(frame << 12, P | RW)
        expect(Errno.EINVAL)
    player.update(root << 12 | 8 * 256, SPARE | P | RW)  # the hypervisor's slot
    expect(Errno.EINVAL)
    player.update(root << 12 | 8 * 300, SPARE | P | RW | US)  # a page that it can write, as a table
    expect(Errno.EINVAL)
    for command in (MmuExt.PIN_L1_TABLE, MmuExt.PIN_L2_TABLE, MmuExt.PIN_L3_TABLE):
        player.extended(command, root)
        expect(Errno.EINVAL)
    player.extended(MmuExt.PIN_L4_TABLE, SPARE >> 12)
    expect(Errno.EINVAL)
    player.extended(MmuExt.UNPIN_TABLE, SPARE >> 12)
    expect(Errno.EINVAL)
    player.extended(MmuExt.NEW_BASEPTR, SPARE >> 12)
    expect(Errno.EINVAL)
    player.extended(77, 0)
    expect(Errno.ENOSYS)
    player.call(Hypercall.UPDATE_DESCRIPTOR, SPARE, 0x0000_8E00_0008_0000)  # a gate into ring 0
    expect(Errno.EINVAL)
    player.call(Hypercall.SET_GDT, player.argument(struct.pack("<Q", SPARE >> 12)), 512)
    expect(Errno.EINVAL)  # a page that it can write
    player.call(Hypercall.MMU_UPDATE, 0x1234_5000, 1, 0, DOMID_SELF)
    expect(Errno.EFAULT)
    player.call(Hypercall.MMU_UPDATE, 1 << 38, 1, 0, DOMID_SELF)
    expect(Errno.EFAULT)
    player.call(Hypercall.MMU_UPDATE, player.argument(bytes(16)), 1, 0, 0)  # the frames of Dom0
    expect(Errno.EPERM)
    player.call(Hypercall.SET_TRAP_TABLE, player.argument(_TRAP.pack(14, 0, 0, 1 << 60)))
    expect(Errno.EINVAL)
    player.call(Hypercall.STACK_SWITCH, 0, 1 << 50)  # which would end it if it had a program to leave
    expect(0)
    for nowhere in (0x1234_5000, 1 << 50, 1 << 63):  # where a timer's time should be, which a stub may look for itself
        player.call(Hypercall.VCPU_OP, VcpuOp.SET_SINGLESHOT_TIMER, 0, nowhere)
        expect(Errno.EFAULT)
    player.call(Hypercall.VCPU_OP, VcpuOp.SET_SINGLESHOT_TIMER, 0, player.argument(struct.pack("<QI4x", 1 << 62, 0)))
    expect(0)
    player.call(99)
    expect(Errno.ENOSYS)
    inner = struct.pack("<8Q", Hypercall.MULTICALL, 0, 0, 0, 0, 0, 0, 0)
    at = player.argument(inner)
    player.call(Hypercall.MULTICALL, at, 1)
    expect(0)
    assert player.play() == wanted
    (result,) = struct.unpack("<q", player.memory.read(at - BASE + 8, 8))
    assert result == -Errno.EINVAL  # a multicall in a multicall


ENDS = {
    "no handler": "0f0b",  # ud2
    "a stack that is not mapped": "48c7c400000010 0f0b",  # mov rsp, 0x10000000; ud2
    "a stack that is the hypervisor's code": "48bc0018000080 80ffff 0f0b",  # mov rsp, the page of stub.S; ud2
    # stack_switch(0, 1 << 50), and HYPERVISOR_iret to a program at 0
    "a stack for programs to be left on that is no address": "b803000000 31ff 48be0000000000000400 0f05"
    "682be00000 54 6802020000 6833e00000 6a00 6a00 6a00 6a00 6a00 b817000000 0f05",
    "a jump to nowhere": "31c0 ffe0",  # xor eax, eax; jmp rax
    "a load of its own descriptors": "0f011c2500000000",  # lidt [0]
    "a page table of its own by CR3": "31c0 0f22d8",  # xor eax, eax; mov cr3, rax
    "paging off": "31c0 0f22c0",  # xor eax, eax; mov cr0, rax
    "an MSR of the machine": "b9820000c0 31c0 31d2 0f30",  # mov ecx, IA32_LSTAR; wrmsr
}


def test_every_way_to_fault_without_a_handler_ends_that_domain_alone(host: XenHost, tmp_path: Path) -> None:
    talk = Talk()
    working = create(host, talk, "working")
    for number, (name, code) in enumerate(ENDS.items()):
        player = Player(host, tmp_path / f"kernel{number}", f"hostile{number}", bytes.fromhex(code))
        player.domain.start()
        assert player.domain.wait(PATIENCE_S) is ShutdownReason.CRASH, name
        player.domain.destroy()
    talk.wait_for(b"Leave with exit")
    ask(working, talk, "echo still $((6 * 7))", "still 42")


def test_handlers_that_fault_for_ever_end_that_domain(host: XenHost, tmp_path: Path) -> None:
    # lea rdi, [rip + table]; mov eax, 0 (set_trap_table); syscall; ud2; and the table: #UD comes back to its own ud2
    code = bytes.fromhex("488d3d13000000 b800000000 0f05 0f0b")
    code = code.ljust(26, b"\x90") + _TRAP.pack(6, 0, 0, BASE + KERNEL + 14) + bytes(_TRAP.size)
    player = Player(host, tmp_path / "kernel", "loop", code)
    player.domain.start()
    assert player.domain.wait(PATIENCE_S) is ShutdownReason.CRASH
