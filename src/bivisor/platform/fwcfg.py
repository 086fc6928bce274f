"""QEMU's firmware configuration device: how firmware learns of memory, tables and boot order.

Specification: QEMU docs/specs/fw_cfg.rst. Items are numbers with bytes; files are items with names, listed in a
directory. They are read byte by byte at the data port, or all at once by the DMA interface; nothing can be written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from bivisor.errors import GuestAddressError, UsageError

BASE_PORT, PORTS = 0x510, 12
SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0, 1, 4, 8

SIGNATURE, ID, UUID, RAM_SIZE, NOGRAPHIC, CPUS = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05
MAX_CPUS, BOOT_MENU, FILE_DIR, FIRST_FILE = 0x0F, 0x0E, 0x19, 0x20
FILES_MAX = 0x100
_FEATURES = 0x1 | 0x2  # the traditional interface, and DMA
_DMA_SIGNATURE = b"QEMU CFG"
DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 0x01, 0x02, 0x04, 0x08, 0x10
_DMA = struct.Struct(">IIQ")
_U32 = struct.Struct("<I")
_ENTRY = struct.Struct(">IHH56s")
NAME_MAX = 55
_KERNEL_SIZE, _INITRD_SIZE, _KERNEL_DATA, _INITRD_DATA = 0x08, 0x0B, 0x11, 0x12
_CMDLINE_SIZE, _CMDLINE_DATA, _SETUP_SIZE, _SETUP_DATA = 0x14, 0x15, 0x17, 0x18


class Memory(Protocol):
    """Guest memory as a device reaches it."""

    def view(self, gpa: int, length: int) -> memoryview:
        """The bytes, in place. GuestAddressError where they are not memory."""

    def written(self, gpa: int, length: int) -> None:
        """The device wrote there."""


@dataclass(frozen=True, slots=True)
class DirectKernel:
    """A Linux kernel for firmware to start: a bzImage's setup sectors and the rest, an initramfs, a command line."""

    setup: bytes
    kernel: bytes
    initrd: bytes
    cmdline: str

    def items(self) -> dict[int, bytes]:
        """The items in which the firmware looks for it."""
        parts = (
            (_SETUP_SIZE, _SETUP_DATA, self.setup),
            (_KERNEL_SIZE, _KERNEL_DATA, self.kernel),
            (_INITRD_SIZE, _INITRD_DATA, self.initrd),
            (_CMDLINE_SIZE, _CMDLINE_DATA, self.cmdline.encode() + b"\0"),
        )
        return {key: value for size, data, part in parts for key, value in ((size, _U32.pack(len(part))), (data, part))}


class FwCfg:
    """The device; it claims ports 0x510 to 0x51b. `items` are numbers with contents; files are added by `add_file`."""

    def __init__(self, memory: Memory, items: Mapping[int, bytes]) -> None:
        self._memory = memory
        self._items = {SIGNATURE: b"QEMU", ID: struct.pack("<I", _FEATURES), **items}
        self._files: list[tuple[str, bytes]] = []
        self._renewed: dict[str, Callable[[], bytes]] = {}
        self._makers: dict[int, Callable[[], bytes]] = {}
        self._selected = 0
        self._at = 0
        self._address_high = 0

    def add_file(self, name: str, data: bytes, renew: Callable[[], bytes] | None = None) -> None:
        """Offer the file `name` (55 ASCII characters at most). `renew` makes its content, of the same length, whenever
        the guest turns to it, where that depends on what the guest has done before."""
        if len(self._files) == FILES_MAX or not 0 < len(name) <= NAME_MAX:
            raise UsageError(f"firmware configuration file {name!r}: too many files, or too long a name")
        if renew is not None:
            self._renewed[name] = renew
        self._makers.clear()
        self._files.append((name, data))
        self._files.sort()
        directory = [struct.pack(">I", len(self._files))]
        for key, (each, content) in enumerate(self._files, FIRST_FILE):
            self._items[key] = content
            if each in self._renewed:
                self._makers[key] = self._renewed[each]
            directory.append(_ENTRY.pack(len(content), key, 0, each.encode("ascii")))
        self._items[FILE_DIR] = b"".join(directory)

    def read(self, offset: int, size: int) -> int:
        """The data port gives the selected item's next byte; the DMA address register gives a signature."""
        if offset == DATA:
            return self._next()[0]
        if offset >= DMA_HIGH:
            return int.from_bytes(_DMA_SIGNATURE[offset - DMA_HIGH : offset - DMA_HIGH + size], "big")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Select an item, or start a DMA transfer; the address is big-endian."""
        if offset == SELECTOR:
            self._select(value & 0xFFFF)
        elif offset == DMA_HIGH and size == 4:
            self._address_high = int.from_bytes(value.to_bytes(4, "little"), "big")
        elif offset == DMA_LOW and size == 4:
            self._transfer(self._address_high << 32 | int.from_bytes(value.to_bytes(4, "little"), "big"))
            self._address_high = 0

    def _select(self, item: int) -> None:
        self._selected, self._at = item & 0xBFFF, 0  # bit 14 asks for writing
        maker = self._makers.get(self._selected)
        if maker is not None:
            self._items[self._selected] = maker()

    def _next(self, length: int = 1) -> bytes:
        """The next bytes of the item, zeros behind its end."""
        data = self._items.get(self._selected, b"")[self._at : self._at + length]
        self._at = min(self._at + length, 1 << 32)
        return data or b"\0"

    def _transfer(self, gpa: int) -> None:
        memory = self._memory
        try:
            control, length, address = _DMA.unpack(memory.view(gpa, _DMA.size))
        except GuestAddressError:
            return  # there is no place even for the error
        if control & DMA_SELECT:
            self._select(control >> 16)
        result = 0
        if control & DMA_READ:
            try:
                # the length is the guest's: checked against its memory before anything is made of that size
                view = memory.view(address, length)
                data = self._next(length)
                end = min(len(data), length)
                view[:end] = data[:end]
                view[end:] = bytes(length - end)
                memory.written(address, length)
            except GuestAddressError:
                result = DMA_ERROR
        elif control & DMA_WRITE:
            result = DMA_ERROR
        elif control & DMA_SKIP:
            self._at = min(self._at + length, 1 << 32)
        memory.view(gpa, 4)[:] = struct.pack(">I", result)
        memory.written(gpa, 4)
