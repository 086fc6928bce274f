"""Hypercalls of a PV kernel whose answers real Xen has given, and which have to be given here: most of them mean harm.

`tiny/xen-4.17-pv.answers` is what Xen 4.17.7 of Debian 12 answered to a PV DomU with one processor and 16 MiB. The
kernel that asks (`tiny/pv_questions.S`) is the same there and here. Its frames are not: what names one is written here
by pseudo-physical number, and the kernel puts machine frame numbers there before it asks. To ask real Xen again:

    cd tests; python -m guest.pv_questions build FILE     makes the kernel
    cd tests; python -m guest.pv_questions read LOG       makes the answers of what it wrote to its console
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bivisor.abi.xen.pv import MmuExt
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall, MemoryOp, SchedOp, ShutdownReason, VcpuOp

from .pv_player import BASE, KERNEL, kernel

ANSWERS = Path(__file__).parent / "tiny" / "xen-4.17-pv.answers"
LIST, DATA, FIXES, SPARE, OTHER, END = (KERNEL + page * 0x1000 for page in (1, 4, 8, 10, 11, 12))
ENTRY = struct.Struct("<6QqQ")
SLOT = 96
ROOT = 0xF_FFFF
"""Stands for the frame of the level-4 table in use."""
P, RW, US = 1, 2, 4
FAR = 1 << 38
"""A frame of which no machine has memory."""
NOBODY, DOM0 = 77, 0
HERE = -1
"""Among arguments: the address of the question's data."""
LISTED = -2
"""Among data: the address of their last word."""
NOT_CANONICAL, HYPERVISOR, UNMAPPED = 1 << 60, 0xFFFF_8000_0000_0000, 0x1234_5000
CODE = bytes.fromhex(
    "4889f54c8b66684c8b6e5848b800000080ffffffff4929c549c1ed0c48bb00801080ffffffff488b3b4885ff7436488b"
    "4b08488b074889c248d3ea81faffff0f0075034c89ea498b14d448d3e225ff0f000085c9750231c04809d04889074883"
    "c310ebc2488b454848ba000000000080ffff488b04c248c1e00c48ba00000080ffffffff4c8d2c1048bb00101080ffff"
    "ffff488b03488b7b08488b7310488b53184c8b53204c8b43280f0548894330b908000000c1c00489c283e20f83c23083"
    "fa3a720383c227e824000000ffc975e4ba0a000000e816000000b820000000bf04000000488d75500f054883c340eba2"
    "418bb50c0c000081e6ff070000418894350004000041ff850c0c0000c3"
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A value with a pseudo-physical frame number in it, which the kernel makes the machine's: `shift` is 12 in
    addresses and page-table entries, 0 where the number stands alone."""

    pfn: int
    rest: int = 0
    shift: int = 12


Value = int | Frame


@dataclass(frozen=True, slots=True)
class Question:
    """One hypercall; `data` is what its argument `HERE` points to, in 64-bit words."""

    name: str
    nr: int
    arguments: tuple[Value, ...]
    data: tuple[Value, ...] = ()


def _update(name: str, address: Value, value: Value, domains: int = DOMID_SELF) -> Question:
    return Question(name, Hypercall.MMU_UPDATE, (HERE, 1, 0, domains), (address, value))


def _map(name: str, value: Value, va: int = BASE + SPARE, flags: int = 0) -> Question:
    return Question(name, Hypercall.UPDATE_VA_MAPPING, (va, value, flags))


def _ext(name: str, cmd: int, first: Value = 0, second: Value = 0, domid: int = DOMID_SELF) -> Question:
    return Question(name, Hypercall.MMUEXT_OP, (HERE, 1, 0, domid), (cmd, first, second))


def questions() -> list[Question]:
    """All of them, in the order in which they are asked."""
    return [*_mappings(), *_tables(), *_extended(), *_descriptors(), *_entries(), *_others(), *_exchanges()]


def _mappings() -> Iterator[Question]:
    spare = Frame(SPARE >> 12, P | RW)
    yield _map("its own page table, writable", Frame(ROOT, P | RW))
    yield _map("its own page table, to be read", Frame(ROOT, P))
    yield _map("an ordinary page", spare)
    yield _map("nothing", 0)
    yield _map("an ordinary page again, and a flush", spare, flags=2)
    yield _map("a frame of no memory", FAR << 12 & 0xF_FFFF_FFFF_F000 | P | RW)
    yield _map("the last frame that can be named", 0xF_FFFF_FFFF_F000 | P)
    yield _map("an ordinary page at last", spare)
    yield _map("an address of the hypervisor's", spare, va=HYPERVISOR)
    yield _map("an address without tables", spare, va=0x10_0000_0000)
    both = Hypercall.UPDATE_VA_MAPPING_OTHERDOMAIN
    yield Question("a frame of Dom0's", both, (BASE + SPARE, spare, 0, DOM0))
    yield Question("a frame of nobody's", both, (BASE + SPARE, spare, 0, NOBODY))
    yield Question("its own frame as another's", both, (BASE + SPARE, spare, 0, DOMID_SELF))


def _tables() -> Iterator[Question]:
    yield _update("an entry of the hypervisor's", Frame(ROOT, 8 * 256), Frame(SPARE >> 12, P | RW))
    yield _update("an ordinary page as a table", Frame(ROOT, 8 * 300), Frame(SPARE >> 12, P | RW | US))
    yield _update("a table of no memory", Frame(ROOT, 8 * 300), FAR << 12 & 0xF_FFFF_FFFF_F000 | P | RW | US)
    yield _update("a large page", Frame(ROOT, 8 * 300), Frame(SPARE >> 12, P | RW | US | 0x80))
    yield _update("an empty entry", Frame(ROOT, 8 * 300), 0)
    yield _update("an entry in an ordinary page", Frame(SPARE >> 12, 8), 0x1234)
    yield _update("an entry in no memory", FAR << 12 & 0xF_FFFF_FFFF_F000, P)
    yield _update("an entry that is not aligned", Frame(ROOT, 4 + 8 * 300), 0)
    yield _update("the number of a frame", Frame(SPARE >> 12, 1), SPARE >> 12)
    yield _update("the number of no frame", FAR << 12 & 0xF_FFFF_FFFF_F000 | 1, 5)
    yield _update("an unknown kind of update", Frame(SPARE >> 12, 3), 0)
    yield _update("frames of Dom0", Frame(SPARE >> 12, 8), 0, DOM0)
    yield _update("frames of nobody", Frame(SPARE >> 12, 8), 0, NOBODY)
    yield _update("tables of Dom0", Frame(SPARE >> 12, 8), 0, DOMID_SELF | DOM0 + 1 << 16)
    yield _update("tables of nobody", Frame(SPARE >> 12, 8), 0, DOMID_SELF | NOBODY + 1 << 16)
    for name, list_ in (("nowhere", UNMAPPED), ("not canonical", NOT_CANONICAL), ("the hypervisor's", HYPERVISOR + 8)):
        yield Question(f"a list that is {name}", Hypercall.MMU_UPDATE, (list_, 1, 0, DOMID_SELF))
        yield Question(f"operations that are {name}", Hypercall.MMUEXT_OP, (list_, 1, 0, DOMID_SELF))
    yield Question("no updates", Hypercall.MMU_UPDATE, (HERE, 0, 0, DOMID_SELF))


def _extended() -> Iterator[Question]:
    root, spare = Frame(ROOT, shift=0), Frame(SPARE >> 12, shift=0)
    for level in range(1, 5):
        yield _ext(f"the root as table of level {level}", level - 1, root)
    for level in (1, 4):
        yield _ext(f"a page that it can write as table of level {level}", level - 1, spare)
    yield _ext("no memory as a table", MmuExt.PIN_L1_TABLE, FAR)
    yield _ext("unpin a page", MmuExt.UNPIN_TABLE, spare)
    yield _ext("unpin no memory", MmuExt.UNPIN_TABLE, FAR)
    yield _ext("a page as root", MmuExt.NEW_BASEPTR, spare)
    yield _ext("no memory as root", MmuExt.NEW_BASEPTR, FAR)
    yield _ext("a page as root of programs", MmuExt.NEW_USER_BASEPTR, spare)
    yield _ext("no root of programs", MmuExt.NEW_USER_BASEPTR, 0)
    yield _ext("the root again", MmuExt.NEW_BASEPTR, root)
    yield _ext("flush", MmuExt.TLB_FLUSH_LOCAL)
    yield _ext("flush all", MmuExt.TLB_FLUSH_ALL)
    yield _ext("flush those in a mask that is nowhere", MmuExt.TLB_FLUSH_MULTI, 0, UNMAPPED)
    yield _ext("flush a page of those in a mask that is nowhere", MmuExt.INVLPG_MULTI, BASE, UNMAPPED)
    yield _ext("flush a page", MmuExt.INVLPG_LOCAL, BASE + SPARE)
    yield _ext("flush a page that is not canonical", MmuExt.INVLPG_LOCAL, NOT_CANONICAL)
    yield _ext("flush caches", MmuExt.FLUSH_CACHE)
    yield _ext("flush all caches", MmuExt.FLUSH_CACHE_GLOBAL)
    yield _ext("no local descriptors", MmuExt.SET_LDT, 0, 0)
    yield _ext("local descriptors that are not aligned", MmuExt.SET_LDT, BASE + SPARE + 8, 4)
    yield _ext("too many local descriptors", MmuExt.SET_LDT, BASE + SPARE, 8193)
    yield _ext("local descriptors in a page that it can write", MmuExt.SET_LDT, BASE + SPARE, 4)
    yield _ext("local descriptors that are nowhere", MmuExt.SET_LDT, UNMAPPED, 8192)
    yield _ext("no local descriptors any more", MmuExt.SET_LDT, 0, 0)
    yield _ext("clear a page table", MmuExt.CLEAR_PAGE, root)
    yield _ext("clear no memory", MmuExt.CLEAR_PAGE, FAR)
    yield _ext("clear a page", MmuExt.CLEAR_PAGE, spare)
    yield _ext("copy over a page table", MmuExt.COPY_PAGE, root, spare)
    yield _ext("copy no memory", MmuExt.COPY_PAGE, spare, FAR)
    yield _ext("mark a page", MmuExt.MARK_SUPER, spare)
    yield _ext("an operation that is none", 77)
    yield _ext("pages of Dom0", MmuExt.PIN_L1_TABLE, spare, 0, DOM0)
    yield _ext("pages of nobody", MmuExt.PIN_L1_TABLE, spare, 0, NOBODY)


def _descriptors() -> Iterator[Question]:
    at = Frame(OTHER >> 12, 8)
    update = Hypercall.UPDATE_DESCRIPTOR
    yield _map("the other page, not to be written", Frame(OTHER >> 12, P), va=BASE + OTHER)
    for name, descriptor in {
        "nothing": 0,
        "what is not present": 0x0000_0E00_0008_0000,
        "a program's code": 0x00AF_FB00_0000_FFFF,
        "code of ring 0": 0x00AF_9B00_0000_FFFF,
        "data of ring 1": 0x00CF_B300_0000_FFFF,
        "a call gate into ring 0": 0x0000_EC00_0008_0000,
        "an interrupt gate": 0x0000_EE00_0008_0000,
        "a task gate": 0x0000_E500_0008_0000,
        "a task state": 0x0000_8900_0000_0067,
        "a local table": 0x0000_8200_0000_0FFF,
    }.items():
        yield Question(f"descriptor: {name}", update, (at, descriptor))
    yield Question("a descriptor that is not aligned", update, (Frame(OTHER >> 12, 4), 0))
    yield Question("a descriptor in no memory", update, (FAR << 12 & 0xF_FFFF_FFFF_F000, 0))
    yield Question("a descriptor in a page table", update, (Frame(ROOT, 8 * 300), 0))
    gdt = Hypercall.SET_GDT
    yield Question("descriptors in a page that it can write", gdt, (HERE, 512), (Frame(SPARE >> 12, shift=0),))
    yield Question("descriptors in a page table", gdt, (HERE, 512), (Frame(ROOT, shift=0),))
    yield Question("descriptors in no memory", gdt, (HERE, 512), (FAR,))
    yield Question("too many descriptors", gdt, (HERE, 14 * 512 + 1), (Frame(OTHER >> 12, shift=0),))
    yield Question("a list of descriptors that is nowhere", gdt, (UNMAPPED, 512))
    yield Question("descriptors", gdt, (HERE, 512), (Frame(OTHER >> 12, shift=0),))
    yield _map("its descriptors, writable", Frame(OTHER >> 12, P | RW), va=BASE + OTHER)
    yield Question("no descriptors", gdt, (HERE, 0))
    yield _map("what was its descriptors, writable", Frame(OTHER >> 12, P | RW), va=BASE + OTHER)


def _entries() -> Iterator[Question]:
    trap = Hypercall.SET_TRAP_TABLE
    yield Question("a handler that is not canonical", trap, (HERE,), (14 | 0xE033 << 16, NOT_CANONICAL, 0, 0))
    yield Question("handlers that are nowhere", trap, (UNMAPPED,))
    yield Question("a handler", trap, (HERE,), (14 | 0xE033 << 16, BASE + KERNEL, 0, 0))
    yield Question("no handlers", trap, (0,))
    yield Question("a stack that is not canonical", Hypercall.STACK_SWITCH, (0xE02B, NOT_CANONICAL))
    for number, what in enumerate(("event", "failsafe", "system call")):
        addresses = [NOT_CANONICAL if n == number else BASE + KERNEL for n in range(3)]
        yield Question(f"{what} callback that is not canonical", Hypercall.SET_CALLBACKS, tuple(addresses))
    op = Hypercall.CALLBACK_OP
    yield Question("a callback of no kind", op, (0, HERE), (99, BASE + KERNEL))
    yield Question("a callback that is not canonical", op, (0, HERE), (0, NOT_CANONICAL))
    yield Question("no event callback", op, (1, HERE), (0, 0))
    yield Question("an NMI callback", op, (0, HERE), (4, BASE + KERNEL))
    yield Question("no NMI callback", op, (1, HERE), (4, 0))
    yield Question("an operation on callbacks that is none", op, (9, HERE))
    base = Hypercall.SET_SEGMENT_BASE
    for segment in range(3):
        yield Question(f"segment base {segment} that is not canonical", base, (segment, NOT_CANONICAL))
    yield Question("a segment of no kind", base, (9, 0))
    set_, get = Hypercall.SET_DEBUGREG, Hypercall.GET_DEBUGREG
    for number, value in ((0, BASE), (0, HYPERVISOR), (0, NOT_CANONICAL), (4, 0), (5, 0), (8, 0), (6, 0), (7, 0)):
        yield Question(f"debug register {number} with {value:#x}", set_, (number, value))
    for number in (0, 4, 6, 7, 8):
        yield Question(f"what is in debug register {number}", get, (number,))


def _others() -> Iterator[Question]:
    yield Question("a hypercall that is none", 63, ())
    yield Question("IOPL 3", Hypercall.PHYSDEV_OP, (6, HERE), (3,))
    yield Question("IOPL 4", Hypercall.PHYSDEV_OP, (6, HERE), (4,))
    yield Question("ports", Hypercall.PHYSDEV_OP, (7, HERE), (BASE + SPARE, 65536))
    yield Question("too many ports", Hypercall.PHYSDEV_OP, (7, HERE), (BASE + SPARE, 65537))
    yield Question("an operation on devices that is none", Hypercall.PHYSDEV_OP, (99, HERE))
    for cmd, kind in ((0, 0), (1, 0), (0, 3), (0, 5), (0, 77), (7, 0)):
        yield Question(f"assist {cmd} {kind}", Hypercall.VM_ASSIST, (cmd, kind))
    yield Question("FPU", Hypercall.FPU_TASKSWITCH, (0,))
    vcpu = Hypercall.VCPU_OP
    yield Question("is it up", vcpu, (VcpuOp.IS_UP, 0))
    yield Question("up again", vcpu, (VcpuOp.UP, 0))
    yield Question("up what is not there", vcpu, (VcpuOp.UP, 1))
    yield Question("begin what is not there", vcpu, (VcpuOp.INITIALISE, 1, HERE))
    yield Question("a period that is too short", vcpu, (VcpuOp.SET_PERIODIC_TIMER, 0, HERE), (1000,))
    yield Question("a period", vcpu, (VcpuOp.SET_PERIODIC_TIMER, 0, HERE), (1 << 40,))
    yield Question("no period", vcpu, (VcpuOp.STOP_PERIODIC_TIMER, 0))
    memory = Hypercall.MEMORY_OP
    yield Question("put shared_info somewhere", memory, (MemoryOp.ADD_TO_PHYSMAP, HERE), (DOMID_SELF, 0, OTHER >> 12))
    yield Question("take a frame away", memory, (MemoryOp.REMOVE_FROM_PHYSMAP, HERE), (DOMID_SELF, OTHER >> 12))
    listed = BASE + DATA - 64
    yield Question("give nothing up", memory, (MemoryOp.DECREASE_RESERVATION, HERE), (listed, 0, 0, DOMID_SELF))
    yield Question("give no memory up", memory, (MemoryOp.DECREASE_RESERVATION, HERE), (listed, 1, 0, DOMID_SELF))
    end = Hypercall.MULTICALL
    yield Question("no calls", end, (HERE, 0))
    yield Question("calls that are nowhere", end, (UNMAPPED, 1))
    yield Question("a call of itself", end, (HERE, 1), (end, 0, 0, 1, 0, 0, 0, 0))


def _exchange(
    name: str,
    frame: Value,
    count: int = 1,
    orders: tuple[int, int] = (0, 0),
    flags: int = 0,
    domids: tuple[int, int] = (DOMID_SELF, DOMID_SELF),
    done: int = 0,
    wanted: int = 1,
    at: int = LISTED,
) -> Question:
    given = (at, count, orders[0], domids[0])
    return Question(
        name,
        Hypercall.MEMORY_OP,
        (MemoryOp.EXCHANGE, HERE),
        (*given, at, wanted, orders[1] | flags << 32, domids[1], done, 0, 0, frame),
    )


def _exchanges() -> Iterator[Question]:
    other = Frame(OTHER >> 12, shift=0)
    yield _exchange("exchange too much at once", other, orders=(10, 10))
    yield _exchange("exchange with more done than there is", other, done=2)
    yield _exchange("exchange with another", other, domids=(DOMID_SELF, DOM0))
    yield _exchange("exchange for less", other, count=2)
    yield _exchange("exchange what is done", other, done=1)
    yield _exchange("exchange nothing", other, count=0, wanted=0)
    yield _exchange("exchange frames of Dom0's", other, domids=(DOM0, DOM0))
    yield _exchange("exchange frames of nobody's", other, domids=(NOBODY, NOBODY))
    yield _exchange("exchange what is listed nowhere", other, at=UNMAPPED)
    yield _exchange("exchange its page table", Frame(ROOT, shift=0))
    yield _exchange("exchange no memory", FAR)
    yield _exchange("exchange a page that it has mapped", other)
    yield _map("the other page nowhere", 0, va=BASE + OTHER)
    yield _exchange("exchange for what no machine has", other, flags=1)
    yield _exchange("exchange a page", other)
    yield _map("what it has no longer", Frame(OTHER >> 12, P | RW), va=BASE + OTHER)


def build(path: Path) -> Path:
    """The kernel with its questions."""
    image = bytearray(END - KERNEL)
    image[: len(CODE)] = CODE
    fixes: list[tuple[int, int]] = []

    def put(at: int, value: Value) -> None:
        if isinstance(value, Frame):
            fixes.append((BASE + at, value.shift))
            value = value.pfn << value.shift | value.rest
        struct.pack_into("<Q", image, at - KERNEL, value & (1 << 64) - 1)

    asked = [*questions(), Question("end", Hypercall.SCHED_OP, (SchedOp.SHUTDOWN, HERE), (ShutdownReason.POWEROFF,))]
    assert len(asked) * ENTRY.size <= DATA - 64 - LIST and len(asked) * SLOT <= FIXES - DATA
    struct.pack_into("<Q", image, DATA - 64 - KERNEL, FAR)
    for index, question in enumerate(asked):
        data = DATA + SLOT * index
        put(LIST + ENTRY.size * index, question.nr)
        for number, argument in enumerate(question.arguments, 1):
            put(LIST + ENTRY.size * index + 8 * number, BASE + data if argument == HERE else argument)
        for number, word in enumerate(question.data):
            put(data + 8 * number, BASE + data + 8 * (len(question.data) - 1) if word == LISTED else word)
    struct.pack_into(f"<{2 * len(fixes)}Q", image, FIXES - KERNEL, *(word for fix in fixes for word in fix))
    return kernel(path, bytes(image))


def recorded() -> dict[str, int]:
    """What Xen answered to each question."""
    lines = (line.rpartition(": ") for line in ANSWERS.read_text().splitlines())
    return {name: int(result) for name, _, result in lines}


def signed(answer: int) -> int:
    """The lower half of a result as the number that it is."""
    return answer - (1 << 32) if answer >> 31 else answer


def record(log: Path) -> None:
    """Write down what Xen answered."""
    answers, asked = re.findall(rb"^([0-9a-f]{8})\r?$", log.read_bytes(), re.MULTILINE), questions()
    if len(answers) != len(asked):
        raise SystemExit(f"{log} has {len(answers)} answers to {len(asked)} questions")
    lines = [f"{each.name}: {signed(int(answer, 16))}\n" for each, answer in zip(asked, answers, strict=True)]
    ANSWERS.write_text("".join(lines))


if __name__ == "__main__":
    match sys.argv[1:]:
        case "build", where:
            print(build(Path(where)))
        case "read", log:
            record(Path(log))
        case _:
            raise SystemExit(__doc__)
