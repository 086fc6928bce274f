"""The host bridge (82441FX), the ISA bridge (82371SB PIIX3) with its interrupt routing, power management (PIIX4).

Specification: Intel 82441FX data sheet, "Configuration registers"; Intel 82371SB data sheet, "PIRQRC"; Intel 82371AB
(PIIX4) data sheet, function 3. The RAM behind the PAM registers is always there, with the firmware in it from the
start: what they would switch between is one and the same, and write protection is not carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bivisor.platform.acpi_pm import BASE_PORT, AcpiPm
from bivisor.platform.bus import Bus, Claim
from bivisor.platform.pci import Identity, PciFunction
from bivisor.platform.pci import registers as reg

PIRQS = 4
PAM0, SMRAM = 0x59, 0x72
PIRQRC = 0x60
PMBASE, DEVACTB, PMREGMISC, SMBBASE, SMBHSTCFG = 0x40, 0x58, 0x80, 0x90, 0xD2
_PIRQ_OFF = 0x80
_APMC_EN = 0x02  # in the last byte of DEVACTB: system management mode has been set up, so firmware leaves it alone
_SUBSYSTEM = (0x1AF4, 0x1100)
_DRAM, _DRAM_UNIT = 0x57, 8 << 20
_ISA_AT_RESET = {
    0x4C: 0x4D, 0x4E: 0x03,  # I/O recovery, X-bus chip select
    0x69: 0x02,  # top of memory
    0x70: 0x80, 0x76: 0x0C, 0x77: 0x0C, 0x78: 0x02,  # motherboard interrupt, DMA and chip select: not used
    0xA0: 0x08, 0xA8: 0x0F,  # SMI, clock throttling
}  # fmt: skip
_POWER_PARTS = {0x5F: 0x10, 0x63: 0x60, 0x67: 0x08}
"""Device resources: what of the super I/O chip is there, COM1 among it."""


class HostBridge(PciFunction):
    """Function 0 of slot 0. Its registers are kept as they are written. One says how much memory there is, in units
    of 8 MiB, as far as it can: coreboot looks there on QEMU's board."""

    def __init__(self, memory: int = 0) -> None:
        identity = Identity(0x8086, 0x1237, 0x060000, 0x02, *_SUBSYSTEM)
        super().__init__(identity, name="i440FX host bridge")
        self._writable[PAM0 : PAM0 + 7] = b"\xff" * 7
        self._writable[SMRAM] = 0xFF
        self.config[SMRAM] = 0x02
        self.config[_DRAM] = min(memory // _DRAM_UNIT, 0xFF)


class PirqRouter:
    """Brings the interrupt pins of PCI to the ISA interrupts that the PIRQ registers name; a line is up while any pin
    on it is. `set_irq(line, level)` is the interrupt controllers'."""

    def __init__(self, set_irq: Callable[[int, bool], None]) -> None:
        self._set_irq = set_irq
        self._asserted = [0] * PIRQS
        self._routes = [_PIRQ_OFF] * PIRQS
        self._up: set[int] = set()

    def set_pin(self, slot: int, pin: int, bit: int, level: bool) -> None:
        """The level of `pin` (1 to 4) of the function that `bit` stands for."""
        pirq = pirq_of(slot, pin)
        before = self._asserted[pirq]
        after = before | bit if level else before & ~bit
        if before != after:
            self._asserted[pirq] = after
            self._drive()

    def route(self, pirq: int, value: int) -> None:
        """The guest wrote `value` to PIRQRC `pirq` (0 to 3)."""
        self._routes[pirq] = value
        self._drive()

    def _drive(self) -> None:
        up = {
            route & 15
            for route, asserted in zip(self._routes, self._asserted, strict=True)
            if asserted and not route & _PIRQ_OFF
        }
        for line in self._up - up:
            self._set_irq(line, False)
        for line in up - self._up:
            self._set_irq(line, True)
        self._up = up


def pirq_of(slot: int, pin: int) -> int:
    """Which of the four PIRQs (0 to 3) `pin` (1 to 4) of `slot` is wired to."""
    return (slot - 1 + pin - 1) % PIRQS


class Router(Protocol):
    """Who carries out what the PIRQ registers say."""

    def route(self, pirq: int, value: int) -> None:
        """The guest wrote `value` to PIRQRC `pirq` (0 to 3)."""


class IsaBridge(PciFunction):
    """Function 0 of the PIIX3."""

    def __init__(self, router: Router) -> None:
        identity = Identity(0x8086, 0x7000, 0x060100, 0x00, *_SUBSYSTEM, status=reg.STATUS_MEDIUM)
        super().__init__(identity, name="PIIX3 ISA bridge")
        self._router = router
        self._writable[PIRQRC : PIRQRC + PIRQS] = b"\xff" * PIRQS
        self.config[PIRQRC : PIRQRC + PIRQS] = bytes((_PIRQ_OFF,)) * PIRQS
        self._writable[0x4C] = self._writable[0x4E] = self._writable[0x82] = 0xFF
        for at, value in _ISA_AT_RESET.items():
            self.config[at] = value

    def config_write(self, offset: int, size: int, value: int) -> None:
        """See `PciFunction.config_write`."""
        super().config_write(offset, size, value)
        for pirq in range(PIRQS):
            if offset <= PIRQRC + pirq < offset + size:
                self._router.route(pirq, self.config[PIRQRC + pirq])


class PowerManagement(PciFunction):
    """Function 3 of the PIIX4: the ACPI registers `pm` answer where PMBASE says, once PMREGMISC enables them."""

    def __init__(self, ports: Bus, pm: AcpiPm) -> None:
        status = reg.STATUS_MEDIUM | reg.STATUS_FAST_B2B
        identity = Identity(0x8086, 0x7113, 0x068000, 0x03, *_SUBSYSTEM, status=status)
        super().__init__(identity, name="PIIX4 power management", pin=1)
        self._ports = ports
        self._pm = pm
        self._claim: Claim | None = None
        for first, length in ((PMBASE, 4), (DEVACTB, 4), (0x5F, 6), (PMREGMISC, 1), (SMBBASE, 4), (SMBHSTCFG, 1)):
            self._writable[first : first + length] = b"\xff" * length
        self._writable[PMBASE : PMBASE + 4] = bytes((0xC0, 0xFF, 0, 0))
        self.config[PMBASE], self.config[SMBBASE] = 1, 1
        self.config[DEVACTB + 3] = _APMC_EN
        for at, value in _POWER_PARTS.items():
            self.config[at] = value

    @property
    def base(self) -> int:
        """Where the ACPI registers are; where firmware is expected to put them until it has."""
        return BASE_PORT if self._claim is None else self._claim.base

    def config_write(self, offset: int, size: int, value: int) -> None:
        """See `PciFunction.config_write`."""
        super().config_write(offset, size, value)
        if offset <= PMREGMISC and offset + size > PMBASE:
            self._place()

    def _place(self) -> None:
        base = int.from_bytes(self.config[PMBASE : PMBASE + 2], "little") & 0xFFC0
        wanted = base if self.config[PMREGMISC] & 1 else 0
        if self._claim is not None and self._claim.base == wanted:
            return
        if self._claim is not None:
            self._ports.detach(self._claim)
            self._claim = None
        if wanted:
            self._claim = self._ports.attach_if_free(wanted, 16, self._pm, "ACPI")
