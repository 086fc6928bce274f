"""Atomic operations on shared memory: what they do, and that their bytes are the assembly language that they claim."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from bivisor.memory.atomics import CODE, SOURCE, address_of, atomics

OPERATIONS = atomics()


def words(*values: int) -> tuple[memoryview, int]:
    page = memoryview(bytearray(8 * len(values))).cast("Q")
    for index, value in enumerate(values):
        page[index] = value
    return page, address_of(page)


def test_or_and_and_tell_what_was_there() -> None:
    page, address = words(0b0101)
    assert OPERATIONS.or_u64(address, 1 << 63 | 0b0010) == 0b0101
    assert OPERATIONS.and_u64(address, 1 << 63 | 0b0001) == 1 << 63 | 0b0111
    assert page[0] == 1 << 63 | 0b0001


@pytest.mark.parametrize("bit", [0, 31, 63, 64, 127])
def test_a_bit_is_set_and_cleared_in_its_word_only(bit: int) -> None:
    page, address = words(0, 0)
    assert [OPERATIONS.test_and_set_bit(address, bit) for _ in range(2)] == [0, 1]
    assert page[0] | page[1] << 64 == 1 << bit
    assert [OPERATIONS.test_and_clear_bit(address, bit) for _ in range(2)] == [1, 0]
    assert page[0] | page[1] << 64 == 0


@pytest.mark.parametrize(("name", "bits"), [("cmpxchg_u16", 16), ("cmpxchg_u32", 32), ("cmpxchg_u64", 64)])
def test_compare_and_exchange_stores_only_where_the_expected_is(name: str, bits: int) -> None:
    exchange = getattr(OPERATIONS, name)
    page, address = words((1 << 64) - 1)
    top = (1 << bits) - 1
    assert exchange(address, 5, 7) == top
    assert page[0] == (1 << 64) - 1
    assert exchange(address, top, 7) == top
    assert page[0] == (1 << 64) - 1 - top | 7


def test_no_change_of_several_threads_is_lost() -> None:
    page, address = words(0)

    def count(bit: int) -> None:
        for _ in range(20_000):
            assert OPERATIONS.test_and_set_bit(address, bit) == 0
            assert OPERATIONS.test_and_clear_bit(address, bit) == 1

    threads = [threading.Thread(target=count, args=(bit,)) for bit in (3, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert page[0] == 0


@pytest.mark.skipif(shutil.which("as") is None, reason="no assembler")
@pytest.mark.parametrize("name", SOURCE)
def test_the_machine_code_is_its_source(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source.S"
    source.write_text(f".intel_syntax noprefix\n{SOURCE[name]}\n", encoding="ascii")
    subprocess.run(["as", source, "-o", tmp_path / "object"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "object", tmp_path / "code"], check=True)
    assert (tmp_path / "code").read_bytes() == CODE[name]


@pytest.mark.parametrize(
    ("word", "ready", "pending", "wanted", "head"),
    [
        (0, 0, 0, 2, 77),
        (1 << 31, 0, 0, 3, 77),
        (1 << 30, 0, 0, 0, 0),
        (1 << 29, 0, 0, 0, 0),
        (0, 1 << 5, 0, 0, 77),
        (0, 0, 1, 0, 77),
    ],
)
def test_an_event_alone_in_its_queue_begins_it_unless_it_is_masked_or_linked(
    word: int, ready: int, pending: int, wanted: int, head: int
) -> None:
    page, address = words(word, ready, *[0] * 8, pending)
    assert OPERATIONS.raise_alone(address, address + 8, 77, 5, address + 80) == wanted
    heads = page.cast("B").cast("I")[4:20]
    assert heads[5] == head and sum(heads) == head
    assert page[0] & 1 << 31
    assert bool(page[0] & 1 << 29) is not bool(word & 1 << 30)
    assert bool(page[1] & 1 << 5) is bool(head or ready)
    assert page[10] == (pending or wanted >> 1)
