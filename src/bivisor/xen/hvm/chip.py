"""The interrupt controllers of an HVM domain, and the vector of event channels that goes past all of them."""

from __future__ import annotations

from collections.abc import Callable

from bivisor.platform.irqchip import PcIrqChip


class HvmChip:
    """A PC's controllers, and an interrupt that none of them knows (HVM_PARAM_CALLBACK_IRQ by vector), which comes
    first. See `cpu.contract.IrqChip`; `set_intr` is the processor's INTR input."""

    pc: PcIrqChip

    def __init__(self, set_intr: Callable[[bool], None]) -> None:
        self._set_intr = set_intr
        self._pic = self._callback = False
        self.callback_vector: Callable[[], int] = lambda: 0
        self.ended: Callable[[], None] = lambda: None
        """Called when a level-triggered interrupt has been served."""

    def set_pic_intr(self, level: bool) -> None:
        """The output of the 8259 pair."""
        self._pic = level
        self._set_intr(level or self._callback)

    def raise_callback(self) -> None:
        """An event is pending."""
        self._callback = True
        self._set_intr(True)

    def set_irq(self, gsi: int, level: bool) -> None:
        """See `IrqChip.set_irq`."""
        self.pc.set_irq(gsi, level)

    def acknowledge(self) -> int:
        """See `IrqChip.acknowledge`."""
        if self._callback:
            self._callback = False
            self._set_intr(self._pic)
            return self.callback_vector()
        return self.pc.acknowledge()

    def end_of_interrupt(self, vector: int) -> None:
        """See `IrqChip.end_of_interrupt`."""
        self.ended()
        self.pc.end_of_interrupt(vector)
