"""The adapter: a PCI function (1234:1111, as Bochs and QEMU have it) with its memory in BAR 0, its registers in BAR 2.

Specification: QEMU docs/specs/standard-vga.rst. Text and chained memory are shown to the guest as memory, so that a
screen costs no exits; what the graphics controller has to look at (planes, fonts) comes as accesses.
"""

from __future__ import annotations

from bivisor.host.loop import Clock
from bivisor.memory import MemoryRegion
from bivisor.platform.bus import Bus
from bivisor.platform.pci import BarKind, Identity, PciFunction
from bivisor.platform.vga import dispi, planes, registers
from bivisor.platform.vga.dispi import Dispi
from bivisor.platform.vga.frame import Frame
from bivisor.platform.vga.planes import Planes
from bivisor.platform.vga.registers import VgaRegisters
from bivisor.platform.vga.render import characters, render
from bivisor.platform.windows import Windows

MEMORY_SIZE = 16 << 20
TEXT_BASE, TEXT_SIZE = 0xB_8000, 0x8000
_FRAMEBUFFER_BAR, _REGISTERS_BAR = 0, 2
_VGA_OFFSET, _DISPI_OFFSET, _DISPI_END = 0x400, 0x500, 0x516


class VgaCard(PciFunction):
    """The adapter with video BIOS `rom`. `close()` gives its memory back."""

    def __init__(self, clock: Clock, windows: Windows, rom: bytes) -> None:
        super().__init__(Identity(0x1234, 0x1111, 0x030000, 0x02, 0x1AF4, 0x1100), name="VGA")
        self._windows = windows
        self.memory = MemoryRegion(MEMORY_SIZE, "bivisor-vga")
        self._text = MemoryRegion(TEXT_SIZE, "bivisor-text")
        self._view = self.memory.view
        self.registers = VgaRegisters(clock, self._changed)
        self.planes = Planes(self.registers, self._view)
        self.dispi = Dispi(MEMORY_SIZE, self._changed, self._clear)
        self._shown: tuple[int, int] | None = None  # the window now: address, offset in the memory (-1: text)
        self._closed = False
        self.add_bar(_FRAMEBUFFER_BAR, BarKind.MEMORY32, MEMORY_SIZE, _FrameBuffer(self._view), prefetchable=True)
        self.add_bar(_REGISTERS_BAR, BarKind.MEMORY32, 0x1000, _Registers(self))
        self.add_rom(rom)

    def attach(self, ports: Bus, mmio: Bus) -> None:
        """Claim the old ports and the window below 1 MiB."""
        ports.attach(registers.FIRST_PORT, registers.PORTS, self.registers, "VGA registers")
        ports.attach(dispi.INDEX_PORT, dispi.PORTS, self.dispi, "VGA extensions")
        mmio.attach(planes.BASE, planes.SIZE, _Window(self), "VGA memory")

    def bar_moved(self, index: int, address: int | None) -> None:
        """See `PciFunction.bar_moved`."""
        if index == _FRAMEBUFFER_BAR and not self._closed:
            self._windows.show("frame buffer", address, self.memory, 0, MEMORY_SIZE)

    def frame(self) -> Frame:
        """What is on the screen."""
        text = self._text.view if self.text_is_apart else None
        return render(self.registers, self.dispi, self._view, text)

    def text(self) -> list[str]:
        """The lines of a text screen; none where it shows pixels, or nothing."""
        apart = self._text.view if self.text_is_apart else None
        return characters(self.registers, self.dispi, self._view, apart)

    @property
    def text_is_apart(self) -> bool:
        """Whether the characters are in a memory of their own, where the guest reaches them without us."""
        return self._shown is not None and self._shown[1] < 0

    def text_access(self, offset: int) -> int | None:
        """Where in the text's own memory `offset` of the window is, None where it is elsewhere."""
        at = planes.BASE + offset - TEXT_BASE
        return at if self.text_is_apart and 0 <= at < TEXT_SIZE else None

    def _changed(self) -> None:
        wanted = self._wanted()
        if wanted == self._shown:
            return
        if self.text_is_apart:
            self._text_to_planes()
        if wanted is not None and wanted[1] < 0:
            self._text_from_planes()
            self._windows.show("VGA", wanted[0], self._text, 0, TEXT_SIZE)
        elif wanted is not None:
            self._windows.show("VGA", wanted[0], self.memory, wanted[1], 0x1_0000)
        else:
            self._windows.show("VGA", None, self.memory, 0, 0)
        self._shown = wanted

    def _wanted(self) -> tuple[int, int] | None:
        """How the window can be shown as memory: (address, offset), -1 as offset for text; None if it cannot."""
        r = self.registers
        self.planes.bank = self.dispi[dispi.BANK] << 16 if self.dispi.enabled else 0
        start, length = self.planes.window()
        chained = r.seq[4] & 0x08 and r.seq[2] == 0x0F
        if chained and (start, length) == (0, 0x1_0000):
            return planes.BASE, self.planes.bank
        is_text = not r.gfx[6] & 1 and not r.seq[4] & 0x0C and r.seq[2] == 3 and not r.gfx[5] & 0x0B
        if is_text and r.gfx[5] & 0x10 and planes.BASE + start == TEXT_BASE and r.gfx[8] == 0xFF and not r.gfx[1]:
            return TEXT_BASE, -1
        return None

    def _text_to_planes(self) -> None:
        """Planes 0 and 1 get the characters and attributes; in odd/even mode only even addresses are used."""
        for plane in (0, 1):
            self._view[plane : 4 * TEXT_SIZE : 8] = self._text.view[plane::2]

    def _text_from_planes(self) -> None:
        for plane in (0, 1):
            self._text.view[plane::2] = self._view[plane : 4 * TEXT_SIZE : 8]

    def _clear(self) -> None:
        end = min(self.dispi.stride * self.dispi[dispi.YRES], MEMORY_SIZE)
        self._view[:end] = bytes(end)

    def close(self) -> None:
        """See `PciFunction.close`. The machine has unmapped the windows, or is about to go itself."""
        if not self._closed:
            self._closed = True
            self.memory.close()
            self._text.close()

    def text_view(self) -> memoryview:
        """The text's own memory."""
        return self._text.view


class _Window:
    """The 128 KiB at 0xa0000, for accesses that are not answered by memory."""

    def __init__(self, card: VgaCard) -> None:
        self._card = card

    def read(self, offset: int, size: int) -> int:
        at = self._card.text_access(offset)
        if at is None:
            return self._card.planes.read(offset, size)
        return int.from_bytes(self._card.text_view()[at : at + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        at = self._card.text_access(offset)
        if at is None:
            self._card.planes.write(offset, size, value)
        elif at + size <= TEXT_SIZE:
            self._card.text_view()[at : at + size] = value.to_bytes(size, "little")


class _FrameBuffer:
    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._memory[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        end = min(offset + size, len(self._memory))
        self._memory[offset:end] = value.to_bytes(size, "little")[: end - offset]


class _Registers:
    """BAR 2: the ports from 0x3c0 on at 0x400, the extensions at 0x500, two bytes each."""

    def __init__(self, card: VgaCard) -> None:
        self._card = card

    def read(self, offset: int, size: int) -> int:
        if _VGA_OFFSET <= offset < _VGA_OFFSET + 0x20:
            return self._card.registers.read(offset - _VGA_OFFSET + 0x10, size)
        if _DISPI_OFFSET <= offset < _DISPI_END:
            return self._card.dispi.get((offset - _DISPI_OFFSET) // 2)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if _VGA_OFFSET <= offset < _VGA_OFFSET + 0x20:
            self._card.registers.write(offset - _VGA_OFFSET + 0x10, size, value)
        elif _DISPI_OFFSET <= offset < _DISPI_END:
            self._card.dispi.set((offset - _DISPI_OFFSET) // 2, value & 0xFFFF)
