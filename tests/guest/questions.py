"""Hypercalls whose answers a domain without privilege gets from real Xen, and has to get here.

`xen-4.17.answers` is what Xen 4.17.7 of Debian 12 answered to a PVH DomU with one processor and 8 MiB, domain 1: for
each question its name, the result, and the first bytes of its structure afterwards. `ask_xen.py` asks real Xen again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bivisor.abi.xen import domctl, sysctl
from bivisor.abi.xen import event_channel as evtchn
from bivisor.abi.xen import grant_table as grant
from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.event_channel import EvtchnOp
from bivisor.abi.xen.xen import DOMID_SELF, HvmOp, Hypercall, MemoryOp, SchedOp, VcpuOp, VersionOp

from .player import SCRATCH

ANSWERS = Path(__file__).parent / "tiny" / "xen-4.17.answers"
SLOT = 256
P = -1
"""Among arguments: the address of the question's structure."""
OUTSIDE = 0xF000_0000
"""An address that the guest maps, and where it has no memory."""
HOLE = 0x5000
"""A frame of no memory."""
NOBODY = 77
DOM0 = 0
RESERVED = (DOMID_SELF, abi.DOMID_IO, abi.DOMID_XEN)


@dataclass(frozen=True, slots=True)
class Question:
    """One hypercall; `data` is its structure, and `shown` how many bytes of that are compared afterwards."""

    name: str
    nr: int
    arguments: tuple[int, ...]
    data: bytes = b""
    shown: int = 0

    def call(self, index: int) -> tuple[int, ...]:
        """Number and arguments of the question in place `index`."""
        return self.nr, *(self.address(index) if argument == P else argument for argument in self.arguments)

    @staticmethod
    def address(index: int) -> int:
        """Where its structure is."""
        return SCRATCH + SLOT * index


def questions() -> list[Question]:
    """All of them, in the order in which they are asked: some answers depend on those before."""
    asked: dict[str, Question] = {}
    for part in (_numbers, _version, _toolstack, _memory, _physdev, _vcpu, _sched, _hvm, _events, _grants, _others):
        for question in part():
            name = question.name
            while name in asked:
                name += " again"
            asked[name] = replace(question, name=name)
    return list(asked.values())


_ASKED_ELSEWHERE = {0, 1, 7, 12, 13, 15, 17, 18, 20, 21, 24, *range(27, 31), *range(32, 38), *range(39, 43)}


def _numbers() -> Iterator[Question]:
    """Hypercalls that a PVH domain does not have, with whatever arguments."""
    for nr in range(64):
        if nr not in _ASKED_ELSEWHERE:
            yield Question(f"hypercall {nr}", nr, (0, P, P, P), bytes(64))
    yield Question("hypercall 2**40", 1 << 40, ())
    yield Question("hypercall -1", -1 & (1 << 64) - 1, ())


def _version() -> Iterator[Question]:
    for cmd in range(13):
        if cmd not in (2, 3, 4, 8, 9, 10, 1):  # texts of the build
            yield Question(f"xen_version {cmd}", Hypercall.XEN_VERSION, (cmd, P), bytes(64), 8)
    for submap in (0, 1, 2):
        data = struct.pack("<II", submap, 0)
        yield Question(f"get_features {submap}", Hypercall.XEN_VERSION, (VersionOp.GET_FEATURES, P), data, 8)
    yield Question("get_features outside", Hypercall.XEN_VERSION, (VersionOp.GET_FEATURES, OUTSIDE))


def _toolstack() -> Iterator[Question]:
    size = domctl.SIZE
    yield Question("domctl outside", Hypercall.DOMCTL, (OUTSIDE,))
    yield Question("domctl of another version", Hypercall.DOMCTL, (P,), bytes(size))
    for cmd in (*range(1, 5), *range(5, 90), 1000, 1001, 1002, 1003, 0, 5000):
        for domid in (DOM0, DOMID_SELF) if cmd > 6 else (DOM0, 1, NOBODY, *RESERVED):
            data = domctl.HEADER.pack(cmd, domctl.INTERFACE_VERSION, domid).ljust(size, b"\0")
            yield Question(f"domctl {cmd} of {domid}", Hypercall.DOMCTL, (P,), data)
    yield Question("sysctl outside", Hypercall.SYSCTL, (OUTSIDE,))
    yield Question("sysctl of another version", Hypercall.SYSCTL, (P,), bytes(sysctl.SIZE))
    for cmd in range(31):
        data = sysctl.HEADER.pack(cmd, sysctl.INTERFACE_VERSION).ljust(sysctl.SIZE, b"\0")
        yield Question(f"sysctl {cmd}", Hypercall.SYSCTL, (P,), data)
    yield Question("platform_op", 7, (P,), struct.pack("<II", 17, 0x03000001).ljust(160, b"\0"))
    yield Question("platform_op of another version", 7, (P,), bytes(160))
    yield Question("xsm_op", 27, (P,), bytes(64))
    yield Question("kexec_op", 37, (0, P), bytes(64))
    yield Question("argo_op", 39, (1, P, P, 0, 0), bytes(64))
    yield Question("xenpmu_op", 40, (0, P), bytes(64))
    yield Question("dm_op of oneself", 41, (DOMID_SELF, 1, P), bytes(64))
    yield Question("dm_op of Dom0", 41, (DOM0, 1, P), bytes(64))
    yield Question("dm_op of nobody", 41, (NOBODY, 1, P), bytes(64))
    yield Question("hypfs_op", 42, (0, 0, 0, P, 64), bytes(64))


def _reservation(
    domid: int = DOMID_SELF, frames: tuple[int, ...] = (), order: int = 0, flags: int = 0, count: int | None = None
) -> bytes:
    """`struct xen_memory_reservation` with its list behind it; made for slot 0 and moved by `_placed`."""
    number = len(frames) if count is None else count
    return abi.MEMORY_RESERVATION.pack(0, number, order, flags, domid) + struct.pack(f"<{len(frames)}Q", *frames)


def _memory() -> Iterator[Question]:
    nr = Hypercall.MEMORY_OP
    for cmd in (8, 13, 16, 17, 18, 19, 20, 21, 22, 25, 26, 27, 29, 30, 31, 40, 63):
        yield Question(f"memory_op {cmd}", nr, (cmd, P), bytes(128))
    for cmd in (0, 1, 6, 5, 7, 9, 10, 11, 12, 15, 23, 24, 28):
        yield Question(f"memory_op {cmd} outside", nr, (cmd, OUTSIDE))
    for domid in (DOM0, NOBODY, *RESERVED[1:]):
        for cmd in (0, 1, 6, 3, 4, 14):
            data = struct.pack("<H", domid).ljust(32, b"\0") if cmd in (3, 4, 14) else _reservation(domid, count=0)
            yield Question(f"memory_op {cmd} of {domid}", nr, (cmd, P), data)
        data = abi.ADD_TO_PHYSMAP.pack(domid, 0, abi.MAPSPACE_SHARED_INFO, 0, HOLE)
        yield Question(f"add_to_physmap of {domid}", nr, (MemoryOp.ADD_TO_PHYSMAP, P), data)
        data = abi.REMOVE_FROM_PHYSMAP.pack(domid, HOLE)
        yield Question(f"remove_from_physmap of {domid}", nr, (MemoryOp.REMOVE_FROM_PHYSMAP, P), data)
        data = struct.pack("<HHIIIQQ", domid, 1, 0, 0, 0, 0, 0)
        yield Question(f"acquire_resource of {domid}", nr, (MemoryOp.ACQUIRE_RESOURCE, P), data)
        data = struct.pack("<HHHHQQQ", domid, 0, 0, 0, 0, 0, 0)
        yield Question(f"add_to_physmap_batch of {domid}", nr, (MemoryOp.ADD_TO_PHYSMAP_BATCH, P), data)
        data = struct.pack("<QQIIH6x", 0, 0, 0, 0, domid)
        yield Question(f"claim_pages of {domid}", nr, (24, P), data)
    for kind, number in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0)):
        data = struct.pack("<HHIIIQQ", DOMID_SELF, kind, number, 0, 0, 0, 0)
        name = f"acquire_resource type {kind} id {number} of oneself"
        yield Question(name, nr, (MemoryOp.ACQUIRE_RESOURCE, P), data, 24)
    data = struct.pack("<HHIIIQQ", DOMID_SELF, 1, 0, 0, 1, 0, 0)
    yield Question("acquire_resource with padding", nr, (MemoryOp.ACQUIRE_RESOURCE, P), data)
    yield Question("claim_pages of oneself", nr, (24, P), struct.pack("<QQIIH6x", 0, 0, 0, 0, DOMID_SELF))
    yield Question("set_memory_map of oneself", nr, (13, P), struct.pack("<H6xI4xQ", DOMID_SELF, 0, 0))
    yield Question("machine_memory_map", nr, (10, P), struct.pack("<I4xQ", 0, 0))
    yield Question("memory_map without room", nr, (9, P), struct.pack("<I4xQ", 0, 0))
    for space, index, gfn in (
        (0, 0, 0x900),
        (0, 1, 0x901),
        (0, 0, 0x902),
        (1, 0, 0x903),
        (1, 63, 0x904),
        (1, 64, 0x905),
        (1, 1 << 31, 0x906),
        (2, 0x300, 0x907),
        (2, HOLE, 0x907),
        (3, 0, 0x908),
        (4, 0, 0x909),
        (5, 0, 0x90A),
        (6, 0, 0x90B),
        (0, 0, 1 << 40),
        (0, 0, 1 << 52),
    ):
        data = abi.ADD_TO_PHYSMAP.pack(DOMID_SELF, 0, space, index, gfn)
        yield Question(f"add_to_physmap {space} {index:#x} {gfn:#x}", nr, (MemoryOp.ADD_TO_PHYSMAP, P), data)
    for space in range(7):
        data = struct.pack("<HHHHQQQ", DOMID_SELF, space, 0, 0, 0, 0, 0)
        yield Question(f"add_to_physmap_batch of none {space}", nr, (MemoryOp.ADD_TO_PHYSMAP_BATCH, P), data)
    for gfn in (0x907, 0x907, HOLE, 1 << 40, 0x650, 0x650):
        data = abi.REMOVE_FROM_PHYSMAP.pack(DOMID_SELF, gfn)
        yield Question(f"remove_from_physmap {gfn:#x}", nr, (MemoryOp.REMOVE_FROM_PHYSMAP, P), data)
    for cmd in (0, 1, 6):
        yield Question(f"reservation {cmd} of order 10", nr, (cmd, P), _reservation(order=10, count=1))
        yield Question(f"reservation {cmd} of order 63", nr, (cmd, P), _reservation(order=63, count=1))
        yield Question(f"reservation {cmd} too many", nr, (cmd, P), _reservation(count=1 << 60))
        yield Question(f"reservation {cmd} from beyond the end", nr, (cmd | 5 << 6, P), _reservation(count=2))
    yield Question("current_reservation", nr, (MemoryOp.CURRENT_RESERVATION, P), struct.pack("<H", 0))
    yield Question("exchange of another", nr, (11, P), _reservation(DOM0, count=0) * 2 + bytes(8))
    yield Question("exchange of nothing", nr, (11, P), _reservation(count=0) * 2 + bytes(8), 0)
    yield Question("exchange that is half done", nr, (11, P), _reservation(count=0) * 2 + struct.pack("<Q", 7))
    yield Question("exchange of unequal lists", nr, (11, P), _reservation(count=2) + _reservation(count=3) + bytes(8))
    yield Question("exchange between two", nr, (11, P), _reservation(count=1) + _reservation(DOM0, count=1) + bytes(8))


def _physdev() -> Iterator[Question]:
    for cmd in range(35):
        yield Question(f"physdev_op {cmd}", Hypercall.PHYSDEV_OP, (cmd, P), bytes(64))
        yield Question(f"physdev_op {cmd} outside", Hypercall.PHYSDEV_OP, (cmd, OUTSIDE))
    data = struct.pack("<H2xiiiiiiQ", DOMID_SELF, 0, 0, 0, 0, 0, 0, 0)
    yield Question("map_pirq of oneself", Hypercall.PHYSDEV_OP, (13, P), data)
    data = struct.pack("<H2xiiiiiiQ", DOM0, 0, 0, 0, 0, 0, 0, 0)
    yield Question("map_pirq of Dom0", Hypercall.PHYSDEV_OP, (13, P), data)


def _vcpu() -> Iterator[Question]:
    nr = Hypercall.VCPU_OP
    for cmd in (*range(4, 14), 14, 15, 99):
        yield Question(f"vcpu_op {cmd} of processor 5", nr, (cmd, 5, P), bytes(64))
    for cmd in (0, 1, 2, 3, 12):
        yield Question(f"vcpu_op {cmd} of processor 200", nr, (cmd, 200, P), bytes(64))
    for cmd in (3, 12, 13, 6, 7, 9, 14, 99):
        yield Question(f"vcpu_op {cmd}", nr, (cmd, 0, P), bytes(64))
    for cmd in (4, 5, 8, 10, 13, 0):
        yield Question(f"vcpu_op {cmd} outside", nr, (cmd, 0, OUTSIDE))
    for gfn, offset in ((HOLE, 0), (0x500, 4090), (0x500, 4), (0x500, 4096)):
        data = abi.REGISTER_VCPU_INFO.pack(gfn, offset)
        yield Question(f"register_vcpu_info {gfn:#x} {offset}", nr, (VcpuOp.REGISTER_VCPU_INFO, 0, P), data)
    data = abi.REGISTER_VCPU_INFO.pack(0x600, 0)
    yield Question("register_vcpu_info", nr, (VcpuOp.REGISTER_VCPU_INFO, 0, P), data)
    yield Question("register_vcpu_info twice", nr, (VcpuOp.REGISTER_VCPU_INFO, 0, P), data)
    yield Question("set_singleshot_timer in the past", nr, (8, 0, P), struct.pack("<QI", 1, 1))
    yield Question("set_singleshot_timer of another", nr, (8, 1, P), struct.pack("<QI", 1, 1))
    yield Question("stop_singleshot_timer", nr, (9, 0, 0))
    yield Question("set_timer_op", Hypercall.SET_TIMER_OP, (0,))


def _sched() -> Iterator[Question]:
    nr = Hypercall.SCHED_OP
    yield Question("yield", nr, (0, 0))
    for cmd in (2, 3, 4, 5, 6, 7):
        yield Question(f"sched_op {cmd} outside", nr, (cmd, OUTSIDE))
    yield Question("sched_op 8", nr, (8, P), bytes(32))
    yield Question("sched_op 99", nr, (99, P), bytes(32))
    yield Question("remote_shutdown of Dom0", nr, (SchedOp.REMOTE_SHUTDOWN, P), struct.pack("<H2xI", DOM0, 0))
    yield Question("remote_shutdown of nobody", nr, (SchedOp.REMOTE_SHUTDOWN, P), struct.pack("<H2xI", NOBODY, 0))
    yield Question("remote_shutdown of oneself", nr, (SchedOp.REMOTE_SHUTDOWN, P), struct.pack("<H2xI", DOMID_SELF, 0))
    yield Question("remote_shutdown of oneself by id", nr, (SchedOp.REMOTE_SHUTDOWN, P), struct.pack("<H2xI", 1, 0))
    yield Question("pin_override", nr, (7, P), struct.pack("<i", 0))
    yield Question("watchdog 9", nr, (6, P), struct.pack("<II", 9, 100))
    yield Question("watchdog 1 that is not there", nr, (6, P), struct.pack("<II", 1, 100))
    yield Question("watchdog new", nr, (6, P), struct.pack("<II", 0, 100))
    yield Question("watchdog 1", nr, (6, P), struct.pack("<II", 1, 0))
    yield Question("poll too many", nr, (3, P), abi.SCHED_POLL.pack(SCRATCH, 129, 1))
    yield Question("poll outside", nr, (3, P), abi.SCHED_POLL.pack(OUTSIDE, 1, 1))
    yield Question("poll of a port that is not there", nr, (3, P), abi.SCHED_POLL.pack(SCRATCH - 8, 1, 1))
    yield Question("shutdown_code", nr, (5, P), struct.pack("<I", 99))


def _hvm() -> Iterator[Question]:
    nr = Hypercall.HVM_OP
    for cmd in (2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 24, 25, 26, 99):
        yield Question(f"hvm_op {cmd}", nr, (cmd, P), bytes(64), 0)
    for cmd in (0, 1, 9, 10, 11, 12, 13, 15, 23, 25):
        yield Question(f"hvm_op {cmd} outside", nr, (cmd, OUTSIDE))
    yield Question("flush_tlbs", nr, (5, 0))
    yield Question("flush_tlbs with an argument", nr, (5, P), bytes(8))
    for domid in (DOM0, NOBODY, *RESERVED[1:]):
        for cmd in (0, 1):
            data = abi.HVM_PARAM.pack(domid, 1, 0)
            yield Question(f"hvm param {cmd} of {domid}", nr, (cmd, P), data)
    for index in range(41):
        # what says where this domain has its rings is not the same everywhere
        shown = 0 if index in (1, 2, 17, 18, 16, 15, 12, 36, 37, 9, 10, 8, 3, 7, 29, 32, 33, 35, 38, 24) else 16
        yield Question(f"get_param {index}", nr, (HvmOp.GET_PARAM, P), abi.HVM_PARAM.pack(DOMID_SELF, index, 0), shown)
    for index in range(41):
        if index in (14, 31, 37):  # sleep, why a triple fault would end it, and what crashes it
            continue
        data = abi.HVM_PARAM.pack(DOMID_SELF, index, 0)
        yield Question(f"set_param {index}", nr, (HvmOp.SET_PARAM, P), data)
    for via in (0x0100_0000_0000_0001, 0x0200_0000_0000_0008, 0x0200_0000_0000_00F3, 0x0300_0000_0000_0001, 0x21):
        data = abi.HVM_PARAM.pack(DOMID_SELF, 0, via)
        yield Question(f"callback via {via:#x}", nr, (HvmOp.SET_PARAM, P), data)
    for vcpu, vector in ((0, 0x0F), (0, 0), (1, 0x30), (200, 0x30), (0, 0x30)):
        data = struct.pack("<IB3x", vcpu, vector)
        yield Question(f"upcall vector {vector:#x} of {vcpu}", nr, (HvmOp.SET_EVTCHN_UPCALL_VECTOR, P), data)
    for domid in (DOMID_SELF, DOM0, NOBODY):
        for gfn in (0x500, HOLE):
            data = struct.pack("<HH4xQ", domid, 0, gfn)
            yield Question(f"get_mem_type {gfn:#x} of {domid}", nr, (HvmOp.GET_MEM_TYPE, P), data, 4)


def _events() -> Iterator[Question]:
    nr = Hypercall.EVENT_CHANNEL_OP
    for cmd in (*range(14), 14, 15, 99):
        yield Question(f"event_channel_op {cmd} outside", nr, (cmd, OUTSIDE))
    for domid in (DOM0, NOBODY, *RESERVED[1:]):
        data = evtchn.ALLOC_UNBOUND.pack(domid, DOMID_SELF, 0)
        yield Question(f"alloc_unbound of {domid}", nr, (EvtchnOp.ALLOC_UNBOUND, P), data)
        yield Question(f"status of {domid}", nr, (EvtchnOp.STATUS, P), evtchn.STATUS.pack(domid, 1, 0, 0, 0, 0))
        yield Question(f"reset of {domid}", nr, (EvtchnOp.RESET, P), evtchn.RESET.pack(domid))
        for port in (1, 2, 3, 60, 5000):
            data = evtchn.BIND_INTERDOMAIN.pack(domid, port, 0)
            yield Question(f"bind_interdomain {port} of {domid}", nr, (EvtchnOp.BIND_INTERDOMAIN, P), data)
    for port in (0, 60, 64, 5000, 1 << 31):
        for cmd in (EvtchnOp.CLOSE, EvtchnOp.SEND, EvtchnOp.UNMASK):
            yield Question(f"event_channel_op {cmd} of port {port}", nr, (cmd, P), struct.pack("<I", port))
        yield Question(f"bind_vcpu of port {port}", nr, (EvtchnOp.BIND_VCPU, P), struct.pack("<II", port, 0))
        yield Question(f"set_priority of port {port}", nr, (EvtchnOp.SET_PRIORITY, P), struct.pack("<II", port, 3))
        data = evtchn.STATUS.pack(DOMID_SELF, port, 0, 0, 0, 0)
        yield Question(f"status of port {port}", nr, (EvtchnOp.STATUS, P), data, 24)
    for virq, vcpu in ((0, 1), (0, 200), (1, 0), (3, 0), (3, 1), (24, 0), (13, 0)):
        data = evtchn.BIND_VIRQ.pack(virq, vcpu, 0)
        yield Question(f"bind_virq {virq} of {vcpu}", nr, (EvtchnOp.BIND_VIRQ, P), data, 8)
    yield Question("bind_virq 1 of 0 again", nr, (EvtchnOp.BIND_VIRQ, P), evtchn.BIND_VIRQ.pack(1, 0, 0))
    yield Question("bind_ipi of 3", nr, (EvtchnOp.BIND_IPI, P), struct.pack("<II", 3, 0))
    yield Question("bind_pirq 5", nr, (EvtchnOp.BIND_PIRQ, P), evtchn.BIND_PIRQ.pack(5, 0, 0))
    yield Question("expand_array in the 2-level ABI", nr, (EvtchnOp.EXPAND_ARRAY, P), struct.pack("<Q", 0x500))
    for gfn, offset, vcpu in (
        (0x500, 4, 0),
        (0x500, 4090, 0),
        (HOLE, 0, 0),
        (0x500, 0, 3),
        (0x500, 0, 0),
        (0x500, 0, 0),
    ):
        data = evtchn.INIT_CONTROL.pack(gfn, offset, vcpu, 0)
        yield Question(f"init_control {gfn:#x} {offset} of {vcpu}", nr, (EvtchnOp.INIT_CONTROL, P), data)
    yield Question("expand_array of no frame", nr, (EvtchnOp.EXPAND_ARRAY, P), struct.pack("<Q", HOLE))
    yield Question("expand_array", nr, (EvtchnOp.EXPAND_ARRAY, P), struct.pack("<Q", 0x501))
    yield Question("reset of oneself", nr, (EvtchnOp.RESET, P), evtchn.RESET.pack(DOMID_SELF))


def _grants() -> Iterator[Question]:
    nr = Hypercall.GRANT_TABLE_OP
    for cmd in range(15):
        yield Question(f"grant_table_op {cmd} outside", nr, (cmd, OUTSIDE, 1))
        yield Question(f"grant_table_op {cmd} of none", nr, (cmd, P, 0), bytes(64))
    yield Question("grant_table_op of many", nr, (0, P, 1 << 31), bytes(64))
    for domid in (DOM0, NOBODY, DOMID_SELF, *RESERVED[1:], 1):
        for ref in (0, 8, 511, 512, 1 << 20, 0xFFFF_FFFF):
            data = grant.MAP_GRANT_REF.pack(0x650_000, grant.GNTMAP_HOST_MAP, ref, domid, 0, 0, 0)
            yield Question(f"map {ref} of {domid}", nr, (0, P, 1), data, 24)
        data = grant.COPY.pack(8, domid, 0, 0x500, DOMID_SELF, 0, 64, grant.GNTCOPY_SOURCE_GREF, 0)
        yield Question(f"copy from grant of {domid}", nr, (5, P, 1), data + bytes(8), 40)
        data = grant.COPY.pack(0x500, domid, 0, 0x500, DOMID_SELF, 0, 64, 0, 0)
        yield Question(f"copy from frame of {domid}", nr, (5, P, 1), data + bytes(8), 40)
        data = grant.COPY.pack(0x500, DOMID_SELF, 0, 0x500, domid, 0, 64, 0, 0)
        yield Question(f"copy to frame of {domid}", nr, (5, P, 1), data + bytes(8), 40)
        yield Question(f"setup_table of {domid}", nr, (2, P, 1), grant.SETUP_TABLE.pack(domid, 0, 0, 0), 10)
        yield Question(f"query_size of {domid}", nr, (6, P, 1), grant.QUERY_SIZE.pack(domid, 0, 0, 0), 16)
        yield Question(f"get_version of {domid}", nr, (10, P, 1), grant.GET_VERSION.pack(domid, 0), 8)
        yield Question(f"get_status_frames of {domid}", nr, (9, P, 1), grant.GET_STATUS_FRAMES.pack(1, domid, 0, 0), 8)
        yield Question(f"transfer to {domid}", nr, (4, P, 1), grant.TRANSFER.pack(0x500, domid, 8, 0), 24)
    for flags in (0, 1, 2, 3, 4, 8, 16, 18, 32):
        data = grant.MAP_GRANT_REF.pack(0x650_000, flags, 8, DOM0, 0, 0, 0)
        yield Question(f"map with flags {flags}", nr, (0, P, 1), data, 24)
    for handle in (0, 5, 1 << 20, 0xFFFF_FFFF):
        data = grant.UNMAP_GRANT_REF.pack(0x650_000, 0, handle, 0)
        yield Question(f"unmap {handle:#x}", nr, (1, P, 1), data, 24)
        data = grant.UNMAP_AND_REPLACE.pack(0x650_000, 0, handle, 0)
        yield Question(f"unmap_and_replace {handle:#x}", nr, (7, P, 1), data, 24)
        data = grant.UNMAP_AND_REPLACE.pack(0x650_000, 0x651_000, handle, 0)
        yield Question(f"unmap_and_replace {handle:#x} by an address", nr, (7, P, 1), data, 24)
    for source, dest, length in ((0, 0, 4097), (4000, 0, 200), (0, 4000, 200), (0, 0, 64)):
        data = grant.COPY.pack(0x500, DOMID_SELF, source, 0x501, DOMID_SELF, dest, length, 0, 0)
        yield Question(f"copy {source} {dest} {length}", nr, (5, P, 1), data + bytes(8), 40)
    data = grant.COPY.pack(HOLE, DOMID_SELF, 0, 0x501, DOMID_SELF, 0, 64, 0, 0)
    yield Question("copy from no frame", nr, (5, P, 1), data + bytes(8), 40)
    for a, b in ((8, 9), (8, 1 << 20), (9, 9)):
        yield Question(f"swap {a} {b}", nr, (11, P, 1), grant.SWAP_GRANT_REF.pack(a, b, 0), 12)
    for version in (0, 3, 1, 2, 1):
        yield Question(f"set_version {version}", nr, (8, P, 1), struct.pack("<I", version), 4)
    yield Question("setup_table of too much", nr, (2, P, 1), grant.SETUP_TABLE.pack(DOMID_SELF, 65, 0, 0), 10)
    yield Question("setup_table of two", nr, (2, P, 2), grant.SETUP_TABLE.pack(DOMID_SELF, 1, 0, 0), 10)
    for op, length in ((0, 64), (1, 64), (4, 64), (1, 5000), (1 << 31, 64)):
        data = grant.CACHE_FLUSH.pack(0x500_000, 0, length, op)
        yield Question(f"cache_flush {op:#x} {length}", nr, (12, P, 1), data)


def _others() -> Iterator[Question]:
    yield Question("console_io write", Hypercall.CONSOLE_IO, (0, 5, P), b"hello")
    yield Question("console_io read", Hypercall.CONSOLE_IO, (1, 5, P), bytes(8))
    yield Question("console_io 7", Hypercall.CONSOLE_IO, (7, 5, P), bytes(8))
    for cmd in (0, 1, 2):
        for kind in (0, 1, 2, 3, 4, 5, 6, 31, 32, 33, 70):
            yield Question(f"vm_assist {cmd} {kind}", Hypercall.VM_ASSIST, (cmd, kind))
    for cmd in (0, 1, 2):
        yield Question(f"nmi_op {cmd}", Hypercall.NMI_OP, (cmd, P), bytes(32))
        yield Question(f"callback_op {cmd}", Hypercall.CALLBACK_OP, (cmd, P), bytes(32))
    yield Question("multicall of none", Hypercall.MULTICALL, (P, 0), bytes(64))
    yield Question("multicall outside", Hypercall.MULTICALL, (OUTSIDE, 1))
    entry = abi.MULTICALL_ENTRY.pack(Hypercall.XEN_VERSION, 0, 0, 0, 0, 0, 0, 0)
    yield Question("multicall of one", Hypercall.MULTICALL, (P, 1), entry, 16)
    entry = abi.MULTICALL_ENTRY.pack(Hypercall.MULTICALL, 0, 0, 0, 0, 0, 0, 0)
    yield Question("multicall of a multicall", Hypercall.MULTICALL, (P, 1), entry, 16)
    entry = abi.MULTICALL_ENTRY.pack(63, 0, 0, 0, 0, 0, 0, 0)
    yield Question("multicall of nothing known", Hypercall.MULTICALL, (P, 1), entry, 16)
    entry = abi.MULTICALL_ENTRY.pack(Hypercall.DOMCTL, 0, 0, 0, 0, 0, 0, 0)
    yield Question("multicall of a domctl", Hypercall.MULTICALL, (P, 1), entry, 16)
