"""The devices that Xen emulates itself: interrupt controllers, 8254, HPET, RTC, ACPI's event block with the PM timer,
the debug port. The device model has everything else, the RTC's CMOS RAM and the PM1 control register among it.

They have a loop of their own, whose lock is taken inside the hypervisor's and never the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from bivisor.abi.xen import ioreq as abi
from bivisor.cpu.contract import Machine
from bivisor.host.loop import EventLoop
from bivisor.platform import acpi_pm, hpet, i8254, port61, rtc
from bivisor.platform.bus import Bus, mmio_bus, port_bus
from bivisor.platform.ioapic import IoApic
from bivisor.platform.irqchip import GSIS as PC_GSIS
from bivisor.platform.irqchip import TIMER_GSI, PcIrqChip
from bivisor.xen.hvm.chip import HvmChip

DEBUG_PORT = 0xE9
RTC_REGISTERS = 14
"""What of the CMOS is the clock's; the rest is the device model's."""
PCI_ISA_IRQS = (5, 10, 11)
"""The ISA interrupts that firmware wires PCI to."""
GSIS = 48
"""Inputs of Xen's I/O APIC; where the engine has the controllers, they are a PC's."""
IO_APIC_ID, _IO_APIC_VERSION = 1, 0x11
HPET_HZ = 62_500_000
"""Xen's counts in units of 16 ns."""
_LINE_MAX = 256


class HvmDevices:
    """The devices of one domain on `machine`. `say` takes what the guest writes to the debug port, line by line."""

    def __init__(
        self,
        machine: Machine,
        wall: Callable[[], float],
        say: Callable[[bytes], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._machine = machine
        self.loop = EventLoop(failed)
        self.lock = self.loop.lock
        self.ports: Bus = port_bus()
        self.mmio: Bus = mmio_bus()
        self._close = ExitStack()
        self.chip: HvmChip | None = None
        machine.create_irqchip()
        line = self._connect_chip() if machine.irqchip == "user" else None
        self.hpet = hpet.Hpet(self.loop, self.set_irq, line, HPET_HZ)
        self._close.callback(self.hpet.close)
        self.mmio.attach(hpet.BASE, hpet.LENGTH, self.hpet, "HPET")
        self.rtc = Clock(rtc.Rtc(self.loop, wall, partial(self.set_irq, rtc.IRQ)))
        self._pm = acpi_pm.AcpiPm(self.loop, partial(self.set_irq, acpi_pm.SCI_IRQ), lambda _: None)
        self._close.callback(self._pm.close)
        self._close.callback(self.rtc.close)
        event = abi.ACPI_PM1A_EVT_BLK_ADDRESS_V1
        self.ports.attach(rtc.BASE_PORT, 2, self.rtc, "RTC")
        self.ports.attach(event, acpi_pm.PM1_EVENT_LENGTH, self._pm, "PM1a events")
        self.ports.attach(
            abi.ACPI_PM_TMR_BLK_ADDRESS_V1, acpi_pm.PM_TIMER_LENGTH, _Offset(self._pm, acpi_pm.PM_TIMER), "PM timer"
        )
        self.ports.attach(DEBUG_PORT, 1, _DebugPort(say), "debug port")

    def _connect_chip(self) -> hpet.TimerLine:
        machine = self._machine
        self.chip = HvmChip(machine.set_intr)
        pc = self.chip.pc = PcIrqChip(
            self.chip.set_pic_intr,
            machine.signal_msi,
            self.lock,
            level_triggered=PCI_ISA_IRQS,
            ioapic=IoApic(machine.signal_msi, IO_APIC_ID, GSIS, _IO_APIC_VERSION),
        )
        pc.attach(self.ports, self.mmio)
        machine.connect_irqchip(self.chip)
        line = hpet.TimerLine(partial(pc.set_irq, 0))
        pit = i8254.I8254(self.loop, line.pit)
        self._close.callback(pit.close)
        self.ports.attach(i8254.BASE_PORT, i8254.PORTS, pit, "8254")
        self.ports.attach(port61.PORT, 1, port61.Port61(pit.channels[2], self.loop), "port 0x61")
        return line

    @property
    def gsis(self) -> int:
        """How many inputs the I/O APIC has."""
        return PC_GSIS if self.chip is None else GSIS

    @property
    def timer_gsi(self) -> int:
        """Which of them is the 8254's: the first in the routing that a KVM has by default."""
        return 0 if self.chip is None else TIMER_GSI

    def set_irq(self, gsi: int, level: bool) -> None:
        """The level of an input of the interrupt controllers; one that they do not have is nobody's."""
        if self.chip is not None:
            self.chip.pc.set_irq(gsi, level)
        elif gsi < PC_GSIS:
            self._machine.set_irq(gsi, level)

    def read_port(self, port: int, size: int) -> int | None:
        """What one of these devices answers; None where the port is the device model's."""
        claim = self.ports.find(port)
        if claim is None:
            return None
        with self.lock:
            if claim.device is self.rtc and self.rtc.is_foreign:
                return None
            return claim.device.read(port - claim.base, size)

    def write_port(self, port: int, size: int, value: int) -> bool:
        """False where the port is the device model's."""
        claim = self.ports.find(port)
        if claim is None:
            return False
        with self.lock:
            claim.device.write(port - claim.base, size, value)
            return not (claim.device is self.rtc and self.rtc.is_foreign)

    def press_power_button(self) -> None:
        """As a person would."""
        with self.lock:
            self._pm.press_power_button()

    def start(self) -> None:
        """The timers run from now on."""
        self.loop.start()

    def close(self) -> None:
        """Stop the timers."""
        with self.lock:
            self._close.close()
        self.loop.close()


class Clock:
    """The RTC, which has the first 14 bytes of the CMOS."""

    def __init__(self, clock: rtc.Rtc) -> None:
        self._clock = clock
        self._index = 0

    @property
    def is_foreign(self) -> bool:
        """Whether the index names a byte that is not the clock's."""
        return self._index >= RTC_REGISTERS

    def read(self, offset: int, size: int) -> int:
        """See `Device.read`."""
        return self._clock.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """See `Device.write`."""
        if offset == 0:
            self._index = value & 0x7F
        if not self.is_foreign:
            self._clock.write(offset, size, value)

    def close(self) -> None:
        """Stop its interrupts."""
        self._clock.close()


class _Offset:
    def __init__(self, device: acpi_pm.AcpiPm, offset: int) -> None:
        self._device = device
        self._offset = offset

    def read(self, offset: int, size: int) -> int:
        return self._device.read(offset + self._offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._device.write(offset + self._offset, size, value)


class _DebugPort:
    """What firmware says, as lines."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        self._say = say
        self._line = bytearray()

    def read(self, offset: int, size: int) -> int:
        return DEBUG_PORT  # by which firmware knows that somebody listens

    def write(self, offset: int, size: int, value: int) -> None:
        character = value & 0xFF
        if character != ord("\n"):
            if character >= ord(" ") or character == ord("\t"):
                self._line.append(character)
            if len(self._line) < _LINE_MAX:
                return
        line, self._line = bytes(self._line), bytearray()
        self._say(line + b"\n")
