"""Random hypercalls: any number with any arguments, and more often such as come close to being right."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from bivisor.abi.xen import domctl, sysctl
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall

from .player import MEMORY, SCRATCH, Ask

SLOTS, SLOT = 512, 256
ARENA = SCRATCH + 0x10_0000
"""Memory that the hypervisor may be asked to use: 2 MiB above the structures."""
ENDS_IT = 0.0002
"""How often a hypercall is one that by itself ends or blocks the domain."""

_PAGE = 4096
_EDGES = (0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0xFFF, 0x1000, 0xFFFF, 0x1_0000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_HUGE = (1 << 32, 1 << 40, (1 << 47) - 1, 1 << 47, 1 << 52, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 8)
_POINTERS = (0, MEMORY - 1, MEMORY - 8, MEMORY - _PAGE, MEMORY, 0xF000_0000, 0xFFFF_FFF8, *_HUGE)
_DOMIDS = (0, 0, 1, 2, 3, 4, 77, DOMID_SELF, DOMID_SELF, DOMID_SELF, 0x7FF1, 0x7FF2, 0x7FF4, 0xFFFF)
_OPS = {
    Hypercall.MEMORY_OP: 32,
    Hypercall.XEN_VERSION: 12,
    Hypercall.CONSOLE_IO: 3,
    Hypercall.GRANT_TABLE_OP: 14,
    Hypercall.VM_ASSIST: 3,
    Hypercall.VCPU_OP: 15,
    Hypercall.SCHED_OP: 8,
    Hypercall.EVENT_CHANNEL_OP: 16,
    Hypercall.PHYSDEV_OP: 32,
    Hypercall.HVM_OP: 27,
}
_TEMPLATES = (
    (Hypercall.EVENT_CHANNEL_OP, 0, "<H2xII", "domid port port"),
    (Hypercall.EVENT_CHANNEL_OP, 1, "<III", "small vcpu port"),
    (Hypercall.EVENT_CHANNEL_OP, 3, "<I", "port"),
    (Hypercall.EVENT_CHANNEL_OP, 4, "<I", "port"),
    (Hypercall.EVENT_CHANNEL_OP, 5, "<H2xIIIII", "domid port small small small small"),
    (Hypercall.EVENT_CHANNEL_OP, 6, "<HHI", "domid domid port"),
    (Hypercall.EVENT_CHANNEL_OP, 7, "<II", "vcpu port"),
    (Hypercall.EVENT_CHANNEL_OP, 8, "<II", "port vcpu"),
    (Hypercall.EVENT_CHANNEL_OP, 9, "<I", "port"),
    (Hypercall.EVENT_CHANNEL_OP, 10, "<H", "domid"),
    (Hypercall.EVENT_CHANNEL_OP, 11, "<QIIB7x", "gfn offset vcpu small"),
    (Hypercall.EVENT_CHANNEL_OP, 12, "<Q", "gfn"),
    (Hypercall.EVENT_CHANNEL_OP, 13, "<II", "port small"),
    (Hypercall.GRANT_TABLE_OP, 0, "<QIIHHIQ", "place flags ref domid small small small"),
    (Hypercall.GRANT_TABLE_OP, 0, "<QIIHHIQ", "place two ref victim small small small"),
    (Hypercall.GRANT_TABLE_OP, 1, "<QQII", "place zero small small"),
    (Hypercall.GRANT_TABLE_OP, 1, "<QQII", "place zero small small"),
    (Hypercall.GRANT_TABLE_OP, 5, "<QHH4xQHH4xHHI", "gfn domid offset ref domid offset offset flags small"),
    (Hypercall.GRANT_TABLE_OP, 5, "<QHH4xQHH4xHHI", "ref victim zero gfn self zero small one small"),
    (Hypercall.GRANT_TABLE_OP, 5, "<QHH4xQHH4xHHI", "gfn self zero ref victim zero small two small"),
    (Hypercall.GRANT_TABLE_OP, 8, "<I", "small"),
    (Hypercall.GRANT_TABLE_OP, 11, "<III", "ref ref small"),
    (Hypercall.MEMORY_OP, 1, "<QQIIH6x", "list small zero zero domid"),
    (Hypercall.MEMORY_OP, 1, "<QQIIH6x", "list count zero zero self"),
    (Hypercall.MEMORY_OP, 6, "<QQIIH6x", "list count zero zero self"),
    (Hypercall.MEMORY_OP, 6, "<QQIIH6x", "list small small zero domid"),
    (Hypercall.MEMORY_OP, 7, "<HHIQQ", "domid small small small gfn"),
    (Hypercall.MEMORY_OP, 7, "<HHIQQ", "self zero one small gfn"),
    (Hypercall.MEMORY_OP, 15, "<H6xQ", "self gfn"),
    (Hypercall.MEMORY_OP, 23, "<HHHHQQQ", "self small small small list list list"),
    (Hypercall.HVM_OP, 0, "<H2xIQ", "domid small value"),
    (Hypercall.HVM_OP, 1, "<H2xIQ", "domid small value"),
    (Hypercall.HVM_OP, 15, "<HH4xQ", "domid small gfn"),
    (Hypercall.HVM_OP, 23, "<II", "vcpu small"),
    (Hypercall.SCHED_OP, 4, "<H2xI", "domid small"),
)
"""(number, operation, its structure, what its fields are)."""

_BUSY = (Hypercall.MEMORY_OP, Hypercall.GRANT_TABLE_OP, Hypercall.EVENT_CHANNEL_OP, Hypercall.HVM_OP)
_ENDING = {0, 1, 2, 3, 6}  # of sched_op: yield is among them to keep the others rare
_WORD = struct.Struct("<Q")


@dataclass
class Fuzzer:
    """A reproducible source of hypercalls. `victims` are the domains that nothing may happen to."""

    random: random.Random
    victims: tuple[int, ...]

    def domid(self) -> int:
        """A domain: oneself, Dom0, a victim, one that is reserved, one that is not there."""
        return self.random.choice((*_DOMIDS, *self.victims))

    def gfn(self) -> int:
        """A frame number: mostly of the arena, so that the guest seldom takes away what it lives on."""
        pick = self.random.random()
        if pick < 0.6:
            return self.random.randrange(ARENA // _PAGE, MEMORY // _PAGE)
        if pick < 0.8:
            return 0x900 + self.random.randrange(64)
        if pick < 0.95:
            return self.random.randrange(0x1000, 0x4000)
        return self.random.choice((1 << 28, (1 << 28) - 1, 1 << 40, 1 << 52, (1 << 64) - 1, MEMORY // _PAGE))

    def pointer(self) -> int:
        """An address: mostly of a structure, sometimes one that leaves memory, or no address at all."""
        pick = self.random.random()
        if pick < 0.85:
            return SCRATCH + SLOT * self.random.randrange(SLOTS)
        if pick < 0.95:
            return self.random.randrange(ARENA, MEMORY)
        return self.random.choice(_POINTERS)

    def value(self) -> int:
        """Any number."""
        match self.random.randrange(8):
            case 0:
                return self.domid()
            case 1:
                return self.gfn()
            case 2:
                return self.pointer()
            case 3:
                return self.random.choice(_EDGES)
            case 4:
                return self.random.choice(_HUGE)
            case 5:
                return self.random.getrandbits(64)
            case _:
                return self.random.randrange(64)

    def count(self) -> int:
        """How many structures: few, as a rule, because a great many take the guest itself a long time."""
        if self.random.random() < 0.0005:
            return self.random.choice((1 << 12, 1 << 31, (1 << 32) - 1, 1 << 63))
        return self.random.choice((0, 1, 1, 1, 1, 2, 3, 8, 70))

    def field(self, kind: str) -> int:
        """A value for a field of that kind."""

        def choose(values: Sequence[int]) -> int:
            return self.random.choice(values)

        match kind:
            case "domid" | "gfn" | "value" | "count":
                return int(getattr(self, kind)())
            case "victim":
                return choose(self.victims)
            case "self":
                return DOMID_SELF
            case "zero" | "one" | "two":
                return ["zero", "one", "two"].index(kind)
            case "port" | "ref":
                return choose((*range(1, 24), 63, 64, 511, 512, 1023, 1024, 4096, 1 << 17, (1 << 32) - 1))
            case "vcpu":
                return choose((0, 0, 0, 1, 31, 128, 1 << 31))
            case "place":
                return 0xA0_0000 + 0x1000 * self._small(24) + choose((0, 0, 0, 0, 0, 8))
            case "list":
                return ARENA + SLOT * self._small(64)
            case "offset":
                return choose((0, 8, 64, 4, 4032, 4088, 4095, 4096, 65535))
            case "flags":
                return choose((1, 2, 2, 2, 3, 6, 6, 18, 0xFFFF))
            case _:
                return self._small(40)

    def template(self) -> tuple[int, int, bytes]:
        """Number, operation and structure of a hypercall that could be meant."""
        nr, cmd, layout, kinds = self.random.choice(_TEMPLATES)
        fields = struct.Struct(layout)
        sizes = [struct.calcsize("<" + code) for code in layout[1:] if code in "BHIQ"]
        values = [self.field(kind) & (1 << 8 * size) - 1 for kind, size in zip(kinds.split(), sizes, strict=True)]
        return nr, cmd, fields.pack(*values)

    def structure(self) -> bytes:
        """What a pointer may point to: fields of 2, 4 and 8 bytes, some of them plausible."""
        pick = self.random.random()
        if pick < 0.04:
            return self._privileged(domctl.HEADER.pack(self._small(90), domctl.INTERFACE_VERSION, self.domid()))
        if pick < 0.06:
            return self._privileged(sysctl.HEADER.pack(self._small(32), sysctl.INTERFACE_VERSION))
        if pick < 0.08:
            return b"".join(self._multicall() for _ in range(4))
        if pick < 0.55:  # domid first, as most structures have it
            words = [self.domid() | self._small(8) << 16 | self._small(64) << 32]
            return _WORD.pack(words[0]) + self._words(31)
        return self._words(32)

    def _small(self, limit: int) -> int:
        return self.random.randrange(limit)

    def _words(self, count: int) -> bytes:
        return struct.pack(f"<{count}Q", *(self._word() for _ in range(count)))

    def _word(self) -> int:
        if self.random.random() < 0.5:
            return self.value()
        return (self._small(64) | self.domid() << 32) if self.random.random() < 0.5 else self._small(1024)

    def _privileged(self, head: bytes) -> bytes:
        return head + self._words(30)[: SLOT - len(head)]

    def _multicall(self) -> bytes:
        nr, *arguments = self.call()
        return struct.pack("<8Q", nr, 0, *(argument & (1 << 64) - 1 for argument in (*arguments, *[0] * 6)[:6]))

    def call(self) -> Ask:
        """One hypercall."""
        pick = self.random.random()
        if pick < 0.05:
            return (self.value(), *(self.value() for _ in range(6)))
        nr = self.random.choice(_BUSY) if pick < 0.7 else self.random.choice([*Hypercall, 19, 31, 38])
        if nr == Hypercall.MULTICALL:
            return nr, self.pointer(), self.count()
        commands = _OPS.get(Hypercall(nr)) if nr in Hypercall.__members__.values() else None
        if commands is None:
            return (nr, *(self.pointer() if self.random.random() < 0.6 else self.value() for _ in range(5)))
        cmd = self._small(commands) if self.random.random() < 0.97 else self.value()
        if nr == Hypercall.SCHED_OP and cmd in _ENDING and self.random.random() > ENDS_IT * 50:
            cmd = 0
        if nr == Hypercall.MEMORY_OP and self.random.random() < 0.1:
            cmd |= self.value() << 6
        if nr == Hypercall.GRANT_TABLE_OP:
            return nr, cmd, self.pointer(), self.count()
        if nr == Hypercall.VCPU_OP:
            return nr, cmd, self.random.choice((0, 0, 0, 1, 5, 1 << 31)), self.pointer()
        if nr == Hypercall.CONSOLE_IO:
            return nr, cmd, self.value(), self.pointer()
        return nr, cmd, self.pointer(), self.value(), self.value()

    def batch(self, count: int) -> tuple[list[Ask], bytes]:
        """So many hypercalls, and the structures that they point to."""
        calls, structures = [], []
        for index in range(count):
            if index >= SLOTS or self.random.random() < 0.5:
                calls.append(self.call())
                structures.append(self.structure())
            else:
                nr, cmd, structure = self.template()
                calls.append((nr, cmd, SCRATCH + SLOT * index, 1))
                structures.append(structure)
        frames = [self.gfn() for _ in range(64 * SLOT // 8)]
        lists = struct.pack(f"<{len(frames)}Q", *frames).ljust(ARENA - SCRATCH, b"\0")
        data = b"".join(structure[:SLOT].ljust(SLOT, b"\0") for structure in structures[:SLOTS])
        return calls, data.ljust(ARENA - SCRATCH, b"\0") + lists
