from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.errors import UsageError
from bivisor.platform.bus import mmio_bus, port_bus
from bivisor.platform.events import Event, Reset
from bivisor.platform.pci import BarKind, Identity, MsiX, PciBus, PciFunction
from bivisor.platform.pci.bus import ADDRESS_PORT, IO_START, MMIO_START, PORTS, PciConfigPorts, gsi_of, isa_line_of
from bivisor.platform.reset import ResetControl

COMMAND, BAR0, MSI = 0x04, 0x10, 0xFEE00000


class Ram:
    def __init__(self) -> None:
        self.bytes = bytearray(1 << 16)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")


class Card(PciFunction):
    def __init__(self, name: str = "card", vectors: int = 4) -> None:
        super().__init__(Identity(0x1AF4, 0x1042, 0x018000, 1, 0x1AF4, 0x0002), name=name, pin=1)
        self.ram = Ram()
        self.moves: list[tuple[int, int | None]] = []
        self.add_bar(0, BarKind.IO, 0x40, self.ram)
        self.add_msix(1, vectors)
        self.add_bar(4, BarKind.MEMORY64, 0x4000, self.ram, prefetchable=True)

    def bar_moved(self, index: int, address: int | None) -> None:
        self.moves.append((index, address))


class Board:
    def __init__(self) -> None:
        self.ports, self.mmio = port_bus(), mmio_bus()
        self.lines: dict[int, bool] = {}
        self.messages: list[tuple[int, int]] = []
        self.events: list[Event] = []
        self.pci = PciBus(
            self.ports,
            self.mmio,
            set_irq=self.lines.__setitem__,
            signal_msi=lambda address, data: self.messages.append((address, data)),
        )
        config = PciConfigPorts(self.pci, ResetControl(self.events.append))
        self.ports.attach(ADDRESS_PORT, PORTS, config)
        self.card = Card()
        self.slot = self.pci.add(self.card)
        self.pci.assign()

    def get(self, offset: int, size: int = 4, slot: int = 1, number: int = 0) -> int:
        self.ports.write(0xCF8, 4, 1 << 31 | slot << 11 | number << 8 | offset & 0xFC)
        return self.ports.read(0xCFC + (offset & 3), size)

    def set(self, offset: int, value: int, size: int = 4, slot: int = 1, number: int = 0) -> None:
        self.ports.write(0xCF8, 4, 1 << 31 | slot << 11 | number << 8 | offset & 0xFC)
        self.ports.write(0xCFC + (offset & 3), size, value)


@pytest.fixture
def board() -> Board:
    return Board()


def test_linux_finds_mechanism_1(board: Board) -> None:
    board.ports.write(0xCFB, 1, 1)
    board.ports.write(0xCF8, 4, 0x80000000)
    assert board.ports.read(0xCF8, 4) == 0x80000000
    assert board.get(0x08, slot=0) >> 16 == 0x0600  # the sanity check: a host bridge


def test_identity_can_be_read_in_bytes_words_and_double_words(board: Board) -> None:
    assert board.get(0) == 0x10421AF4
    assert board.get(2, 2) == 0x1042
    assert board.get(3, 1) == 0x10
    assert board.get(0x0B, 1) == 0x01
    assert board.get(0x2C) == 0x00021AF4


def test_absent_functions_read_as_all_ones(board: Board) -> None:
    assert board.get(0, slot=2) == 0xFFFFFFFF
    assert board.get(0, slot=1, number=1) == 0xFFFFFFFF
    board.ports.write(0xCF8, 4, 1 << 11)  # not enabled
    assert board.ports.read(0xCFC, 2) == 0xFFFF


def test_identity_cannot_be_written(board: Board) -> None:
    board.set(0, 0)
    board.set(0x3D, 4, 1)
    assert board.get(0) == 0x10421AF4
    assert board.get(0x3D, 1) == 1


def test_bars_tell_their_size(board: Board) -> None:
    for offset, expected in ((0x10, 0xFFFFFFC1), (0x14, 0xFFFFF000), (0x20, 0xFFFFC00C), (0x24, 0xFFFFFFFF)):
        board.set(offset, 0xFFFFFFFF)
        assert board.get(offset) == expected


def test_bars_are_assigned_before_boot_and_answer_once_enabled(board: Board) -> None:
    assert board.get(0x20) == MMIO_START | 0xC
    assert board.get(0x10) == IO_START | 1
    assert board.ports.find(IO_START) is None
    board.set(COMMAND, 3, 2)
    board.mmio.write(MMIO_START + 8, 4, 0x12345678)
    assert board.ports.read(IO_START + 8, 4) == 0x12345678


def test_a_bar_that_the_guest_moves_answers_at_its_new_place(board: Board) -> None:
    board.set(COMMAND, 3, 2)
    board.set(0x20, 0)
    board.set(0x24, 0x10)
    board.mmio.write(0x10_0000_0000, 1, 0x5A)
    assert board.card.ram.bytes[0] == 0x5A
    assert board.mmio.find(MMIO_START) is None
    assert board.card.moves[-1] == (4, 0x10_0000_0000)
    board.set(COMMAND, 0, 2)
    assert board.mmio.find(0x10_0000_0000) is None


def test_a_bar_put_over_another_does_not_answer_until_the_other_goes(board: Board) -> None:
    other = Card("other")
    slot = board.pci.add(other)
    board.set(COMMAND, 3, 2)
    board.set(0x20, 0xE8000000, slot=slot)
    board.set(COMMAND, 3, 2, slot=slot)
    assert board.mmio.read(0xE8000000, 1) == 0
    board.set(0x20, 0xE8000000)
    board.mmio.write(0xE8000000, 1, 1)
    assert (other.ram.bytes[0], board.card.ram.bytes[0]) == (1, 0)
    board.set(COMMAND, 0, 2, slot=slot)
    board.mmio.write(0xE8000000, 1, 2)
    assert (other.ram.bytes[0], board.card.ram.bytes[0]) == (1, 2)


def test_the_interrupt_pin_reaches_its_line_and_can_be_turned_off(board: Board) -> None:
    gsi = gsi_of(board.slot, 1)
    board.card.set_intx(True)
    assert board.lines[gsi]
    assert board.get(0x06, 2) & 0x08
    board.set(COMMAND, 0x400, 2)
    assert not board.lines[gsi]


def test_a_shared_line_is_up_while_anybody_holds_it(board: Board) -> None:
    other = Card("other")
    board.pci.add(other, board.slot + 8)
    gsi = gsi_of(board.slot, 1)
    board.card.set_intx(True)
    other.set_intx(True)
    board.card.set_intx(False)
    assert board.lines[gsi]
    other.set_intx(False)
    assert not board.lines[gsi]


def test_a_guest_without_io_apic_finds_the_line_in_configuration_space(board: Board) -> None:
    line = board.get(0x3C, 1)
    assert line == isa_line_of(board.slot, 1)
    board.card.set_intx(True)
    assert board.lines[line]
    board.card.set_intx(False)
    assert not board.lines[line]


def test_a_single_byte_at_0xcf9_is_the_reset_control(board: Board) -> None:
    board.ports.write(0xCF9, 1, 0x06)
    assert board.events == [Reset("port 0xcf9")]


def test_more_functions_in_a_slot_show_in_the_header_type(board: Board) -> None:
    with pytest.raises(UsageError):
        board.pci.add(Card(), 9, 1)
    board.pci.add(Card("first"), 9)
    assert board.get(0x0E, 1, slot=9) == 0
    board.pci.add(Card("second"), 9, 1)
    assert board.get(0x0E, 1, slot=9) == 0x80
    assert board.get(0, slot=9, number=1) == 0x10421AF4


def test_a_full_bus_refuses_with_one_line(board: Board) -> None:
    for _ in range(30):
        board.pci.add(Card())
    with pytest.raises(UsageError):
        board.pci.add(Card())


class TestMsiX:
    def program(self, board: Board, vector: int, *, masked: bool = False, address: int = MSI) -> None:
        table = board.get(0x14) & ~15
        board.mmio.write(table + 16 * vector, 8, address)
        board.mmio.write(table + 16 * vector + 8, 4, 0x40 + vector)
        board.mmio.write(table + 16 * vector + 12, 4, masked)

    @pytest.fixture(autouse=True)
    def enabled(self, board: Board) -> None:
        board.set(COMMAND, 7, 2)
        self.capability = board.get(0x34, 1)
        assert board.get(self.capability, 1) == 0x11
        assert board.get(self.capability + 2, 2) == 3
        board.set(self.capability + 2, 0x8000, 2)

    def test_an_unmasked_vector_is_a_message(self, board: Board) -> None:
        self.program(board, 2)
        assert board.card.msix is not None
        assert board.card.msix.notify(2)
        assert board.messages == [(MSI, 0x42)]

    def test_a_masked_vector_waits_for_its_unmasking(self, board: Board) -> None:
        self.program(board, 1, masked=True)
        assert board.card.msix is not None
        board.card.msix.notify(1)
        board.card.msix.notify(1)
        table = board.get(0x14) & ~15
        assert board.messages == []
        assert board.mmio.read(table + board.card.msix.pba_offset, 8) == 2
        board.mmio.write(table + 16 + 12, 4, 0)
        assert board.messages == [(MSI, 0x41)]
        assert board.mmio.read(table + board.card.msix.pba_offset, 8) == 0

    def test_the_function_mask_holds_back_all(self, board: Board) -> None:
        self.program(board, 0)
        self.program(board, 3)
        board.set(self.capability + 2, 0xC000, 2)
        assert board.card.msix is not None
        board.card.msix.notify(0)
        board.card.msix.notify(3)
        assert board.messages == []
        board.set(self.capability + 2, 0x8000, 2)
        assert board.messages == [(MSI, 0x40), (MSI, 0x43)]

    def test_without_enable_the_device_is_told_to_use_its_pin(self, board: Board) -> None:
        board.set(self.capability + 2, 0, 2)
        assert board.card.msix is not None
        assert not board.card.msix.notify(0)

    def test_a_vector_that_does_not_exist_and_an_address_that_is_no_interrupt_are_nothing(self, board: Board) -> None:
        self.program(board, 0, address=0x1000)
        assert board.card.msix is not None
        for vector in (0, 4, 0xFFFF, -1):
            assert board.card.msix.notify(vector)
        assert board.messages == []

    @pytest.mark.parametrize("vectors", [1, 64, 128, 129, 2048])
    def test_table_and_pending_bits_fit_into_the_bar(self, vectors: int) -> None:
        msix = MsiX(vectors, lambda address, data: None)
        assert msix.size & msix.size - 1 == 0
        assert 16 * vectors <= msix.pba_offset
        assert msix.pba_offset + 8 * ((vectors + 63) // 64) <= msix.size


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["config", "mmio", "notify", "intx"]),
            st.integers(0, 3),
            st.integers(0, 0xFFF),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, 2**64 - 1) | st.sampled_from([0xE0000000, 0xFFFFFFFF, 7]),
        ),
        max_size=150,
    )
)
def test_no_sequence_of_accesses_raises(steps: list[tuple[str, int, int, int, int]]) -> None:
    board = Board()
    board.pci.add(Card("other"))
    for kind, slot, offset, size, value in steps:
        value &= (1 << 8 * size) - 1
        match kind:
            case "config" if size < 8:
                board.set(offset & 0xFF, value, size, slot)
                assert 0 <= board.get(offset & 0xFF, size, slot) < 1 << 8 * size
            case "mmio":
                for claim in board.mmio.claims:
                    board.mmio.write(claim.base + offset % claim.length, size, value)
                    board.mmio.read(claim.base + offset % claim.length, size)
            case "notify":
                assert board.card.msix is not None
                board.card.msix.notify(offset % 5)
            case "intx":
                board.card.set_intx(bool(value & 1))
        assert len(board.mmio.claims) <= 4
