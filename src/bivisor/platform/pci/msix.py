"""MSI-X: a table of messages in a BAR, one for each vector, and the bits of those that wait to be unmasked.

Specification: PCI Local Bus Specification 3.0, section 6.8.2 "MSI-X Capability and Table Structures".
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.errors import UsageError
from bivisor.platform.pci import registers as reg

ENTRY = 16
MAX_VECTORS = 2048
NO_VECTOR = 0xFFFF
_MASKED = 1
_ENTRY = struct.Struct("<QII")
_INTERRUPT_WINDOW = 0xFEE


class MsiX:
    """The table and the pending bits, as the device of a BAR of `size` bytes. `signal_msi(address, data)` delivers."""

    def __init__(self, vectors: int, signal_msi: Callable[[int, int], object]) -> None:
        if not 0 < vectors <= MAX_VECTORS:
            raise UsageError(f"{vectors} MSI-X vectors: 1 to {MAX_VECTORS} are possible")
        self.vectors = vectors
        self.pba_offset = max(0x800, -(-vectors * ENTRY // 0x800) * 0x800)
        self.size = max(0x1000, 1 << (self.pba_offset + 8 * -(-vectors // 64) - 1).bit_length())
        self.enabled = False
        self._function_mask = False
        self._signal_msi = signal_msi
        self._table = bytearray(ENTRY * vectors)
        self._pending = 0
        for vector in range(vectors):
            self._table[ENTRY * vector + 12] = _MASKED

    def capability(self, bar: int) -> tuple[bytes, bytes]:
        """The body of the capability, and which of its bits the guest can write; the table is in BAR `bar`."""
        body = struct.pack("<HII", self.vectors - 1, bar, self.pba_offset | bar)
        return body, struct.pack("<HII", reg.MSIX_ENABLE | reg.MSIX_FUNCTION_MASK, 0, 0)

    def set_control(self, control: int) -> None:
        """The guest wrote the message control word."""
        self.enabled = bool(control & reg.MSIX_ENABLE)
        self._function_mask = bool(control & reg.MSIX_FUNCTION_MASK)
        self._deliver_pending()

    def notify(self, vector: int) -> bool:
        """Interrupt with `vector`; False where MSI-X is not enabled and INTx has to be used. A vector that does not
        exist is no interrupt."""
        if not self.enabled:
            return False
        if not 0 <= vector < self.vectors:
            return True
        address, data, control = _ENTRY.unpack_from(self._table, ENTRY * vector)
        if control & _MASKED or self._function_mask:
            self._pending |= 1 << vector
        elif address >> 20 == _INTERRUPT_WINDOW:  # elsewhere it would be a store to memory, which no driver means
            self._signal_msi(address, data)
        return True

    def reset(self) -> None:
        """Forget what is pending."""
        self._pending = 0

    def read(self, offset: int, size: int) -> int:
        """The table, or the pending bits."""
        if offset < len(self._table):
            return int.from_bytes(self._table[offset : offset + size], "little")
        if offset >= self.pba_offset:
            return self._pending >> 8 * (offset - self.pba_offset) & (1 << 8 * size) - 1
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The table, in aligned parts of 4 or 8 bytes; the pending bits cannot be written."""
        if size < 4 or offset % size or offset + size > len(self._table):
            return
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        if offset % ENTRY + size > 12:
            control = offset // ENTRY * ENTRY + 12
            self._table[control : control + 4] = bytes((self._table[control] & _MASKED, 0, 0, 0))
            self._deliver_pending()

    def _deliver_pending(self) -> None:
        if not self._pending or not self.enabled or self._function_mask:
            return
        waiting, self._pending = self._pending, 0
        while waiting:
            vector = (waiting & -waiting).bit_length() - 1
            waiting &= waiting - 1
            self.notify(vector)
