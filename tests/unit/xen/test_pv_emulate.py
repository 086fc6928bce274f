"""Stores to page tables, decoded and carried out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.xen.pv.emulate import CF, SF, ZF, carry_out, decode, merged


@pytest.mark.parametrize(
    ("code", "operation", "size", "register", "immediate", "length"),
    [
        ("48 87 10", "xchg", 8, 2, 0, 3),
        ("48 87 75 00", "xchg", 8, 6, 0, 4),
        ("3e 41 80 27 fd", "and", 1, None, -3, 5),
        ("48 89 07", "mov", 8, 0, 0, 3),
        ("4c 89 04 c8", "mov", 8, 8, 0, 4),
        ("48 c7 05 11 22 33 44 00 00 00 00", "mov", 8, None, 0, 11),
        ("f0 48 0f b1 0a", "cmpxchg", 8, 1, 0, 5),
        ("f0 48 0f ba 30 06", "btr", 8, None, 6, 6),
        ("f0 0f ba 2f 05", "bts", 4, None, 5, 5),
        ("66 89 50 02", "mov", 2, 2, 0, 4),
        ("88 27", "mov", 1, 0, 0, 2),
    ],
)
def test_the_stores_of_kernels_are_known(
    code: str, operation: str, size: int, register: int | None, immediate: int, length: int
) -> None:
    store = decode(bytes.fromhex(code))
    assert store is not None
    assert (store.operation, store.size, store.register) == (operation, size, register)
    assert (store.immediate, store.length) == (immediate, length)


@pytest.mark.parametrize("code", ["48 89 c0", "0f 11 07", "90", "48", "", "f0 f0 f0", "48 c7 07 00"])
def test_what_is_no_store_to_memory_or_is_cut_off_is_not(code: str) -> None:
    assert decode(bytes.fromhex(code)) is None


@given(st.binary(max_size=16))
def test_no_code_raises(code: bytes) -> None:
    store = decode(code)
    assert store is None or (store.length <= 20 and store.size in (1, 2, 4, 8))


def run(code: str, old: int, **registers: int) -> tuple[int, int | None, int | None]:
    store = decode(bytes.fromhex(code))
    assert store is not None
    values = [registers.get(name, 0) for name in ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")] + [0] * 8
    return carry_out(store, old, values, lambda: 0)


def test_they_do_what_the_processor_does() -> None:
    assert run("48 87 10", 7, rdx=9) == (9, 7, None)
    new, register, flags = run("41 80 27 fd", 0x67)
    assert (new, register, (flags or 0) & (ZF | SF)) == (0x65, None, 0)
    assert run("f0 48 0f b1 0a", 5, rax=5, rcx=8) == (8, None, ZF)
    assert run("f0 48 0f b1 0a", 6, rax=5, rcx=8) == (6, 6, 0)
    assert run("f0 48 0f ba 30 06", 0x67) == (0x27, None, CF)


def test_a_high_byte_register_is_one() -> None:
    store = decode(bytes.fromhex("86 27"))  # xchg [rdi], ah
    assert store is not None
    assert merged(store, 0x1234, 0x56) == 0x5634
    assert carry_out(store, 0x56, [0x1234] + [0] * 15, lambda: 0) == (0x12, 0x56, None)
