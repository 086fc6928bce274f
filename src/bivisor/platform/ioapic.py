"""The I/O APIC: 24 interrupt inputs or more, each with an entry that says which vector goes to which processors.

Specification: Intel 82093AA data sheet; the EOI register of version 0x20 is that of the Intel I/O controller hubs. An
interrupt leaves as the MSI that the same fields make (SDM volume 3, 11.11 "Message Signalled Interrupts").
"""

from __future__ import annotations

from collections.abc import Callable

BASE, LENGTH = 0xFEC0_0000, 0x1000
PINS = 24
VERSION = 0x20

_ID, _TABLE = 0x00, 0x10

VECTOR = 0xFF
DELIVERY_MODE = 7 << 8
LOGICAL = 1 << 11
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
_READ_ONLY = 1 << 12 | REMOTE_IRR
_DEFINED = 0xFF << 56 | 0x1FFFF


class IoApic:
    """One I/O APIC with `pins` inputs. `signal_msi(address, data)` delivers. Before version 0x20 there is no EOI
    register.

    The level of an input means "asserted", whatever polarity the guest has programmed.
    """

    def __init__(
        self, signal_msi: Callable[[int, int], object], apic_id: int = 0, pins: int = PINS, version: int = VERSION
    ) -> None:
        self.pins = pins
        self._version = version
        self._signal_msi = signal_msi
        self._id = apic_id & 15
        self._select = 0
        self._lines = 0
        self._table = [MASKED] * pins

    def set_line(self, pin: int, level: bool) -> None:
        """The level of input `pin`, counted from 0."""
        bit = 1 << pin
        rising = level and not self._lines & bit
        self._lines = self._lines | bit if level else self._lines & ~bit
        entry = self._table[pin]
        if entry & MASKED:
            return  # an edge that comes while its entry is masked is lost; a level shows again at unmask
        if entry & LEVEL:
            if level:
                self._deliver_level(pin)
        elif rising:
            self._send(entry)

    def end_of_interrupt(self, vector: int) -> None:
        """A local APIC's EOI, or the guest's write to the EOI register: inputs still up interrupt again."""
        for pin, entry in enumerate(self._table):
            if entry & VECTOR == vector and entry & LEVEL and entry & REMOTE_IRR:
                self._table[pin] = entry & ~REMOTE_IRR
                self._deliver_level(pin)

    def read(self, offset: int, size: int) -> int:
        """IOREGSEL, or through IOWIN the register that it selects."""
        match offset:
            case 0x00:
                return self._select
            case 0x10:
                return self._register()
            case _:
                return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """IOREGSEL, IOWIN or EOI. Accesses that are not aligned on a register go nowhere."""
        match offset:
            case 0x00:
                self._select = value & 0xFF
            case 0x10:
                self._set_register(value & 0xFFFF_FFFF)
            case 0x40 if self._version >= VERSION:
                self.end_of_interrupt(value & VECTOR)

    def _register(self) -> int:
        match self._select:
            case 0x00 | 0x02:  # identification, arbitration
                return self._id << 24
            case 0x01:
                return self._version | self.pins - 1 << 16
            case _:
                pin, high = divmod(self._select - _TABLE, 2)
                return self._table[pin] >> 32 * high & 0xFFFF_FFFF if 0 <= pin < self.pins else 0

    def _set_register(self, value: int) -> None:
        if self._select == _ID:
            self._id = value >> 24 & 15
            return
        pin, high = divmod(self._select - _TABLE, 2)
        if not 0 <= pin < self.pins:
            return
        old = self._table[pin]
        new = value << 32 | old & 0xFFFF_FFFF if high else old & ~0xFFFF_FFFF | value
        new = new & _DEFINED & ~_READ_ONLY | old & REMOTE_IRR
        if not new & LEVEL:
            new &= ~REMOTE_IRR  # how Linux clears it where an EOI was lost: to edge and back
        self._table[pin] = new
        if new & LEVEL:
            self._deliver_level(pin)

    def _deliver_level(self, pin: int) -> None:
        entry = self._table[pin]
        if self._lines >> pin & 1 and not entry & (MASKED | REMOTE_IRR):
            self._table[pin] = entry | REMOTE_IRR
            self._send(entry)

    def _send(self, entry: int) -> None:
        address = 0xFEE0_0000 | (entry >> 56) << 12 | (4 if entry & LOGICAL else 0)
        data = entry & (VECTOR | DELIVERY_MODE) | entry & LEVEL | 1 << 14
        self._signal_msi(address, data)
