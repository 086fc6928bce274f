"""Parallel flash of 8 bits with Intel's command set, in which UEFI firmware keeps its variables.

Specification: JEDEC JESD68.01 (Common Flash Interface) and JEP137 (command set 0001), Intel 28F640 data sheet; a
cleared status reads as 0, as QEMU's pflash_cfi01 has it, for firmware tells flash from RAM and ROM by that. Programming
clears bits; erasing sets those of a block of 4 KiB. While it is read like memory the array is shown to the guest as
such, so that only commands and what follows them come here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

BLOCK = 4096
BUFFER = 256

READ_ARRAY, READ_STATUS, CLEAR_STATUS, READ_IDENTITY, READ_QUERY = 0xFF, 0x70, 0x50, 0x90, 0x98
PROGRAM, PROGRAM_TOO, ERASE, WRITE_BUFFER, LOCK_SETUP, CONFIRM = 0x40, 0x10, 0x20, 0xE8, 0x60, 0xD0
READY, ERASE_FAILED, PROGRAM_FAILED = 0x80, 0x20, 0x10
_BAD_SEQUENCE = ERASE_FAILED | PROGRAM_FAILED
_LOCK, _UNLOCK = 0x01, 0xD0
_INTEL, _DEVICE = 0x89, 0x18
_INTEL_COMMANDS = 1


class Store(Protocol):
    """What the flash's content outlives the machine in."""

    def save(self, offset: int, data: bytes) -> None:
        """The content at `offset` is `data` from now on. OSError."""


class Flash:
    """The device. `array` is the content, whole blocks of it; `show(True)` lets the guest read the array without the
    device, `show(False)` takes that back and has taken effect when it returns."""

    def __init__(self, array: memoryview, store: Store, show: Callable[[bool], None]) -> None:
        self._array = array
        self._store = store
        self._show = show
        self._status = READY
        self._query = _query(len(array))
        self._buffer = bytearray()
        self._buffer_at = self._buffer_left = 0
        self._shown = False
        self._reader: Callable[[int, int], int] = self._read_array
        self._writer: Callable[[int, int, int], None] = self._command
        self._commands: Mapping[int, Callable[[], None]] = {
            READ_ARRAY: self._reset,
            0: self._reset,
            READ_STATUS: self._answer_status,
            CLEAR_STATUS: self._clear,
            READ_IDENTITY: lambda: self._answer(self._read_identity),
            READ_QUERY: lambda: self._answer(self._read_query),
            PROGRAM: lambda: self._expect(self._program),
            PROGRAM_TOO: lambda: self._expect(self._program),
            ERASE: lambda: self._expect(self._erase),
            WRITE_BUFFER: self._begin_buffer,
            LOCK_SETUP: lambda: self._expect(self._lock),
        }
        self._reset()

    def read(self, offset: int, size: int) -> int:
        """The array, the status, or what the last command asked for."""
        return self._reader(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A command, or what the last one waits for."""
        self._writer(offset, size, value)

    # ---------------------------------------------------------------- modes

    def _reset(self) -> None:
        self._reader, self._writer = self._read_array, self._command
        if not self._shown:
            self._shown = True
            self._show(True)

    def _hide(self) -> None:
        if self._shown:
            self._shown = False
            self._show(False)

    def _answer(self, reader: Callable[[int, int], int]) -> None:
        self._hide()
        self._reader, self._writer = reader, self._command

    def _answer_status(self) -> None:
        self._answer(self._read_status)

    def _expect(self, writer: Callable[[int, int, int], None]) -> None:
        self._hide()
        self._reader, self._writer = self._read_status, writer

    def _done(self, failed: int = 0) -> None:
        self._status |= READY | failed
        self._answer_status()

    def _clear(self) -> None:
        self._status = 0
        self._reset()

    def _command(self, offset: int, size: int, value: int) -> None:
        self._commands.get(value & 0xFF, self._reset)()

    # ---------------------------------------------------------------- what is read

    def _read_array(self, offset: int, size: int) -> int:
        return int.from_bytes(self._array[offset : offset + size], "little")

    def _read_status(self, offset: int, size: int) -> int:
        return int.from_bytes(bytes((self._status,)) * size, "little")

    def _read_identity(self, offset: int, size: int) -> int:
        """Maker and device of each block; the third byte, its lock, is open."""
        known = bytes((_INTEL, _DEVICE)).ljust(0x100, b"\0")
        return _part(known, offset, size)

    def _read_query(self, offset: int, size: int) -> int:
        return _part(self._query, offset, size)

    # ---------------------------------------------------------------- what is written

    def _program(self, offset: int, size: int, value: int) -> None:
        self._change(offset, value.to_bytes(size, "little"))

    def _change(self, offset: int, data: bytes) -> None:
        part = self._array[offset : offset + len(data)]
        self._keep(offset, bytes(old & new for old, new in zip(part, data, strict=False)), PROGRAM_FAILED)

    def _erase(self, offset: int, size: int, value: int) -> None:
        if value & 0xFF == CONFIRM:
            self._keep(offset // BLOCK * BLOCK, b"\xff" * BLOCK, ERASE_FAILED)
        else:
            self._done(_BAD_SEQUENCE)

    def _keep(self, offset: int, data: bytes, failed: int) -> None:
        try:
            self._store.save(offset, data)
        except OSError:  # the host's disk is full or gone: the chip has worn out
            self._done(failed)
            return
        self._array[offset : offset + len(data)] = data
        self._done()

    def _begin_buffer(self) -> None:
        self._status |= READY  # a buffer is free
        self._expect(self._count)

    def _count(self, offset: int, size: int, value: int) -> None:
        self._buffer_left = (value & 0xFFFF) + 1
        self._buffer.clear()
        if self._buffer_left > BUFFER:
            self._done(_BAD_SEQUENCE)
        else:
            self._expect(self._fill)

    def _fill(self, offset: int, size: int, value: int) -> None:
        """Bytes of the buffer, one behind the other in one place of the size of the buffer; then its confirmation."""
        if not self._buffer:
            self._buffer_at = offset
        if offset != self._buffer_at + len(self._buffer) or offset // BUFFER != self._buffer_at // BUFFER:
            self._done(_BAD_SEQUENCE)
            return
        self._buffer += value.to_bytes(size, "little")
        self._buffer_left -= size
        if self._buffer_left < 0:
            self._done(_BAD_SEQUENCE)
        elif not self._buffer_left:
            self._expect(self._confirm_buffer)

    def _confirm_buffer(self, offset: int, size: int, value: int) -> None:
        if value & 0xFF == CONFIRM and self._buffer_at // BUFFER == (self._buffer_at + len(self._buffer) - 1) // BUFFER:
            self._change(self._buffer_at, bytes(self._buffer))
        else:
            self._done(_BAD_SEQUENCE)

    def _lock(self, offset: int, size: int, value: int) -> None:
        """Locks are taken and given back, and keep nobody out."""
        self._done(0 if value & 0xFF in (_LOCK, _UNLOCK) else _BAD_SEQUENCE)


def _part(table: bytes, offset: int, size: int) -> int:
    start = offset & 0xFF
    return int.from_bytes(table[start : start + size], "little")


def _query(size: int) -> bytes:
    """JESD68.01 section 4: identification, system interface, geometry; then command set 0001's own table, empty."""
    table = bytearray(0x100)
    primary = 0x31
    table[0x10:0x13] = b"QRY"
    table[0x13:0x17] = _INTEL_COMMANDS.to_bytes(2, "little") + primary.to_bytes(2, "little")
    table[0x1B:0x1D] = b"\x45\x55"  # volts, in tenths
    table[0x1F:0x22] = b"\x07\x07\x0a"  # 2**n microseconds to program a byte and a buffer, milliseconds to erase
    table[0x23:0x26] = b"\x04\x04\x04"  # at most 2**n times as long
    table[0x27] = (size - 1).bit_length()
    table[0x2A] = BUFFER.bit_length() - 1
    table[0x2C] = 1
    table[0x2D:0x2F] = (size // BLOCK - 1).to_bytes(2, "little")
    table[0x2F:0x31] = (BLOCK // 256).to_bytes(2, "little")
    table[primary : primary + 5] = b"PRI11"
    return bytes(table)
