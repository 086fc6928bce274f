"""PCI bus 0 of the PC and the two ports through which the guest reaches configuration space.

Specification: PCI Local Bus Specification 3.0, section 3.2.2.3.2 "Software Generation of Configuration Transactions"
(configuration mechanism #1). There are no bridges: another bus number has no devices.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from bivisor.errors import UsageError
from bivisor.platform.bus import Bus, Device
from bivisor.platform.pci import registers as reg
from bivisor.platform.pci.bar import BarKind
from bivisor.platform.pci.function import Identity, PciFunction

ADDRESS_PORT, PORTS = 0xCF8, 8
SLOTS, FUNCTIONS = 32, 8
FIRST_GSI, GSIS = 16, 8
ISA_LINES = (10, 11)

MMIO_START, MMIO_END = 0xE000_0000, 0xFEC0_0000
IO_START, IO_END = 0xC000, 0x1_0000

_ENABLE = 0x8000_0000
_RESET_OFFSET = 1
_HOST_BRIDGE = Identity(vendor=0x1B36, device=0x0008, class_code=0x060000)


def gsi_of(slot: int, pin: int) -> int:
    """The I/O APIC input of `pin` (1 to 4) in `slot`: the pins rotate, so that neighbours seldom share."""
    return FIRST_GSI + (slot + pin - 1) % GSIS


def isa_line_of(slot: int, pin: int) -> int:
    """The 8259 input of `pin` in `slot`, for a guest without I/O APIC: what the interrupt line register says."""
    return ISA_LINES[(slot + pin - 1) % len(ISA_LINES)]


class PciBus:
    """The bus, with its host bridge in slot 0. `set_irq(gsi, level)` is the interrupt lines', which functions share.

    `set_pin(slot, pin, bit, level)`, where it is given, takes the pins' levels instead; `bit` stands for the function.
    """

    def __init__(
        self,
        ports: Bus,
        mmio: Bus,
        *,
        set_irq: Callable[[int, bool], None],
        signal_msi: Callable[[int, int], object],
        host_bridge: PciFunction | None = None,
        set_pin: Callable[[int, int, int, bool], None] | None = None,
    ) -> None:
        self._set_pin = set_pin
        self.ports = ports
        self.mmio = mmio
        self._set_irq = set_irq
        self._signal_msi = signal_msi
        self._functions: dict[int, PciFunction] = {}
        self._places: dict[PciFunction, int] = {}
        self._asserted = dict.fromkeys((*ISA_LINES, *range(FIRST_GSI, FIRST_GSI + GSIS)), 0)
        self._settling = False
        self.add(host_bridge or PciFunction(_HOST_BRIDGE, name="host bridge"), 0)

    @property
    def functions(self) -> tuple[PciFunction, ...]:
        """All functions in the order of their slots."""
        return tuple(function for _, function in sorted(self._functions.items()))

    @property
    def places(self) -> tuple[int, ...]:
        """Device and function numbers of all functions, as in the upper five and the lower three bits of a byte."""
        return tuple(sorted(self._functions))

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots that have a device beside the host bridge."""
        return tuple(sorted({place // FUNCTIONS for place in self._functions} - {0}))

    def add(self, function: PciFunction, slot: int | None = None, number: int = 0) -> int:
        """Put `function` into `slot` (None: the first that is free) as function `number`; the slot.

        UsageError when the place does not exist or is taken, or when the slot has no function 0 yet: nobody looks at
        the others of such a slot.
        """
        if slot is None:
            slot = next((free for free in range(SLOTS) if free * FUNCTIONS not in self._functions), SLOTS)
        if not (0 <= slot < SLOTS and 0 <= number < FUNCTIONS):
            raise UsageError(f"{function.name}: the PCI bus has no free slot for it ({SLOTS} slots)")
        place = slot * FUNCTIONS + number
        if place in self._functions:
            raise UsageError(f"{function.name}: PCI {slot:02x}.{number} has {self._functions[place].name}")
        if number:
            if slot * FUNCTIONS not in self._functions:
                raise UsageError(f"{function.name}: PCI slot {slot:02x} needs a function 0 first")
            self._functions[slot * FUNCTIONS].config[reg.HEADER_TYPE] |= reg.HEADER_MULTIFUNCTION
        function.plug(self)
        self._functions[place] = function
        self._places[function] = place
        if function.pin and self._set_pin is None:
            function.config[reg.INTERRUPT_LINE] = isa_line_of(slot, function.pin)
        return slot

    def remove(self, function: PciFunction) -> None:
        """Pull `function` out: nothing answers for it any more. It is closed. UsageError where it is not there."""
        if function not in self._places:
            raise UsageError(f"{function.name} is not on the PCI bus")
        self.set_intx(function, False)
        function.unplug()
        del self._functions[self._places.pop(function)]
        function.close()

    def slot_of(self, function: PciFunction) -> int:
        """The slot that `function` is in."""
        return self._places[function] // FUNCTIONS

    def assign(self, mmio_start: int = MMIO_START, mmio_end: int = MMIO_END) -> None:
        """Give each BAR an address, as firmware does, largest first. UsageError when space runs out."""
        bars = [(function, bar) for function in self.functions for bar in function.bars.values()]
        free = {True: IO_START, False: mmio_start}
        for function, bar in sorted(bars, key=lambda pair: -pair[1].size):
            is_io = bar.kind is BarKind.IO
            address = -(-free[is_io] // bar.size) * bar.size
            if address + bar.size > (IO_END if is_io else mmio_end):
                raise UsageError(f"{function.name}: no room for BAR {bar.index} of {bar.size:#x} bytes")
            free[is_io] = address + bar.size
            function.assign_bar(bar, address)

    def config_read(self, address: int, size: int) -> int:
        """Read through the address register's value `address`: all ones where there is no function."""
        function = self._functions.get(address >> 8 & 0xFFFF) if address & _ENABLE else None
        if function is None:
            return (1 << 8 * size) - 1
        return function.config_read(address & 0xFF, size)

    def config_write(self, address: int, size: int, value: int) -> None:
        """Write likewise."""
        function = self._functions.get(address >> 8 & 0xFFFF) if address & _ENABLE else None
        if function is not None:
            function.config_write(address & 0xFF, size, value)

    def set_intx(self, function: PciFunction, level: bool) -> None:
        """See `PciHost.set_intx`: a line is up while any function holds it. The guest listens to one of the two."""
        if not function.pin:
            return
        place = self._places[function]
        slot, bit = place // FUNCTIONS, 1 << place
        if self._set_pin is not None:
            self._set_pin(slot, function.pin, bit, level)
            return
        for line in (gsi_of(slot, function.pin), isa_line_of(slot, function.pin)):
            before = self._asserted[line]
            after = before | bit if level else before & ~bit
            self._asserted[line] = after
            if bool(before) != bool(after):
                self._set_irq(line, bool(after))

    def signal_msi(self, address: int, data: int) -> None:
        """See `PciHost.signal_msi`."""
        self._signal_msi(address, data)

    def decode_changed(self) -> None:
        """See `PciHost.decode_changed`. One pass is enough: it only adds claims."""
        if self._settling:
            return
        self._settling = True
        try:
            for function in self._functions.values():
                function.update_decode()
        finally:
            self._settling = False

    def close(self) -> None:
        """Close every function, whatever one of them raises."""
        with ExitStack() as stack:
            for function in self._functions.values():
                stack.callback(function.close)


class PciConfigPorts:
    """Ports 0xcf8 to 0xcff: the address register, which takes only four bytes at once, and the data register.

    A single byte at 0xcf9 is not PCI's but the reset control register's, so it goes to `reset`.
    """

    def __init__(self, bus: PciBus, reset: Device) -> None:
        self._bus = bus
        self._reset = reset
        self._address = 0

    def read(self, offset: int, size: int) -> int:
        """The address register, or configuration space."""
        if offset >= 4:
            size = min(size, PORTS - offset)  # an access never leaves the four bytes of the data register
            return self._bus.config_read(self._address | offset & 3, size)
        if offset == 0 and size == 4:
            return self._address
        if offset == _RESET_OFFSET and size == 1:
            return self._reset.read(0, 1)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The address register, or configuration space."""
        if offset >= 4:
            size = min(size, PORTS - offset)
            self._bus.config_write(self._address | offset & 3, size, value)
        elif offset == 0 and size == 4:
            self._address = value & 0x80FF_FFFC
        elif offset == _RESET_OFFSET and size == 1:
            self._reset.write(0, 1, value)
