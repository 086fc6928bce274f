"""The flash: what firmware does to it, and that nothing else can be done to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.platform import flash as f
from bivisor.platform.flash import BLOCK, BUFFER, Flash

SIZE = 4 * BLOCK


class Kept:
    """What is saved; it can be full."""

    def __init__(self) -> None:
        self.content = bytearray(b"\xff" * SIZE)
        self.full = False

    def save(self, offset: int, data: bytes) -> None:
        if self.full:
            raise OSError
        assert 0 <= offset < offset + len(data) <= SIZE
        self.content[offset : offset + len(data)] = data


class Chip:
    def __init__(self) -> None:
        self.kept = Kept()
        self.around = bytearray(b"\x5a" * (SIZE + 2 * BLOCK))
        self.array = memoryview(self.around)[BLOCK : BLOCK + SIZE]
        self.array[:] = self.kept.content
        self.shown: list[bool] = []
        self.flash = Flash(self.array, self.kept, self.shown.append)

    def write(self, offset: int, *values: int) -> None:
        for value in values:
            self.flash.write(offset, 1, value)

    def read(self, offset: int, size: int = 1) -> int:
        return self.flash.read(offset, size)


@pytest.fixture
def chip() -> Chip:
    return Chip()


def test_the_array_is_shown_until_a_command_comes_and_again_after_read_array(chip: Chip) -> None:
    chip.write(0, f.READ_STATUS)
    assert chip.shown == [True, False]
    chip.write(0, f.READ_ARRAY)
    assert chip.shown == [True, False, True]
    assert chip.read(0x10, 4) == 0xFFFF_FFFF


def test_firmware_tells_it_from_ram_and_rom_as_it_does_in_qemu(chip: Chip) -> None:
    chip.write(0, f.CLEAR_STATUS)
    assert chip.read(0) == 0xFF  # no RAM: the command is not there
    chip.write(0, f.READ_STATUS)
    assert chip.read(0) == 0  # no ROM: this is not the array
    chip.write(0, f.READ_ARRAY)


@pytest.mark.parametrize("command", [f.PROGRAM, f.PROGRAM_TOO])
def test_a_byte_is_programmed_and_kept(chip: Chip, command: int) -> None:
    chip.write(5, command, 0xA5)
    assert chip.read(5) == f.READY
    chip.write(5, f.READ_ARRAY)
    assert chip.read(5) == chip.kept.content[5] == 0xA5


def test_programming_clears_bits_and_sets_none(chip: Chip) -> None:
    chip.write(5, f.PROGRAM, 0x0F, f.PROGRAM, 0xF3, f.READ_ARRAY)
    assert chip.read(5) == 0x03


def test_a_block_is_erased_and_its_neighbours_are_not(chip: Chip) -> None:
    for offset in (BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK):
        chip.write(offset, f.PROGRAM, 0)
    chip.write(BLOCK + 77, f.ERASE, f.CONFIRM)
    assert chip.read(0) & f.READY
    chip.write(0, f.READ_ARRAY)
    assert [chip.read(at) for at in (BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK)] == [0, 0xFF, 0xFF, 0]
    assert bytes(chip.array) == chip.kept.content


def test_an_erasure_that_is_not_confirmed_is_an_error_and_erases_nothing(chip: Chip) -> None:
    chip.write(0, f.PROGRAM, 0)
    chip.write(0, f.ERASE, f.READ_ARRAY)
    assert chip.read(0) == f.READY | f.ERASE_FAILED | f.PROGRAM_FAILED
    chip.write(0, f.READ_ARRAY)
    assert chip.read(0) == 0


def test_a_buffer_is_programmed_at_once(chip: Chip) -> None:
    chip.write(BUFFER, f.WRITE_BUFFER)
    assert chip.read(0) & f.READY
    chip.write(BUFFER, 3)
    for at in range(4):
        chip.write(BUFFER + at, 0x10 + at)
    assert chip.kept.content[BUFFER] == 0xFF
    chip.write(BUFFER, f.CONFIRM)
    assert chip.kept.content[BUFFER : BUFFER + 5] == b"\x10\x11\x12\x13\xff"


@pytest.mark.parametrize("count", [BUFFER, 0xFFFF])
def test_a_buffer_that_is_too_long_is_refused(chip: Chip, count: int) -> None:
    chip.flash.write(0, 1, f.WRITE_BUFFER)
    chip.flash.write(0, 2, count)
    assert chip.read(0) & f.PROGRAM_FAILED


def test_a_buffer_does_not_reach_into_the_next(chip: Chip) -> None:
    chip.write(BUFFER - 1, f.WRITE_BUFFER, 1, 0)
    chip.write(BUFFER, 0)
    assert chip.read(0) & f.PROGRAM_FAILED
    assert chip.kept.content == b"\xff" * SIZE


def test_the_query_says_how_large_it_and_its_blocks_are(chip: Chip) -> None:
    chip.write(0x55, f.READ_QUERY)
    assert bytes(chip.read(at) for at in (0x10, 0x11, 0x12)) == b"QRY"
    assert 1 << chip.read(0x27) == SIZE
    assert chip.read(0x2D, 2) + 1 == SIZE // BLOCK
    assert chip.read(0x2F, 2) * 256 == BLOCK
    assert 1 << chip.read(0x2A, 2) == BUFFER


def test_a_full_disk_of_the_host_is_a_chip_that_has_worn_out(chip: Chip) -> None:
    chip.kept.full = True
    chip.write(0, f.PROGRAM, 0)
    assert chip.read(0) & f.PROGRAM_FAILED
    chip.write(0, f.CLEAR_STATUS, f.ERASE, f.CONFIRM)
    assert chip.read(0) & f.ERASE_FAILED
    assert bytes(chip.array) == chip.kept.content


ACCESS = st.tuples(
    st.one_of(st.integers(0, 3 * BUFFER), st.integers(SIZE - 9, SIZE - 1), st.integers(0, SIZE - 1)),
    st.sampled_from([1, 2, 4, 8]),
    st.one_of(
        st.sampled_from([0xFF, 0x70, 0x50, 0x90, 0x98, 0x40, 0x10, 0x20, 0xE8, 0x60, 0xD0, 0, 1, 3]),
        st.integers(0, 2**64 - 1),
    ),
)


@given(st.lists(ACCESS, max_size=60))
def test_no_program_of_commands_raises_or_reaches_beyond_the_array(accesses: list[tuple[int, int, int]]) -> None:
    chip = Chip()
    for offset, size, value in accesses:
        chip.flash.write(offset, size, value & (1 << 8 * size) - 1)
        assert 0 <= chip.read(offset, size) < 1 << 8 * size
        if chip.shown[-1]:  # what the guest sees without the device is what the device would say
            assert chip.read(offset) == chip.array[offset]
    assert bytes(chip.array) == chip.kept.content
    assert chip.around[:BLOCK] == chip.around[-BLOCK:] == b"\x5a" * BLOCK


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 255)), max_size=40))
def test_bytes_are_the_and_of_all_that_was_programmed_since_the_erasure(bytes_: list[tuple[int, int]]) -> None:
    chip = Chip()
    model = bytearray(b"\xff" * SIZE)
    for offset, value in bytes_:
        chip.write(offset, f.PROGRAM, value)
        model[offset] &= value
    assert bytes(chip.array) == model
