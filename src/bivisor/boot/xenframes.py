"""Which machine frames a PV domain has when it begins, and which it can get in exchange.

Pseudo-physical frame n is machine frame n, up to a hole in the machine's memory: frames that the domain does not have,
so that a kernel which exchanges pages for others (XENMEM_exchange: in one piece, and below some address) finds such.
The hole is behind the domain's memory; if that reaches the addresses below 4 GiB which are devices' on a PC, the hole
ends with these and the rest of the domain's memory follows it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from bivisor.abi.xen.pv import INVALID_M2P_ENTRY
from bivisor.memory import PAGE, GuestMemory

SPARE: Final = 16 << 20
"""Bytes of machine memory beyond what the domain has."""
DEVICES: Final = (0xFEC0_0000, 1 << 32)
"""(first address, end) of what is no memory: both APICs, and what KVM may keep on Intel's older processors."""


@dataclass(frozen=True, slots=True)
class MachineFrames:
    """`count` frames of a domain; `hole` is what the machine has between the first ones and the rest, and `devices`,
    the end of that, what no frame of memory ever is."""

    count: int
    hole: range
    devices: range

    @classmethod
    def of(cls, size: int, spare: int = SPARE) -> MachineFrames:
        """For `size` bytes of memory."""
        first, end = DEVICES
        at, top = size // PAGE, (size + spare) // PAGE
        if top * PAGE <= first:
            return cls(at, range(at, top), range(top, top))
        hole = range((first - spare) // PAGE, end // PAGE)
        return cls(at, hole, range(first // PAGE, end // PAGE))

    @property
    def end(self) -> int:
        """How many frames the machine has, the hole included."""
        return self.count + len(self.hole)

    def memory(self, name: str) -> GuestMemory:
        """The machine's memory."""
        gap = DEVICES if self.devices else None
        return GuestMemory(self.end * PAGE, name=name, gap=gap, flat=True)

    def p2m(self) -> bytes:
        """The physical-to-machine list: the machine frame of each pseudo-physical one."""
        before = min(self.count, self.hole.start)
        after = self.count - before
        return struct.pack(f"<{self.count}Q", *range(before), *range(self.hole.stop, self.hole.stop + after))

    def fill_m2p(self, m2p: memoryview) -> None:
        """Write the other direction into `m2p`, 64-bit numbers of which there are `end`."""
        for mfn in self.hole:
            m2p[mfn] = INVALID_M2P_ENTRY
        for mfn in range(self.hole.stop, self.end):
            m2p[mfn] = mfn - len(self.hole)
