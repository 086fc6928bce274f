"""What hypervisor this is, as Dom0 is told by xen_version (version.h)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from bivisor.abi.xen.xen import Hypercall, VersionOp

ROOM = 1024
_TEXT = 64


@dataclass(frozen=True, slots=True)
class Version:
    """`extra` is what follows the two numbers, as in ".7"; `virt_start` where the hypervisor's half begins."""

    major: int
    minor: int
    extra: str
    capabilities: str
    changeset: str
    command_line: str
    compiler: str
    virt_start: int
    page_size: int


def version(hypercall: Callable[..., int], room: memoryview, address: int) -> Version:
    """Ask. `room` is `ROOM` bytes of the caller's memory, at `address`."""

    def ask(op: VersionOp) -> bytes:
        room[:] = bytes(ROOM)
        hypercall(Hypercall.XEN_VERSION, op, address)
        return bytes(room)

    def text(op: VersionOp) -> str:
        return ask(op).partition(b"\0")[0].decode(errors="replace")

    number = hypercall(Hypercall.XEN_VERSION, VersionOp.VERSION, 0)
    return Version(
        number >> 16,
        number & 0xFFFF,
        text(VersionOp.EXTRAVERSION),
        text(VersionOp.CAPABILITIES),
        text(VersionOp.CHANGESET),
        text(VersionOp.COMMANDLINE),
        ask(VersionOp.COMPILE_INFO)[:_TEXT].partition(b"\0")[0].decode(errors="replace"),
        struct.unpack_from("<Q", ask(VersionOp.PLATFORM_PARAMETERS))[0],
        hypercall(Hypercall.XEN_VERSION, VersionOp.PAGESIZE, 0),
    )
