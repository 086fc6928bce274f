from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bivisor.host.loop import ManualLoop
from bivisor.platform.serial import (
    FIFO_SIZE,
    FLUSH_DELAY,
    IER_MS,
    IER_RDA,
    IER_RLS,
    IER_THRE,
    IIR_FIFOS,
    IIR_MS,
    IIR_NONE,
    IIR_RDA,
    IIR_RLS,
    IIR_THRE,
    IIR_TIMEOUT,
    LSR_BI,
    LSR_DR,
    LSR_OE,
    LSR_TEMT,
    LSR_THRE,
    MCR_LOOP,
    Serial,
)

THR = RBR = 0
IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 1, 2, 2, 3, 4, 5, 6, 7


class Line:
    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.sent: list[bytes] = []
        self.level = False
        self.edges = 0
        self.uart = Serial(self.sent.append, self.irq, self.loop)

    def irq(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level

    def set(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    def get(self, register: int) -> int:
        return self.uart.read(register, 1)


def test_a_line_reaches_the_sink_at_its_newline() -> None:
    line = Line()
    for byte in b"hello\n":
        line.set(THR, byte)
    assert line.sent == [b"hello\n"]
    assert line.get(LSR) == LSR_THRE | LSR_TEMT


def test_a_prompt_without_newline_reaches_the_sink_soon() -> None:
    line = Line()
    line.set(THR, ord("#"))
    line.set(THR, ord(" "))
    assert line.sent == []
    line.loop.advance(FLUSH_DELAY)
    assert line.sent == [b"# "]


def test_the_divisor_latch_hides_the_data_registers() -> None:
    line = Line()
    line.set(LCR, 0x83)
    line.set(0, 0x34)
    line.set(1, 0x12)
    assert (line.get(0), line.get(1)) == (0x34, 0x12)
    line.set(LCR, 0x03)
    line.set(IER, 0x05)
    assert line.get(IER) == 0x05
    line.uart.flush()
    assert line.sent == []


def test_enabling_thre_interrupts_and_reading_iir_clears_it() -> None:
    line = Line()
    line.set(IER, IER_THRE)
    assert line.level
    assert line.get(IIR) == IIR_THRE
    assert not line.level
    assert line.get(IIR) == IIR_NONE
    line.set(THR, 65)
    assert line.level
    assert line.get(IIR) == IIR_THRE


def test_enabling_thre_a_second_time_interrupts_again() -> None:
    line = Line()
    line.set(IER, IER_THRE)
    assert line.get(IIR) == IIR_THRE
    line.set(IER, 0)
    line.set(IER, IER_THRE)
    assert line.get(IIR) == IIR_THRE


def test_received_bytes_come_in_order_and_more_than_the_fifo_holds_waits() -> None:
    line = Line()
    line.set(FCR, 1)
    data = bytes(range(100))
    assert line.uart.receive(data) == 100
    got = []
    while line.get(LSR) & LSR_DR:
        got.append(line.get(RBR))
    assert bytes(got) == data


def test_the_trigger_level_tells_data_available_from_a_timeout() -> None:
    line = Line()
    line.set(FCR, 0x81)  # trigger at 8
    line.set(IER, IER_RDA)
    line.uart.receive(b"1234567")
    assert line.level
    assert line.get(IIR) == IIR_FIFOS | IIR_TIMEOUT
    line.uart.receive(b"8")
    assert line.get(IIR) == IIR_FIFOS | IIR_RDA
    for _ in range(8):
        line.get(RBR)
    assert not line.level


def test_the_sources_come_in_the_order_of_their_priority() -> None:
    line = Line()
    line.set(FCR, 1)
    line.set(IER, IER_RDA | IER_THRE | IER_RLS | IER_MS)
    line.set(MCR, MCR_LOOP)
    for byte in range(FIFO_SIZE + 1):
        line.set(THR, byte)
    assert line.get(IIR) & 15 == IIR_RLS
    assert line.get(LSR) & LSR_OE
    assert line.get(IIR) & 15 == IIR_RDA
    line.set(FCR, 3)
    assert line.get(IIR) & 15 == IIR_THRE
    assert line.get(IIR) & 15 == IIR_MS
    assert line.get(MSR) == 0x0B
    assert line.get(IIR) & 15 == IIR_NONE
    assert not line.level


def test_loopback_shows_the_modem_controls_as_modem_status() -> None:
    line = Line()
    assert line.get(MSR) == 0xB0
    line.set(MCR, MCR_LOOP | 0x0A)
    assert line.get(MSR) & 0xF0 == 0x90  # how Linux tells a UART from something else
    line.set(MCR, MCR_LOOP | 0x04)
    line.get(MSR)
    line.set(MCR, MCR_LOOP)
    assert line.get(MSR) == 0x04


def test_a_break_is_one_zero_byte_with_its_indication() -> None:
    line = Line()
    line.set(FCR, 1)
    line.set(IER, IER_RLS)
    line.uart.receive_break()
    assert line.level
    assert line.get(LSR) & (LSR_BI | LSR_DR) == LSR_BI | LSR_DR
    assert line.get(LSR) & (LSR_BI | LSR_DR) == LSR_DR
    assert line.get(RBR) == 0


def test_the_scratch_register_keeps_a_byte() -> None:
    line = Line()
    line.set(SCR, 0xA5)
    assert line.get(SCR) == 0xA5


Access = st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 0xFFFFFFFF), st.binary(max_size=40))


@given(st.lists(Access, max_size=200))
def test_no_sequence_of_accesses_raises_or_leaves_the_line_wrong(accesses: list[tuple[bool, int, int, bytes]]) -> None:
    line = Line()
    for is_write, register, value, typed in accesses:
        if is_write:
            line.uart.write(register, 4, value)
        else:
            assert 0 <= line.get(register) <= 0xFF
        line.uart.receive(typed)
        assert line.level == (line.uart._source() != IIR_NONE)
