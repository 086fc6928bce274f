"""A 16550A UART, as COM1 of a PC has it.

Specification: National Semiconductor PC16550D data sheet, section 8 "Registers". The line has no speed: a byte that
the guest writes is sent at once, and the four-character receive timeout has always passed already, so that a guest
which waits for its FIFO to fill is told of a single byte without delay. Only the low byte of an access is decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bivisor.host.loop import Clock, Timer

PORTS = 8
FIFO_SIZE = 16
FLUSH_DELAY = 0.004
FLUSH_SIZE = 512
BACKLOG_LIMIT = 1 << 20

IER_RDA, IER_THRE, IER_RLS, IER_MS = 0x01, 0x02, 0x04, 0x08
IIR_MS, IIR_NONE, IIR_THRE, IIR_RDA, IIR_RLS, IIR_TIMEOUT, IIR_FIFOS = 0x00, 0x01, 0x02, 0x04, 0x06, 0x0C, 0xC0
FCR_ENABLE, FCR_CLEAR_RX = 0x01, 0x02
LCR_DLAB = 0x80
MCR_LOOP = 0x10
LSR_DR, LSR_OE, LSR_BI, LSR_THRE, LSR_TEMT, LSR_FIFO_ERROR = 0x01, 0x02, 0x10, 0x20, 0x40, 0x80
LSR_ERRORS = LSR_OE | LSR_BI
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD

_TRIGGER = (1, 4, 8, 14)
_LOOPED = ((0x01, MSR_DSR), (0x02, MSR_CTS), (0x04, MSR_RI), (0x08, MSR_DCD))
_BREAK = 0x100


class Serial:
    """One UART. `sink` gets what the guest sends, in pieces: at each newline, or `FLUSH_DELAY` seconds after a byte.

    The host never overruns the guest: what does not fit into the receive FIFO waits (up to `BACKLOG_LIMIT` bytes).
    """

    def __init__(self, sink: Callable[[bytes], None], irq: Callable[[bool], None], clock: Clock) -> None:
        self._sink = sink
        self._irq = irq
        self._clock = clock
        self._out = bytearray()
        self._flush_timer: Timer | None = None
        self._fifo: deque[int] = deque()
        self._backlog: deque[int] = deque()
        self._line = False
        self._thre = False
        self._ier = self._fcr = self._lcr = self._mcr = self._scr = 0
        self._dll, self._dlm = 12, 0
        self._errors = 0
        self._msr_delta = 0
        self._reads = (
            self._rbr,
            self._get_ier,
            self._iir,
            self._get_lcr,
            self._get_mcr,
            self._lsr,
            self._msr,
            self._get_scr,
        )
        self._writes = (
            self._thr,
            self._set_ier,
            self._set_fcr,
            self._set_lcr,
            self._set_mcr,
            _ignore,
            _ignore,
            self._set_scr,
        )

    def read(self, offset: int, size: int) -> int:
        """Register `offset` (0 to 7)."""
        return self._reads[offset]()

    def write(self, offset: int, size: int, value: int) -> None:
        """Register `offset` (0 to 7)."""
        self._writes[offset](value & 0xFF)

    def receive(self, data: bytes) -> int:
        """Bytes typed at the other end of the line; how many were taken, which is less than all only when the guest
        has not read `BACKLOG_LIMIT` bytes."""
        taken = data[: max(0, BACKLOG_LIMIT - len(self._backlog))]
        self._backlog.extend(taken)
        self._refill()
        return len(taken)

    def receive_break(self) -> None:
        """A break condition on the line (Linux takes it for the SysRq key)."""
        self._backlog.append(_BREAK)
        self._refill()

    def flush(self) -> None:
        """Hand to `sink` what the guest has sent so far."""
        if self._out:
            data = bytes(self._out)
            self._out.clear()
            self._sink(data)

    def close(self) -> None:
        """Hand over what is left and stop the timer."""
        self.flush()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None

    def _flush_late(self) -> None:
        self._flush_timer = None
        self.flush()

    # Offset 0: receive buffer, transmit holding register, divisor latch low

    def _rbr(self) -> int:
        if self._lcr & LCR_DLAB:
            return self._dll
        if not self._fifo:
            return 0
        value = self._fifo.popleft()
        self._refill()
        return value & 0xFF

    def _thr(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._dll = value
            return
        if self._mcr & MCR_LOOP:
            self._loop_back(value)
        else:
            out = self._out
            out.append(value)
            if value == 0x0A or len(out) >= FLUSH_SIZE:
                self.flush()  # the timer stays: setting one for each line would wake the loop as often
            elif self._flush_timer is None:
                self._flush_timer = self._clock.call_at(self._clock.now() + FLUSH_DELAY, self._flush_late)
        self._thre = True
        if self._ier & IER_THRE:
            self._update()

    def _loop_back(self, value: int) -> None:
        if len(self._fifo) >= self._depth():
            self._errors |= LSR_OE
        else:
            self._fifo.append(value)
        self._update()

    # Offset 1: interrupt enable, divisor latch high

    def _get_ier(self) -> int:
        return self._dlm if self._lcr & LCR_DLAB else self._ier

    def _set_ier(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._dlm = value
            return
        if value & ~self._ier & IER_THRE:
            self._thre = True  # enabling it while the holding register is empty interrupts at once
        self._ier = value & 0x0F
        self._update()

    # Offset 2: interrupt identification, FIFO control

    def _source(self) -> int:
        ier = self._ier
        if ier & IER_RLS and self._line_errors():
            return IIR_RLS
        if ier & IER_RDA and self._fifo:
            return IIR_RDA if len(self._fifo) >= self._trigger() else IIR_TIMEOUT
        if ier & IER_THRE and self._thre:
            return IIR_THRE
        if ier & IER_MS and self._msr_delta:
            return IIR_MS
        return IIR_NONE

    def _iir(self) -> int:
        source = self._source()
        if source == IIR_THRE:
            self._thre = False
            self._update()
        return source | (IIR_FIFOS if self._fcr & FCR_ENABLE else 0)

    def _set_fcr(self, value: int) -> None:
        if (value ^ self._fcr) & FCR_ENABLE or value & FCR_CLEAR_RX:
            self._fifo.clear()
        self._fcr = value & 0xC9 if value & FCR_ENABLE else 0
        self._refill()

    def _depth(self) -> int:
        return FIFO_SIZE if self._fcr & FCR_ENABLE else 1

    def _trigger(self) -> int:
        return _TRIGGER[self._fcr >> 6] if self._fcr & FCR_ENABLE else 1

    # Offsets 3 to 7: line control, modem control, line status, modem status, scratch

    def _get_lcr(self) -> int:
        return self._lcr

    def _set_lcr(self, value: int) -> None:
        self._lcr = value

    def _get_mcr(self) -> int:
        return self._mcr

    def _set_mcr(self, value: int) -> None:
        before = self._modem_lines()
        self._mcr = value & 0x1F
        after = self._modem_lines()
        changed = before ^ after
        self._msr_delta |= changed >> 4 & 0x0B | (before & ~after & MSR_RI) >> 4  # RI counts only its trailing edge
        self._refill()

    def _modem_lines(self) -> int:
        if not self._mcr & MCR_LOOP:
            return MSR_CONNECTED
        return sum(line for control, line in _LOOPED if self._mcr & control)

    def _line_errors(self) -> int:
        return self._errors | (LSR_BI if self._fifo and self._fifo[0] & _BREAK else 0)

    def _lsr(self) -> int:
        if not self._fifo and not self._errors:
            return LSR_THRE | LSR_TEMT
        value = LSR_THRE | LSR_TEMT | self._line_errors()
        if self._fifo:
            value |= LSR_DR
            if self._fcr & FCR_ENABLE and any(entry & _BREAK for entry in self._fifo):
                value |= LSR_FIFO_ERROR
            self._fifo[0] &= 0xFF  # reading the status clears the break indication of the byte at the top
        self._errors = 0
        self._update()
        return value

    def _msr(self) -> int:
        value = self._modem_lines() | self._msr_delta
        self._msr_delta = 0
        self._update()
        return value

    def _get_scr(self) -> int:
        return self._scr

    def _set_scr(self, value: int) -> None:
        self._scr = value

    def _refill(self) -> None:
        if not self._mcr & MCR_LOOP:
            while self._backlog and len(self._fifo) < self._depth():
                self._fifo.append(self._backlog.popleft())
        self._update()

    def _update(self) -> None:
        line = self._source() != IIR_NONE
        if line != self._line:
            self._line = line
            self._irq(line)


def _ignore(value: int) -> None:
    """Line status and modem status: writing them is for factory tests."""
