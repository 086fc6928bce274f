"""The local APIC of a soft processor: xAPIC page and x2APIC MSRs, timer with TSC deadline, IPIs to itself.

Intel SDM volume 3, chapter 11 (10 in older editions). Only the processor's own thread touches it; what comes from other
threads waits in the processor's inbox. Interrupts move from IRR to ISR when the guest takes them, not earlier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bivisor.abi.x86 import APIC_BASE_ENABLE, APIC_BASE_EXTD, Apic

VERSION = 0x0005_0014
"""Version 0x14, six LVT entries (SDM 11.4.8)."""

TIMER_HZ = 1_000_000_000
"""The frequency of the timer's input clock, which CPUID leaf 0x40000010 tells the guest."""

_MASKED = 1 << 16
_LEVEL = 1 << 15
_TIMER_ONESHOT, _TIMER_PERIODIC, _TIMER_TSC_DEADLINE = range(3)
_MODE_FIXED, _MODE_LOWEST, _MODE_SMI, _, _MODE_NMI, _MODE_INIT, _MODE_SIPI, _MODE_EXTINT = range(8)
_LVT = (Apic.LVT_TIMER, Apic.LVT_THERMAL, Apic.LVT_PMC, Apic.LVT_LINT0, Apic.LVT_LINT1, Apic.LVT_ERROR)
_LVT_WRITABLE = {
    Apic.LVT_TIMER: 0x0007_00FF,
    Apic.LVT_THERMAL: 0x0001_07FF,
    Apic.LVT_PMC: 0x0001_07FF,
    Apic.LVT_LINT0: 0x0001_A7FF,
    Apic.LVT_LINT1: 0x0001_A7FF,
    Apic.LVT_ERROR: 0x0001_00FF,
}
_ESR_SEND_ILLEGAL = 1 << 5
_ESR_RECEIVE_ILLEGAL = 1 << 6
_ALL = (1 << 256) - 1


class Owner(Protocol):
    """What the local APIC needs of its processor."""

    def apic_changed(self) -> None:
        """An interrupt may have become deliverable."""

    def apic_nmi(self) -> None:
        """Deliver an NMI."""

    def apic_eoi(self, vector: int) -> None:
        """Tell the I/O APIC of the EOI of a level-triggered interrupt."""

    def apic_timer(self, deadline: float | None) -> None:
        """Call `tick()` at `deadline` (seconds of `now()`), or never."""

    def apic_send(self, destination: int, logical: bool, shorthand: int, mode: int, vector: int) -> None:
        """Send an IPI to other processors."""

    def now(self) -> float:
        """Seconds, monotonic."""

    def tsc(self) -> int:
        """The guest's time-stamp counter."""

    def tsc_hz(self) -> float:
        """Its frequency."""


class LocalApic:
    """One local APIC. `base` is IA32_APIC_BASE; registers are reached by their xAPIC offset."""

    def __init__(self, index: int, owner: Owner) -> None:
        self.index = index
        self._owner = owner
        self.base = 0
        self.intr = False
        self.reset()

    def reset(self) -> None:
        """The state after INIT (SDM 11.4.7.1)."""
        self.irr = self.isr = self.tmr = 0
        self.tpr = 0
        self.ldr = 0
        self.dfr = 0xFFFF_FFFF
        self.svr = 0xFF
        self.esr = self._errors = 0
        self.icr = 0
        self.lvt: dict[int, int] = dict.fromkeys(_LVT, _MASKED)
        if self.index == 0:
            self.lvt[Apic.LVT_LINT0] = _MODE_EXTINT << 8  # virtual wire, as firmware leaves it and as KVM starts
        self.divide = 0
        self._initial = 0
        self._armed_at = 0.0
        self.tsc_deadline = 0
        self._deadline: float | None = None
        self._owner.apic_timer(None)

    @property
    def x2apic(self) -> bool:
        """Whether registers are reached by MSR."""
        return bool(self.base & APIC_BASE_EXTD)

    @property
    def enabled(self) -> bool:
        """Whether it takes interrupts: the software enable bit of the spurious-interrupt register (SDM 11.4.7.2)."""
        return bool(self.svr & 0x100)

    @property
    def hardware_enabled(self) -> bool:
        """IA32_APIC_BASE bit 11: without it the processor has no local APIC and INTR goes to the core."""
        return bool(self.base & APIC_BASE_ENABLE)

    @property
    def apic_id(self) -> int:
        """As the ID register shows it."""
        return self.index if self.x2apic else self.index << 24

    # ---------------------------------------------------------------- interrupts

    def request(self, vector: int, level: bool = False) -> None:
        """A fixed interrupt arrives: IRR, and TMR says how (SDM 11.8.4)."""
        if not self.svr & 0x100:
            return
        if vector < 16:
            self._error(_ESR_RECEIVE_ILLEGAL)
            return
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level else self.tmr & ~bit
        self._owner.apic_changed()

    def ppr(self) -> int:
        """The processor priority (SDM 11.8.3.1)."""
        in_service = self.isr.bit_length() - 1
        if in_service < 0:
            return self.tpr
        return self.tpr if self.tpr >> 4 >= in_service >> 4 else in_service & 0xF0

    def pending(self) -> int:
        """The vector that the guest would take now, or -1."""
        if not self.irr:
            return -1
        vector = self.irr.bit_length() - 1
        return vector if vector >> 4 > self.ppr() >> 4 else -1

    def answers_at(self, gpa: int) -> bool:
        """Whether `gpa` is in the page of the registers (SDM 11.4.1); in x2APIC mode they are MSRs only."""
        return gpa & ~0xFFF == self.base & 0xFFFF_FFFF_F000 and self.hardware_enabled and not self.x2apic

    def accepts_extint(self) -> bool:
        """Whether INTR of the 8259 reaches the core: LINT0 in ExtINT mode, or no local APIC (SDM 11.5.1)."""
        if not self.hardware_enabled:
            return True
        lint0 = self.lvt[Apic.LVT_LINT0]
        return not lint0 & _MASKED and lint0 >> 8 & 7 == _MODE_EXTINT

    def accept(self, vector: int) -> None:
        """The guest takes `vector`: from IRR to ISR."""
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector

    def eoi(self) -> None:
        """The guest ends its highest interrupt in service (SDM 11.8.5)."""
        vector = self.isr.bit_length() - 1
        if vector < 0:
            return
        bit = 1 << vector
        self.isr &= ~bit
        if self.tmr & bit and not self.svr & 0x1000:
            self._owner.apic_eoi(vector)
        if self.irr:
            self._owner.apic_changed()

    def _error(self, bit: int) -> None:
        self._errors |= bit
        entry = self.lvt[Apic.LVT_ERROR]
        # a vector below 16 would report itself for ever
        if not entry & _MASKED and entry & 0xFF >= 16 and self.svr & 0x100:
            self.irr |= 1 << (entry & 0xFF)
            self._owner.apic_changed()

    def deliver(self, mode: int, vector: int, level: bool) -> None:
        """A message arrives from the bus, an MSI or another processor."""
        if mode in (_MODE_FIXED, _MODE_LOWEST):
            self.request(vector, level)
        elif mode == _MODE_NMI:
            self._owner.apic_nmi()

    def matches(self, destination: int, logical: bool) -> bool:
        """Whether a message for `destination` is for this processor (SDM 11.6.2)."""
        if not logical:
            return destination in (self.index, 0xFFFF_FFFF if self.x2apic else 0xFF) or destination == 0xFF
        if self.x2apic:
            cluster = self.index >> 4
            return destination == 0xFFFF_FFFF or (
                destination >> 16 == cluster and bool(destination & 1 << (self.index & 15))
            )
        own = self.ldr >> 24
        if self.dfr >> 28 == 0xF:
            return bool(own & destination)
        return own >> 4 == destination >> 4 and bool(own & destination & 0xF)

    # ---------------------------------------------------------------- timer

    @property
    def _divisor(self) -> int:
        code = self.divide & 3 | self.divide >> 1 & 4
        return 1 if code == 7 else 2 << code

    @property
    def _timer_mode(self) -> int:
        return self.lvt[Apic.LVT_TIMER] >> 17 & 3

    def _period(self) -> float:
        return self._initial * self._divisor / TIMER_HZ

    def _start(self) -> None:
        self._armed_at = self._owner.now()
        deadline = self._armed_at + self._period() if self._initial else None
        self._arm(deadline)

    def _arm(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._owner.apic_timer(deadline)

    def set_tsc_deadline(self, value: int) -> None:
        """IA32_TSC_DEADLINE (SDM 11.5.4.1): ignored in the other modes, zero disarms."""
        if self._timer_mode != _TIMER_TSC_DEADLINE:
            return
        self.tsc_deadline = value
        if not value:
            self._arm(None)
            return
        self._arm(self._owner.now() + (value - self._owner.tsc()) / self._owner.tsc_hz())

    def tick(self) -> None:
        """Deliver the timer's interrupt if it is due."""
        deadline = self._deadline
        if deadline is None:
            return
        now = self._owner.now()
        if now < deadline:
            return
        entry = self.lvt[Apic.LVT_TIMER]
        if entry >> 17 & 3 == _TIMER_PERIODIC and self._initial:
            # a guest that asks for more than the host can do gets one interrupt for all that it missed
            period = max(self._period(), 20e-6)
            missed = int((now - deadline) / period)
            self._armed_at = deadline + missed * period
            self._arm(self._armed_at + period)
        else:
            self.tsc_deadline = 0
            self._deadline = None
        if not entry & _MASKED:
            self.request(entry & 0xFF)

    def _current_count(self) -> int:
        if not self._initial or self._timer_mode == _TIMER_TSC_DEADLINE:
            return 0
        passed = int((self._owner.now() - self._armed_at) * TIMER_HZ / self._divisor)
        if self._timer_mode == _TIMER_PERIODIC:
            return self._initial - passed % self._initial
        return max(0, self._initial - passed)

    # ---------------------------------------------------------------- registers

    def read(self, offset: int) -> int:
        """The 32-bit register at `offset`; reserved ones read as zero."""
        if Apic.ISR <= offset < Apic.ESR:
            bank = (self.isr, self.tmr, self.irr)[offset - 0x100 >> 7]
            return bank >> (offset >> 4 & 7) * 32 & 0xFFFF_FFFF
        if offset in self.lvt:
            return self.lvt[offset]
        reader = _READERS.get(offset)
        return reader(self) if reader else 0

    def write(self, offset: int, value: int) -> None:
        """Write the 32-bit register at `offset`; read-only and reserved ones ignore it."""
        writer = _WRITERS.get(offset)
        if writer:
            writer(self, value)
        elif offset in self.lvt:
            self._write_lvt(offset, value)

    def has(self, offset: int, *, writable: bool = False) -> bool:
        """Whether there is a register at `offset`, or one that can be written."""
        found = offset in self.lvt or offset in (_WRITERS if writable else _READERS)
        return found or (not writable and Apic.ISR <= offset < Apic.ESR)

    def _write_lvt(self, offset: int, value: int) -> None:
        value &= _LVT_WRITABLE[Apic(offset)]
        if not self.svr & 0x100:
            value |= _MASKED
        old = self.lvt[offset]
        self.lvt[offset] = value
        if offset == Apic.LVT_TIMER and (old ^ value) >> 17 & 3:
            self.tsc_deadline = self._initial = 0
            self._arm(None)
        elif offset == Apic.LVT_LINT0:
            self._owner.apic_changed()

    def _write_tpr(self, value: int) -> None:
        self.tpr = value & 0xFF
        self._owner.apic_changed()

    def _write_svr(self, value: int) -> None:
        self.svr = value & 0x13FF
        if not value & 0x100:
            for offset in self.lvt:
                self.lvt[offset] |= _MASKED

    def _write_esr(self, _: int) -> None:
        self.esr, self._errors = self._errors, 0

    def _write_icr_low(self, value: int) -> None:
        self.icr = self.icr & ~0xFFFF_FFFF | value & 0x000C_CFFF
        self.send(value, self.icr >> 56)

    def _write_icr_high(self, value: int) -> None:
        self.icr = self.icr & 0xFFFF_FFFF | value << 32

    def _write_initial(self, value: int) -> None:
        if self._timer_mode == _TIMER_TSC_DEADLINE:
            return
        self._initial = value
        self._start()

    def _write_divide(self, value: int) -> None:
        self.divide = value & 0xB
        if self._initial:
            self._start()

    def send(self, low: int, destination: int) -> None:
        """Send the IPI that the low half of the ICR describes (SDM 11.6.1)."""
        vector, mode, shorthand = low & 0xFF, low >> 8 & 7, low >> 18 & 3
        if mode in (_MODE_FIXED, _MODE_LOWEST) and vector < 16:
            self._error(_ESR_SEND_ILLEGAL)
            return
        logical = bool(low & 0x800)
        to_self = shorthand in (1, 2) or (shorthand == 0 and self.matches(destination, logical))
        if to_self and mode not in (_MODE_INIT, _MODE_SIPI):
            self.deliver(mode, vector, False)
        if shorthand != 1:
            self._owner.apic_send(destination, logical, shorthand, mode, vector)


def _set_field(name: str, mask: int) -> Callable[[LocalApic, int], None]:
    def write(apic: LocalApic, value: int) -> None:
        setattr(apic, name, value & mask)

    return write


_READERS: dict[int, Callable[[LocalApic], int]] = {
    Apic.ID: lambda apic: apic.apic_id,
    Apic.VERSION: lambda _: VERSION,
    Apic.TPR: lambda apic: apic.tpr,
    Apic.PPR: LocalApic.ppr,
    Apic.LDR: lambda apic: apic.ldr,
    Apic.DFR: lambda apic: apic.dfr,
    Apic.SIVR: lambda apic: apic.svr,
    Apic.ESR: lambda apic: apic.esr,
    Apic.ICR_LOW: lambda apic: apic.icr & 0xFFFF_FFFF,
    Apic.ICR_HIGH: lambda apic: apic.icr >> 32,
    Apic.INIT_COUNT: lambda apic: apic._initial,
    Apic.CUR_COUNT: LocalApic._current_count,
    Apic.DIV_CONF: lambda apic: apic.divide,
}
_WRITERS: dict[int, Callable[[LocalApic, int], None]] = {
    Apic.TPR: LocalApic._write_tpr,
    Apic.EOI: lambda apic, _: apic.eoi(),
    Apic.LDR: _set_field("ldr", 0xFF00_0000),
    Apic.DFR: lambda apic, value: setattr(apic, "dfr", value | 0x0FFF_FFFF),
    Apic.SIVR: LocalApic._write_svr,
    Apic.ESR: LocalApic._write_esr,
    Apic.ICR_LOW: LocalApic._write_icr_low,
    Apic.ICR_HIGH: LocalApic._write_icr_high,
    Apic.INIT_COUNT: LocalApic._write_initial,
    Apic.DIV_CONF: LocalApic._write_divide,
}
