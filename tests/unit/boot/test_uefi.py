"""UEFI firmware as files: what belongs together, and what is told of what does not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.boot.uefi import check_variables, parse_uefi
from bivisor.errors import ImageError

KIND = bytes.fromhex("8d2bf1ff96768b4ca9852747075b4f50")
CODE = b"\1" * 40 + b"_FVH" + bytes((1 << 20) - (128 << 10) - 44)


def variables(size: int = 128 << 10, told: int | None = None, kind: bytes = KIND) -> bytes:
    return (bytes(16) + kind + struct.pack("<Q4s", size if told is None else told, b"_FVH")).ljust(size, b"\xff")


def test_one_image_is_taken_apart_at_the_end_of_its_variables() -> None:
    parts = parse_uefi(variables() + CODE)
    assert parts is not None
    assert (parts.variables, parts.code) == (variables(), CODE)


def test_code_alone_has_no_variables() -> None:
    parts = parse_uefi(CODE)
    assert parts is not None
    assert (parts.variables, parts.code) == (b"", CODE)


def test_a_bios_is_no_uefi_firmware() -> None:
    assert parse_uefi(bytes(1 << 18)) is None


def test_variables_that_fit_are_taken() -> None:
    assert check_variables("vars.fd", variables(), CODE) == variables()


@pytest.mark.parametrize(
    "wrong", [b"", b"x" * 5000, variables(kind=bytes(16)), CODE], ids=["empty", "text", "other", "code"]
)
def test_a_file_of_something_else_is_named(wrong: bytes) -> None:
    with pytest.raises(ImageError, match=r"vars\.fd: this is no file of UEFI variables"):
        check_variables("vars.fd", wrong, CODE)


@pytest.mark.parametrize(
    "wrong", [variables(528 << 10), variables()[:-4096], variables(told=1 << 63)], ids=["other build", "cut", "lie"]
)
def test_variables_of_another_size_are_refused_with_both_sizes(wrong: bytes) -> None:
    with pytest.raises(ImageError, match=rf"variables of {len(wrong)} bytes do not go with firmware of {len(CODE)}"):
        check_variables("vars.fd", wrong, CODE)


@given(st.binary(max_size=100))
def test_no_image_raises_anything_but_what_users_are_told(data: bytes) -> None:
    parse_uefi(data)
    parse_uefi(variables()[:44] + data)
    with pytest.raises(ImageError):
        check_variables("vars.fd", data, CODE)
