"""Cards whose expansion ROMs are memory: firmware copies them, and an ioreq for each word would take longer than all
else that it does."""

from __future__ import annotations

from bivisor.dom0.hvm.memory import ForeignWindows
from bivisor.host.loop import Clock
from bivisor.memory import PAGE, MemoryRegion
from bivisor.platform.e1000 import E1000
from bivisor.platform.pci.registers import ROM_BAR
from bivisor.platform.vga import VgaCard


def rom_region(rom: bytes, name: str) -> MemoryRegion:
    """A region of as many bytes as the BAR of `rom` has, with it in there."""
    region = MemoryRegion(max(PAGE, 1 << (len(rom) - 1).bit_length()), name)
    region.view[: len(rom)] = rom
    return region


class HvmVga(VgaCard):
    """The adapter. It has its ROM's memory."""

    def __init__(self, clock: Clock, windows: ForeignWindows, rom: bytes) -> None:
        super().__init__(clock, windows, rom)
        self._rom_windows = windows
        self._rom = rom_region(rom, "bivisor-vga-rom")

    def bar_moved(self, index: int, address: int | None) -> None:
        """See `PciFunction.bar_moved`."""
        super().bar_moved(index, address)
        if index == ROM_BAR:
            self._rom_windows.show("VGA ROM", address, self._rom, 0, self.bars[ROM_BAR].size, readonly=True)

    def close(self) -> None:
        """See `PciFunction.close`."""
        super().close()
        self._rom.close()


class HvmNic(E1000):
    """The network card. The memory of its ROM is the board's: the guest may still have it when the card goes."""

    _rom: tuple[ForeignWindows, MemoryRegion, str] | None = None

    def show_rom(self, windows: ForeignWindows, rom: MemoryRegion, name: str) -> None:
        """Give it the expansion ROM `rom`, in the window `name`."""
        self.add_rom(bytes(rom.view))
        self._rom = windows, rom, name

    def bar_moved(self, index: int, address: int | None) -> None:
        """See `PciFunction.bar_moved`."""
        super().bar_moved(index, address)
        if index == ROM_BAR:
            self._show(address)

    def _show(self, address: int | None) -> None:
        if self._rom is not None:
            windows, rom, name = self._rom
            windows.show(name, address, rom, 0, rom.size, readonly=True)

    def unplug(self) -> None:
        """See `PciFunction.unplug`."""
        self._show(None)
        super().unplug()
