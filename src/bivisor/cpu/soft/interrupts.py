"""When a soft processor's guest is interrupted: its local APIC, the 8259's line, a vector of the host's, NMIs.

`Interrupts` owns the local APIC and is what that asks for (`lapic.Owner`). TCG asks `inta()` for a vector when the
guest can take one; `apic_changed()` makes TCG ask.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bivisor.cpu.soft import private as p
from bivisor.cpu.soft.alarm import Alarm
from bivisor.cpu.soft.lapic import LocalApic
from bivisor.errors import EngineError

if TYPE_CHECKING:
    from bivisor.cpu.soft.vcpu import SoftVcpu


class Interrupts:
    """What waits for the guest of `vcpu`. `queued` is the vector of KVM_INTERRUPT, -1 for none; `window` is wanted."""

    def __init__(self, vcpu: SoftVcpu, alarm: Alarm) -> None:
        self._vcpu = vcpu
        self._machine = vcpu.machine
        self._alarm = alarm
        self.queued = -1
        self.window = False
        self.apic = LocalApic(vcpu.index, self)
        if self._machine.irqchip != "none":
            self.apic.base = 0xFEE0_0800 | (0x100 if vcpu.index == 0 else 0)

    def apic_changed(self) -> None:
        """See `lapic.Owner`: have TCG ask, if anything waits."""
        if self.queued >= 0 or self.window or self.apic.pending() >= 0 or self._extint():
            cpu = self._vcpu.cpu
            cpu.interrupt_request.value |= p.INTERRUPT_HARD
            cpu.look()

    def _extint(self) -> bool:
        return self.apic.intr and self._vcpu.index == 0 and self.apic.accepts_extint()

    def inta(self) -> int:
        """The guest can take an interrupt now: which? -1 for none."""
        apic, callbacks = self.apic, self._vcpu.callbacks
        if self.queued >= 0:
            vector, self.queued = self.queued, -1
            callbacks.context.more = self.window
            return vector
        if self.window:
            self.window = False
            callbacks.leave_with_window()
            return -1
        inflight = int(callbacks.context.inflight)  # its delivery faulted and has to be repeated
        if inflight >= 0:
            callbacks.context.more = True
            return inflight
        apic.tick()
        vector = apic.pending()
        if vector >= 0:
            apic.accept(vector)
        elif self._extint():
            vector = self._machine.acknowledge()
        callbacks.context.more = apic.pending() >= 0 or self._extint()
        return vector

    def apic_nmi(self) -> None:
        """See `lapic.Owner`."""
        cpu = self._vcpu.cpu
        cpu.interrupt_request.value |= p.INTERRUPT_NMI
        cpu.look()

    def apic_eoi(self, vector: int) -> None:
        """See `lapic.Owner`."""
        self._machine.end_of_interrupt(vector)

    def apic_timer(self, deadline: float | None) -> None:
        """See `lapic.Owner`."""
        self._alarm.set(deadline)

    def apic_send(self, destination: int, logical: bool, shorthand: int, mode: int, vector: int) -> None:
        """See `lapic.Owner`: a soft machine has one processor, so there is nobody else to send to."""

    def now(self) -> float:
        """See `lapic.Owner`."""
        return time.monotonic()

    def tsc(self) -> int:
        """See `lapic.Owner`."""
        return self._vcpu.tsc()

    def tsc_hz(self) -> float:
        """See `lapic.Owner`."""
        return self._machine.tsc_khz() * 1000.0

    def queue(self, vector: int) -> None:
        """See `Vcpu.interrupt`."""
        if self._machine.irqchip != "none":
            raise EngineError(
                "KVM_INTERRUPT: the engine has this machine's interrupt controllers; use set_irq or signal_msi"
            )
        if not 0 <= vector < 256:
            raise EngineError(f"interrupt vector {vector}: it has to be 0 to 255")
        self.queued = vector
        self.apic_changed()

    def request_window(self, wanted: bool) -> None:
        """See `Vcpu.request_interrupt_window`."""
        self.window = wanted
        if wanted:
            self.apic_changed()
