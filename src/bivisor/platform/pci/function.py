"""A PCI function: 256 bytes of configuration space, its base address registers, capabilities and interrupt pin.

Specification: PCI Local Bus Specification 3.0, chapter 6. A device derives from `PciFunction`, adds its BARs and
capabilities in its constructor, and interrupts through `msix.notify` or `set_intx`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from bivisor.errors import UsageError
from bivisor.platform.bus import Bus, Device
from bivisor.platform.pci import msi
from bivisor.platform.pci import registers as reg
from bivisor.platform.pci.bar import Bar, BarKind
from bivisor.platform.pci.msix import MsiX

_U16 = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a function says that it is. `class_code` is 24 bits: base class, sub-class, programming interface;
    `status` has what never changes in that register."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0
    status: int = 0


class PciHost(Protocol):
    """What a function needs of the bus that it sits on."""

    ports: Bus
    mmio: Bus

    def set_intx(self, function: PciFunction, level: bool) -> None:
        """The level of the interrupt pin of `function`."""

    def signal_msi(self, address: int, data: int) -> None:
        """Send a message-signalled interrupt."""

    def decode_changed(self) -> None:
        """A range has gone: another that was hidden under it may answer now."""


class PciFunction:
    """One function. `pin` is 1 (INTA) to 4 (INTD), or 0 for none. `name` names its claims on the buses."""

    def __init__(self, identity: Identity, *, name: str, pin: int = 0) -> None:
        self.name = name
        self.pin = pin
        self.bars: dict[int, Bar] = {}
        self.msix: MsiX | None = None
        self.config = bytearray(reg.CONFIG_SIZE)
        self._writable = bytearray(reg.CONFIG_SIZE)
        self._host: PciHost | None = None
        self._capabilities_end = reg.HEADER_END
        self._last_capability = reg.CAPABILITIES
        self._msix_control = -1
        self._intx = False
        struct.pack_into("<HH", self.config, reg.VENDOR_ID, identity.vendor, identity.device)
        _U16.pack_into(self.config, reg.STATUS, identity.status)
        struct.pack_into("<I", self.config, reg.REVISION, identity.class_code << 8 | identity.revision)
        struct.pack_into("<HH", self.config, reg.SUBSYSTEM_VENDOR, identity.subsystem_vendor, identity.subsystem)
        self.config[reg.INTERRUPT_PIN] = pin
        command = reg.COMMAND_IO | reg.COMMAND_MEMORY | reg.COMMAND_MASTER | reg.COMMAND_INTX_OFF
        _U16.pack_into(self._writable, reg.COMMAND, command)
        self._writable[reg.CACHE_LINE] = 0xFF
        self._writable[reg.INTERRUPT_LINE] = 0xFF

    # What a device does in its constructor

    def add_bar(self, index: int, kind: BarKind, size: int, device: Device, *, prefetchable: bool = False) -> Bar:
        """Let `device` answer in a range of `size` bytes (a power of two)."""
        bar = Bar(index, kind, size, device, prefetchable=prefetchable)
        if any(o.index < index + kind.registers and index < o.index + o.kind.registers for o in self.bars.values()):
            raise UsageError(f"{self.name}: BAR {index} is taken")
        self.bars[index] = bar
        self.config[bar.offset] = bar.flags
        self._writable[bar.offset : bar.offset + bar.width] = bar.writable()
        return bar

    def add_rom(self, data: bytes) -> None:
        """Give the function an expansion ROM (6.2.5.2)."""
        size = max(0x800, 1 << (len(data) - 1).bit_length())
        bar = self.add_bar(reg.ROM_BAR, BarKind.MEMORY32, size, _Rom(data.ljust(size, b"\xff")))
        self._writable[bar.offset] |= 1

    def add_capability(self, identifier: int, body: bytes, writable: bytes = b"", at: int = 0) -> int:
        """Put a capability at the end of the list, and `at` a place or where there is room: `body` follows its two-byte
        header. A set bit of `writable` can be written by the guest. The offset of its header."""
        offset = max(self._capabilities_end, at)
        length = 2 + len(body)
        if offset + length > reg.CONFIG_SIZE:
            raise UsageError(f"{self.name}: the capabilities do not fit into configuration space")
        self.config[self._last_capability] = offset
        self.config[offset : offset + length] = bytes((identifier, 0)) + body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        self.config[reg.STATUS] |= reg.STATUS_CAPABILITIES
        self._last_capability = offset + 1
        self._capabilities_end = offset + length + 3 & ~3
        return offset

    def add_msi(self, at: int) -> msi.Msi:
        """Give the function one message, kept `at` a place in configuration space."""
        offset = self.add_capability(reg.CAP_MSI, msi.BODY, msi.WRITABLE, at)
        return msi.Msi(self.config, offset, self._signal_msi)

    def add_msix(self, bar: int, vectors: int) -> MsiX:
        """Give the function MSI-X, with its table and pending bits in a BAR of their own."""
        msix = MsiX(vectors, self._signal_msi)
        self.add_bar(bar, BarKind.MEMORY32, msix.size, msix)
        self._msix_control = 2 + self.add_capability(reg.CAP_MSIX, *msix.capability(bar))
        self.msix = msix
        return msix

    # What a device does at work

    def set_intx(self, level: bool) -> None:
        """The level of the interrupt pin, as long as the guest has not turned it off."""
        self._intx = level
        self._drive_intx()

    @property
    def bus_master(self) -> bool:
        """Whether the guest allows the function to reach its memory."""
        return bool(self.config[reg.COMMAND] & reg.COMMAND_MASTER)

    def bar_moved(self, index: int, address: int | None) -> None:
        """BAR `index` answers at `address` from now on (None: nowhere). For devices that care."""

    def close(self) -> None:
        """Give back what the device holds of the host."""

    # What the bus does

    def plug(self, host: PciHost) -> None:
        """Sit on `host`."""
        if self._host is not None:
            raise UsageError(f"{self.name} sits on a bus already")
        self._host = host

    def unplug(self) -> None:
        """Leave the host: its ranges answer no more."""
        if self._host is not None:
            for bar in self.bars.values():
                bar.move(self._host.ports if bar.kind is BarKind.IO else self._host.mmio, None, self.name)
            self._host = None

    def config_read(self, offset: int, size: int) -> int:
        """`size` bytes of configuration space at `offset`, which lie inside it."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write configuration space: only what is writable changes."""
        config, writable = self.config, self._writable
        for at in range(offset, offset + size):
            mask = writable[at]
            config[at] = config[at] & ~mask | value & mask
            value >>= 8
        end = offset + size
        if offset < reg.ROM + 4 and end > reg.COMMAND:
            self._drive_intx()
            self.update_decode()
        if self.msix is not None and offset < self._msix_control + 2 and end > self._msix_control:
            self.msix.set_control(_U16.unpack_from(config, self._msix_control)[0])

    def assign_bar(self, bar: Bar, address: int) -> None:
        """Set a base address from the host's side, as firmware does before the guest starts."""
        value = address | bar.flags
        self.config[bar.offset : bar.offset + bar.width] = value.to_bytes(bar.width, "little")
        self.update_decode()

    def update_decode(self) -> None:
        """Answer where the BARs and the command register say."""
        if self._host is None:
            return
        gone = False
        for bar in self.bars.values():
            enabled = bar.is_enabled(self.config)
            bus = self._host.ports if bar.kind is BarKind.IO else self._host.mmio
            if bar.move(bus, bar.address(self.config) if enabled else None, f"{self.name} BAR {bar.index}"):
                gone = True
                self.bar_moved(bar.index, bar.mapped)
        if gone:
            self._host.decode_changed()

    def _drive_intx(self) -> None:
        if self._host is None:
            return
        if self._intx:
            self.config[reg.STATUS] |= reg.STATUS_INTX
        else:
            self.config[reg.STATUS] &= ~reg.STATUS_INTX & 0xFF
        off = _U16.unpack_from(self.config, reg.COMMAND)[0] & reg.COMMAND_INTX_OFF
        self._host.set_intx(self, self._intx and not off)

    def _signal_msi(self, address: int, data: int) -> None:
        if self._host is not None:
            self._host.signal_msi(address, data)


class _Rom:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        pass
