"""The SATA controller of an ICH9 in AHCI mode: global registers, and six ports.

Specification: Serial ATA AHCI 1.3.1, section 2.1 (configuration space), 2.4 and 10.14 (index and data pair), 3.1
(generic host control); Intel ICH9 data sheet, chapter 14, for where the capabilities are.
"""

from __future__ import annotations

import struct

from bivisor.errors import UsageError
from bivisor.platform.ahci import registers as r
from bivisor.platform.ahci.port import Port
from bivisor.platform.fwcfg import Memory
from bivisor.platform.ide.drive import Drive
from bivisor.platform.pci import BarKind, Identity, PciFunction
from bivisor.platform.pci import registers as reg

PORTS = 6
_ABAR, _ABAR_SIZE = 5, 0x1000
_PAIR_BAR, _PAIR_SIZE, _INDEX, _DATA = 4, 32, 0x10, 0x14
_MSI_AT, _SATA_AT = 0x80, 0xA8
_SATA = struct.pack("<BxI", 0x10, _PAIR_BAR + 4 | _INDEX // 4 << 4)
_MAP, _MAP_AHCI, _PORT_CONTROL = 0x90, 0x40, 0x92
_CAPABILITIES = (
    r.CAP_64 | r.CAP_NCQ | r.CAP_CLO | r.CAP_AHCI_ONLY | r.SPEED_1_5 << r.CAP_SPEED_SHIFT
    | r.SLOTS - 1 << r.CAP_SLOTS_SHIFT | PORTS - 1
)  # fmt: skip


class Ahci(PciFunction):
    """The controller. Commands and data are in `memory`; it interrupts by MSI or by its pin."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(Identity(0x8086, 0x2922, 0x010601, 0x02, 0x1AF4, 0x1100), name="AHCI", pin=1)
        self._global = 0
        self.ports: list[Port] = []
        self.ports += [Port(memory, self._drive, lambda: self.bus_master) for _ in range(PORTS)]
        self.config[_MAP] = _MAP_AHCI
        self._writable[_PORT_CONTROL] = 0x3F  # which ports are on: kept, and no more
        self._msi = self.add_msi(_MSI_AT)
        self.add_capability(reg.CAP_SATA, _SATA, at=_SATA_AT)
        self.add_bar(_PAIR_BAR, BarKind.IO, _PAIR_SIZE, _Pair(self))
        self.add_bar(_ABAR, BarKind.MEMORY32, _ABAR_SIZE, self)

    def add_drive(self, drive: Drive, port: int | None = None) -> int:
        """Put `drive` behind `port`, or the first that is free; its number. UsageError where there is none."""
        free = [number for number, each in enumerate(self.ports) if each.drive is None]
        number = free[0] if port is None and free else port
        if number not in free:
            raise UsageError(f"an AHCI controller has {PORTS} ports, and the one for this drive is taken")
        assert number is not None
        self.ports[number].plug(drive)
        return number

    def read(self, offset: int, size: int) -> int:
        """A register; a narrower access is a part of one, a wider one is two."""
        value = self._read(offset & ~3) >> 8 * (offset & 3)
        if size > 4:
            value |= self._read((offset & ~3) + 4) << 32
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Registers, whole."""
        if offset & 3 or size < 4:
            return
        self._write(offset, value & 0xFFFF_FFFF)
        if size > 4:
            self._write(offset + 4, value >> 32)

    def _read(self, offset: int) -> int:
        number, inside = divmod(offset - r.PORT_BASE, r.PORT_SIZE)
        if offset >= r.PORT_BASE:
            return self.ports[number].read(inside) if number < PORTS else 0
        match offset:
            case r.CAP:
                return _CAPABILITIES
            case r.GHC:
                return self._global | r.GHC_AE
            case r.IS:
                return sum(1 << number for number, port in enumerate(self.ports) if port.interrupts)
            case r.PI:
                return (1 << PORTS) - 1
            case r.VS:
                return r.VERSION_1_3_1
            case _:
                return 0

    def _write(self, offset: int, value: int) -> None:
        if offset >= r.PORT_BASE:
            number, inside = divmod(offset - r.PORT_BASE, r.PORT_SIZE)
            if number < PORTS:
                self.ports[number].write(inside, value)
        elif offset == r.GHC:
            self._global = value & r.GHC_IE
            if value & r.GHC_HR:
                self._global = 0
                for port in self.ports:
                    port.reset()
            self._drive()

    def _drive(self) -> None:
        wanted = bool(self._global & r.GHC_IE) and any(port.interrupts for port in self.ports)
        self.set_intx(wanted and not self._msi.notify())


class _Pair:
    """Ports by which a register is reached without its memory: its offset, and its value."""

    def __init__(self, controller: Ahci) -> None:
        self._controller = controller
        self._index = 0

    def read(self, offset: int, size: int) -> int:
        if size != 4:
            return 0
        return self._controller.read(self._index, 4) if offset == _DATA else self._index if offset == _INDEX else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4:
            return
        if offset == _INDEX:
            self._index = value & (_ABAR_SIZE - 4)
        elif offset == _DATA:
            self._controller.write(self._index, 4, value)
