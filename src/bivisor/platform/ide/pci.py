"""The IDE function of the PIIX3: two channels at their old ports, and the bus masters in a BAR.

Specification: Intel 82371SB (PIIX3) data sheet, function 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bivisor.platform.bus import Bus
from bivisor.platform.fwcfg import Memory
from bivisor.platform.ide.busmaster import BusMaster
from bivisor.platform.ide.channel import COMMAND_PORTS, Channel
from bivisor.platform.ide.drive import Drive
from bivisor.platform.ide.feed import Feeder, PortFeed
from bivisor.platform.pci import BarKind, Identity, PciFunction
from bivisor.platform.pci import registers as reg

CHANNELS = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))
_TIMING = (0x41, 0x43)
_BUS_MASTER_BAR = 4


class PiixIde(PciFunction):
    """Function 1 of the PIIX3. `set_irq(line, level)` is the interrupt controllers'."""

    def __init__(self, memory: Memory, set_irq: Callable[[int, bool], None], feeder: Feeder | None = None) -> None:
        status = reg.STATUS_MEDIUM | reg.STATUS_FAST_B2B
        super().__init__(Identity(0x8086, 0x7010, 0x010180, 0x00, 0x1AF4, 0x1100, status), name="PIIX3 IDE")
        self.channels: list[Channel] = []
        self.masters: list[BusMaster] = []
        feed = PortFeed(feeder)
        for port, _, irq in CHANNELS:
            master = BusMaster(memory)
            channel = Channel(port, partial(self._interrupt, master, set_irq, irq), master.transfer, feed)
            master.channel = channel
            self.channels.append(channel)
            self.masters.append(master)
        self.add_bar(_BUS_MASTER_BAR, BarKind.IO, 16, _Masters(self.masters))
        for at in _TIMING:
            self.config[at] = 0x80  # the channel is decoded
        self._writable[0x40:0x45] = b"\xff" * 5

    @staticmethod
    def _interrupt(master: BusMaster, set_irq: Callable[[int, bool], None], line: int, level: bool) -> None:
        if level:
            master.interrupted()
        set_irq(line, level)

    def attach(self, ports: Bus) -> None:
        """Claim the channels' ports."""
        for number, ((command, control, _), channel) in enumerate(zip(CHANNELS, self.channels, strict=True)):
            ports.attach(command, COMMAND_PORTS, channel, f"IDE {number}")
            ports.attach(control, 1, channel.control, f"IDE {number} control")

    def add_drive(self, drive: Drive, place: int) -> None:
        """Plug `drive` in: 0 and 1 are the primary channel's, 2 and 3 the secondary's."""
        self.channels[place >> 1].drives[place & 1] = drive

    def forget_setup(self) -> None:
        """The function as after a reset: whoever wants its bus masters has to place them again."""
        self.config_write(reg.COMMAND, 2, 0)
        self.config_write(reg.BAR0 + 4 * _BUS_MASTER_BAR, 4, 0)


class _Masters:
    def __init__(self, masters: list[BusMaster]) -> None:
        self._masters = masters

    def read(self, offset: int, size: int) -> int:
        return self._masters[offset >> 3].read(offset & 7, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._masters[offset >> 3].write(offset & 7, size, value)
