"""A base address register: a range of ports or addresses that the guest can place where it likes.

Specification: PCI Local Bus Specification 3.0, section 6.2.5.1 "Address Maps".
"""

from __future__ import annotations

from enum import Enum

from bivisor.errors import UsageError
from bivisor.platform.bus import Bus, Claim, Device
from bivisor.platform.pci import registers as reg


class BarKind(Enum):
    """What the range is."""

    IO = reg.BAR_IO
    MEMORY32 = 0
    MEMORY64 = reg.BAR_64

    @property
    def registers(self) -> int:
        """How many of the six registers it takes."""
        return 2 if self is BarKind.MEMORY64 else 1

    @property
    def enabled_by(self) -> int:
        """The bit of the command register that makes the function answer there."""
        return reg.COMMAND_IO if self is BarKind.IO else reg.COMMAND_MEMORY


class Bar:
    """`size` bytes, answered by `device`, at the address that the guest has written to register `index`.

    UsageError for a size that is not a power of two or is below the least that PCI allows.
    """

    def __init__(self, index: int, kind: BarKind, size: int, device: Device, *, prefetchable: bool = False) -> None:
        least = 4 if kind is BarKind.IO else 16
        if size < least or size & size - 1:
            raise UsageError(f"BAR {index} of {size} bytes: it has to be a power of two, {least} at least")
        if not 0 <= index <= reg.BARS - kind.registers and index != reg.ROM_BAR:
            raise UsageError(f"BAR {index}: a function has {reg.BARS} base address registers")
        self.index = index
        self.kind = kind
        self.size = size
        self.device = device
        self.flags = kind.value | (reg.BAR_PREFETCH if prefetchable else 0)
        self._claim: Claim | None = None
        self._bus: Bus | None = None

    @property
    def offset(self) -> int:
        """Where its register is in configuration space."""
        return reg.BAR0 + 4 * self.index

    @property
    def width(self) -> int:
        """Bytes of configuration space."""
        return 4 * self.kind.registers

    @property
    def mapped(self) -> int | None:
        """The address at which the device answers now."""
        return self._claim.base if self._claim else None

    def writable(self) -> bytes:
        """Which bits of the register the guest can write: those that the size leaves free."""
        return (-self.size & (1 << 8 * self.width) - 1).to_bytes(self.width, "little")

    def is_enabled(self, config: bytearray) -> bool:
        """Whether the guest has turned it on: by the command register, and an expansion ROM by its own bit as well."""
        if self.index == reg.ROM_BAR and not config[self.offset] & 1:
            return False
        return bool(config[reg.COMMAND] & self.kind.enabled_by)

    def address(self, config: bytearray) -> int:
        """The address in `config`."""
        return int.from_bytes(config[self.offset : self.offset + self.width], "little") & -self.size

    def move(self, bus: Bus, wanted: int | None, name: str) -> bool:
        """Answer at `wanted` (None: nowhere); whether that changed anything.

        Address 0 means that the register has not been set. Where the guest puts a range over another one or beyond the
        bus, the one that was there first goes on to answer, and this one does not.
        """
        if not wanted:
            wanted = None
        if wanted == self.mapped:
            return False
        before = self.mapped
        if self._claim is not None and self._bus is not None:
            self._bus.detach(self._claim)
            self._claim = None
        if wanted is not None:
            try:
                self._claim, self._bus = bus.attach(wanted, self.size, self.device, name), bus
            except UsageError:
                self._claim = None
        return self.mapped != before
