"""The symbols that a kernel carries for itself, in the layouts that kernels have had."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given
from hypothesis import strategies as st

from bivisor.boot.kallsyms import Symbol, kernel_symbols, symbol_file, symbols_in
from bivisor.errors import ImageError

BASE = 0xFFFF_FFFF_8100_0000
COUNT = 5000
NAMES = [f"T{'do_' * (number % 7)}fn_{number}" for number in range(COUNT)]
EXPECTED = [Symbol(name[1:], BASE + 32 * number, "T") for number, name in enumerate(NAMES)]


def pad(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 8) * 8, b"\0")


def kernel(*, behind: bool, sequence: bool = False, percpu: bool = False) -> bytes:
    """A kernel's read-only data, laid out as before Linux 6.4 or, with the addresses `behind` the tokens, as later."""
    tokens = [bytes([number]) if chr(number).isalnum() or number == ord("_") else b"zz" for number in range(256)]
    tokens[1] = b"do_"
    names, markers = bytearray(), []
    for number, name in enumerate(NAMES):
        if number % 256 == 0:
            markers.append(len(names))
        packed = name.encode().replace(b"do_", b"\1")
        names += bytes([len(packed)]) + packed
    index, at = [], 0
    for token in tokens:
        index.append(at)
        at += len(token) + 1
    offsets = [-1 - 32 * number if percpu else 32 * number for number in range(COUNT)]
    addresses = pad(struct.pack(f"<{COUNT}i", *offsets)) + struct.pack("<Q", BASE)
    head = struct.pack("<Q", COUNT) + pad(bytes(names)) + pad(struct.pack(f"<{len(markers)}I", *markers))
    if sequence:
        head += pad(b"".join(number.to_bytes(3, "big") for number in range(COUNT)))
    tail = pad(b"".join(token + b"\0" for token in tokens)) + pad(struct.pack("<256H", *index))
    before = bytes(range(256)) * 64
    return before + (head + tail + addresses if behind else addresses + head + tail) + before


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("percpu", [False, True])
def test_every_symbol_is_found_at_its_address(behind: bool, sequence: bool, percpu: bool) -> None:
    image = kernel(behind=behind, sequence=sequence, percpu=percpu)
    assert list(symbols_in(image, "vmlinux")) == EXPECTED


def test_the_elf_file_has_them(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(kernel(behind=False))
    symbols = kernel_symbols(tmp_path / "vmlinux")
    table = ELFFile(io.BytesIO(symbol_file(symbols))).get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    assert {(each.name, each["st_value"]) for each in table.iter_symbols() if each.name} == {
        (symbol.name, symbol.address) for symbol in EXPECTED
    }


@given(st.integers(0, 200), st.binary(min_size=1, max_size=300))
def test_a_damaged_table_is_an_error_and_no_traceback(place: int, rubbish: bytes) -> None:
    image = bytearray(kernel(behind=False))
    at = len(image) * place // 200
    image[at : at + len(rubbish)] = rubbish
    try:
        assert len(list(symbols_in(bytes(image), "vmlinux"))) <= COUNT
    except ImageError as error:
        assert "no symbols" in str(error)


def test_what_has_no_symbols_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"rubbish" * 1000)
    with pytest.raises(ImageError, match="CONFIG_KALLSYMS"):
        kernel_symbols(tmp_path / "file")
