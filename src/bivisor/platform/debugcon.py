"""The firmware's debug port, 0x402: each byte written is a character of its log.

Specification: QEMU, hw/char/debugcon; SeaBIOS takes a read of 0xe9 as the sign that somebody listens.
"""

from __future__ import annotations

from collections.abc import Callable

PORT = 0x402
_PRESENT = 0xE9


class DebugConsole:
    """The port. `sink` gets each line of the log, and what is left at `close()`; a line is cut at 1024 bytes."""

    _LINE_MAX = 1024

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink
        self._line = bytearray()

    def read(self, offset: int, size: int) -> int:
        """Somebody listens."""
        return _PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        """One character."""
        self._line.append(value & 0xFF)
        if value & 0xFF == 0x0A or len(self._line) >= self._LINE_MAX:
            self.close()

    def close(self) -> None:
        """Hand on what is there of a line."""
        if self._line:
            self._sink(bytes(self._line))
            self._line.clear()
