"""MSI: one message, kept in configuration space.

Specification: PCI Local Bus Specification 3.0, section 6.8.1 "MSI Capability Structure": 64-bit address, no mask bits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.platform.pci import registers as reg

_BODY = struct.Struct("<HQH")
BODY = _BODY.pack(reg.MSI_64, 0, 0)
WRITABLE = _BODY.pack(reg.MSI_ENABLE | reg.MSI_MULTIPLE, (1 << 64) - 4, 0xFFFF)
_INTERRUPT_WINDOW = 0xFEE


class Msi:
    """The message in `config`, whose capability is at `offset`. `signal_msi(address, data)` delivers."""

    def __init__(self, config: bytearray, offset: int, signal_msi: Callable[[int, int], object]) -> None:
        self._config = config
        self._offset = offset + 2
        self._signal_msi = signal_msi

    def notify(self) -> bool:
        """Interrupt; False where MSI is not enabled and INTx has to be used."""
        control, address, data = _BODY.unpack_from(self._config, self._offset)
        if not control & reg.MSI_ENABLE:
            return False
        if address >> 20 == _INTERRUPT_WINDOW:  # elsewhere it would be a store to memory, which no driver means
            self._signal_msi(address, data)
        return True
