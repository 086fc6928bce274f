"""The Xen platform device, and the ports by which PV drivers have emulated devices unplugged.

Specification: docs/misc/hvm-emulated-unplug.markdown of Xen: ports 0x10 to 0x13, a magic number, a protocol version,
and a mask of what is to go. The PCI device is how a guest finds its drivers; its memory is room for them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag

from bivisor.platform.pci import BarKind, Identity, PciFunction

PORT, PORTS = 0x10, 4
MAGIC, PROTOCOL = 0x49D2, 1
_LINE_MAX = 256


class Unplug(IntFlag):
    """What a guest's drivers ask for."""

    IDE_DISKS = 1 << 0
    NICS = 1 << 1
    AUX_IDE_DISKS = 1 << 2
    NVME_DISKS = 1 << 3


class PlatformDevice(PciFunction):
    """Function 5853:0001. Nothing is in its ports and memory."""

    def __init__(self) -> None:
        super().__init__(Identity(0x5853, 0x0001, 0xFF8000, 0x01, 0x5853, 0x0001), name="Xen platform device", pin=1)
        self.add_bar(0, BarKind.IO, 0x100, _Nothing())
        self.add_bar(1, BarKind.MEMORY32, 1 << 24, _Nothing(), prefetchable=True)


class UnplugPorts:
    """Ports 0x10 to 0x13. `unplug` carries out a request; `say` takes what drivers log, line by line."""

    def __init__(self, unplug: Callable[[Unplug], None], say: Callable[[bytes], None]) -> None:
        self._unplug = unplug
        self._say = say
        self._line = bytearray()
        self.product = 0
        """The number of the drivers (Linux: 3), as they told it."""

    def read(self, offset: int, size: int) -> int:
        """The magic number at 0x10, the protocol's version at 0x12."""
        if offset == 0 and size >= 2:
            return MAGIC
        return PROTOCOL if offset == 2 else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """A word at 0x10: what is to be unplugged. At 0x12, a byte for the log or the product's number."""
        if offset == 0 and size == 2:
            self._unplug(Unplug(value & 0xF))
        elif offset == 2:
            if size == 1:
                self._log(value & 0xFF)
            else:
                self.product = value & 0xFFFF

    def _log(self, character: int) -> None:
        if character != ord("\n") and len(self._line) < _LINE_MAX:
            if character >= ord(" "):
                self._line.append(character)
            return
        line, self._line = bytes(self._line), bytearray()
        self._say(line)


class _Nothing:
    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass
