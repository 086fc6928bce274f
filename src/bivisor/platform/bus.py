"""Where devices attach: a bus maps the ports or addresses that a device claims to the device.

A device is any object with `read(offset, size) -> int` and `write(offset, size, value)`; `offset` counts from the start
of the range that it claimed. Reads where nothing answers give all ones, writes go nowhere, as on an ISA or PCI bus.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

from bivisor.errors import UsageError


class Device(Protocol):
    """What a bus needs of a device. `size` is 1, 2, 4 or 8 bytes; a value fits in it."""

    def read(self, offset: int, size: int) -> int:
        """The value at `offset`."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Take `value` at `offset`."""


@dataclass(frozen=True, slots=True)
class Claim:
    """`device` answers at `base` to `base + length - 1`."""

    base: int
    length: int
    device: Device
    name: str

    @property
    def end(self) -> int:
        """The first address after the claim."""
        return self.base + self.length


class Bus:
    """Claims in order of address. Two claims may not overlap. `find` is one dictionary look-up for a known address."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self._claims: list[Claim] = []
        self._bases: list[int] = []
        self._found: dict[int, Claim | None] = {}

    @property
    def claims(self) -> tuple[Claim, ...]:
        """All claims, lowest address first."""
        return tuple(self._claims)

    def attach(self, base: int, length: int, device: Device, name: str = "") -> Claim:
        """Let `device` answer at `base` to `base + length - 1`. UsageError if somebody already does."""
        claim = Claim(base, length, device, name or type(device).__name__)
        if length <= 0 or base < 0 or claim.end > self.limit:
            raise UsageError(f"{self.name}: {claim.name} cannot claim {base:#x}+{length:#x}: outside the bus")
        at = bisect_right(self._bases, base)
        for other in self._claims[max(0, at - 1) : at + 1]:
            if base < other.end and other.base < claim.end:
                raise UsageError(
                    f"{self.name}: {claim.name} at {base:#x}+{length:#x} overlaps {other.name} at {other.base:#x}"
                )
        self._claims.insert(at, claim)
        self._bases.insert(at, base)
        self._found.clear()
        return claim

    def attach_if_free(self, base: int, length: int, device: Device, name: str = "") -> Claim | None:
        """As `attach`; None where somebody answers there already or the bus ends, for places that a guest chooses."""
        try:
            return self.attach(base, length, device, name)
        except UsageError:
            return None

    def detach(self, claim: Claim) -> None:
        """Take a claim back; one that is not there is no error."""
        if claim in self._claims:
            at = self._claims.index(claim)
            del self._claims[at], self._bases[at]
            self._found.clear()

    def find(self, address: int) -> Claim | None:
        """The claim that covers `address`, or None."""
        try:
            return self._found[address]
        except KeyError:
            pass
        at = bisect_right(self._bases, address) - 1
        claim = self._claims[at] if at >= 0 and address < self._claims[at].end else None
        if len(self._found) > 8192:  # a guest that sweeps the address space must not fill the host's memory
            self._found.clear()
        self._found[address] = claim
        return claim

    def read(self, address: int, size: int) -> int:
        """The value of `size` bytes at `address`: all ones where nothing answers."""
        claim = self._found.get(address) or self.find(address)
        if claim is None:
            return _ONES[size]
        return claim.device.read(address - claim.base, size) & _ONES[size]

    def write(self, address: int, size: int, value: int) -> None:
        """Write `size` bytes at `address`: nothing happens where nothing answers."""
        claim = self._found.get(address) or self.find(address)
        if claim is not None:
            claim.device.write(address - claim.base, size, value)


_ONES = tuple((1 << 8 * size) - 1 for size in range(9))


def port_bus() -> Bus:
    """The 65,536 I/O ports."""
    return Bus("ports", 1 << 16)


def mmio_bus() -> Bus:
    """Guest-physical addresses that are not memory."""
    return Bus("mmio", 1 << 52)
