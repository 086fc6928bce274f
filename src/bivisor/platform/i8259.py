"""The 8259A interrupt controllers of a PC: two chips, the second on input 2 of the first, and their ELCRs.

Specification: Intel 8259A data sheet (231468), "Programming the 8259A"; the edge/level control registers at 0x4d0 and
0x4d1 are those of the Intel 82371 (PIIX) data sheet. With them the LTIM bit of ICW1 has no effect.
"""

from __future__ import annotations

from collections.abc import Callable

MASTER_PORT, SLAVE_PORT, ELCR_PORT = 0x20, 0xA0, 0x4D0
CASCADE = 2

ICW1, ICW1_IC4, ICW1_SNGL = 0x10, 0x01, 0x02
ICW4_AEOI, ICW4_SFNM = 0x02, 0x10
OCW3 = 0x08
_EOI, _SL, _R = 0x20, 0x40, 0x80
SPURIOUS = 7


class I8259:
    """One chip. `output` is its INT pin and is called when its level changes.

    `elcr_mask` has the inputs that may be level-triggered. An edge-triggered request has to stay up until it is
    acknowledged, as the data sheet demands; one that goes away earlier is gone, or ends as a spurious IR7.
    """

    def __init__(self, output: Callable[[bool], None], elcr_mask: int, *, cascade: int = 0) -> None:
        self._output = output
        self._elcr_mask = elcr_mask
        self._cascade = cascade
        self.elcr = 0
        self.base = 0
        self.imr = 0xFF  # nothing comes before the guest has programmed the chip
        self.irr = self.isr = 0
        self._lines = 0
        self._int = False
        self._lowest = 7
        self._expected: list[int] = []
        self._poll = self._read_isr = self._special_mask = False
        self._aeoi = self._rotate_on_aeoi = self._sfnm = False

    def set_line(self, line: int, level: bool) -> None:
        """The level of input `line` (0 to 7)."""
        bit = 1 << line
        if level:
            if self.elcr & bit or not self._lines & bit:
                self.irr |= bit
            self._lines |= bit
        else:
            self.irr &= ~bit
            self._lines &= ~bit
        self.update()

    def pending(self) -> int | None:
        """The request that INT stands for: the highest one that is not masked and beats all in service."""
        requests = self.irr & ~self.imr
        if not requests:
            return None
        in_service = self.isr
        if self._special_mask:
            in_service &= ~self.imr
        if self._sfnm:
            in_service &= ~self._cascade  # the slave may interrupt its own service with a higher request
        for level in self._by_priority():
            bit = 1 << level
            if in_service & bit:
                return None
            if requests & bit:
                return level
        return None

    def acknowledge(self) -> int:
        """The INTA cycle: the input (0 to 7) now in service, `SPURIOUS` with nothing in service if none is left."""
        level = self.pending()
        if level is None:
            return SPURIOUS
        self._take(level)
        self.update()
        return level

    def update(self) -> None:
        """Drive INT anew."""
        wanted = self.pending() is not None
        if wanted != self._int:
            self._int = wanted
            self._output(wanted)

    def read(self, offset: int, size: int) -> int:
        """A0 = 0: IRR, ISR or the poll word; A0 = 1: IMR."""
        if self._poll:
            self._poll = False
            level = self.pending()
            if level is None:
                return 0
            self._take(level)
            self.update()
            return 0x80 | level
        if offset:
            return self.imr
        return self.isr if self._read_isr else self.irr

    def write(self, offset: int, size: int, value: int) -> None:
        """A0 = 0: ICW1, OCW2, OCW3; A0 = 1: the ICWs that are expected, then OCW1."""
        value &= 0xFF
        if offset:
            if self._expected:
                self._icw(self._expected.pop(0), value)
            else:
                self.imr = value
        elif value & ICW1:
            self._icw1(value)
        elif value & OCW3:
            self._ocw3(value)
        else:
            self._ocw2(value)
        self.update()

    def set_elcr(self, value: int) -> None:
        """Choose the inputs that are level-triggered."""
        self.elcr = value & self._elcr_mask
        self.irr = self.irr & ~self.elcr | self._lines & self.elcr
        self.update()

    def _by_priority(self) -> tuple[int, ...]:
        return _ORDER[self._lowest]

    def _take(self, level: int) -> None:
        bit = 1 << level
        if not self.elcr & bit:
            self.irr &= ~bit
        if not self._aeoi:
            self.isr |= bit
        elif self._rotate_on_aeoi:
            self._lowest = level

    def _icw1(self, value: int) -> None:
        self._expected = [2] if value & ICW1_SNGL else [2, 3]
        if value & ICW1_IC4:
            self._expected.append(4)
        self.imr = self.isr = 0
        self.irr = self._lines & self.elcr
        self._lowest = 7
        self._poll = self._read_isr = self._special_mask = False
        self._aeoi = self._rotate_on_aeoi = self._sfnm = False

    def _icw(self, number: int, value: int) -> None:
        match number:
            case 2:
                self.base = value & 0xF8
            case 4:
                self._aeoi = bool(value & ICW4_AEOI)
                self._sfnm = bool(value & ICW4_SFNM)

    def _ocw3(self, value: int) -> None:
        self._poll = bool(value & 0x04)
        if value & 0x02:
            self._read_isr = bool(value & 0x01)
        if value & 0x40:
            self._special_mask = bool(value & 0x20)

    def _ocw2(self, value: int) -> None:
        level = value & 7
        match value & (_R | _SL | _EOI):
            case 0x00:
                self._rotate_on_aeoi = False
            case 0x80:
                self._rotate_on_aeoi = True
            case 0x20:
                self._end(self._highest_in_service(), rotate=False)
            case 0xA0:
                self._end(self._highest_in_service(), rotate=True)
            case 0x60:
                self._end(level, rotate=False)
            case 0xE0:
                self._end(level, rotate=True)
            case 0xC0:
                self._lowest = level

    def _highest_in_service(self) -> int | None:
        in_service = self.isr & ~self.imr if self._special_mask else self.isr
        return next((level for level in self._by_priority() if in_service >> level & 1), None)

    def _end(self, level: int | None, *, rotate: bool) -> None:
        if level is None:
            return
        self.isr &= ~(1 << level)
        if rotate:
            self._lowest = level


_ORDER = tuple(tuple((lowest + 1 + step) % 8 for step in range(8)) for lowest in range(8))


class I8259Pair:
    """Both chips. `output` is the master's INT: the INTR line of the processor."""

    def __init__(self, output: Callable[[bool], None]) -> None:
        self.master = I8259(output, elcr_mask=0xF8, cascade=1 << CASCADE)
        self.slave = I8259(self._cascade, elcr_mask=0xDE)
        self.elcr = Elcr(self.master, self.slave)

    def set_irq(self, irq: int, level: bool) -> None:
        """The level of ISA interrupt `irq` (0 to 15). Line 2 is the cascade and ignored."""
        if irq >= 8:
            self.slave.set_line(irq - 8, level)
        elif irq != CASCADE:
            self.master.set_line(irq, level)

    def acknowledge(self) -> int:
        """The vector for the processor's INTA cycle."""
        level = self.master.acknowledge()
        if level == CASCADE:
            self._cascade(False)  # the slave's INT drops at INTA, so that its next request is an edge again
            level = self.slave.acknowledge()
            self._cascade(self.slave.pending() is not None)
            return self.slave.base + level
        return self.master.base + level

    def _cascade(self, level: bool) -> None:
        self.master.set_line(CASCADE, level)


class Elcr:
    """Edge/level control, two ports: a set bit makes the input level-triggered."""

    def __init__(self, master: I8259, slave: I8259) -> None:
        self._chips = (master, slave)

    def read(self, offset: int, size: int) -> int:
        """ELCR1 (offset 0) or ELCR2."""
        return self._chips[offset].elcr

    def write(self, offset: int, size: int, value: int) -> None:
        """ELCR1 (offset 0) or ELCR2."""
        self._chips[offset].set_elcr(value & 0xFF)
