"""The symbols that a Linux kernel carries for itself, and an ELF file of them for debuggers.

Distributions' kernels have no symbol table, but CONFIG_KALLSYMS keeps every name in their read-only data: names of
tokens (scripts/kallsyms.c, write_src; kernel/kallsyms.c reads them), of which 256 stand in a table. The digits and
letters stand there for themselves, and by them it is found. Everything else lies before it, and from Linux 6.4 on the
addresses lie behind it.

A kernel that was moved at its start (KASLR) has its symbols elsewhere by the same distance.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bivisor.abi import elf
from bivisor.boot import bzimage
from bivisor.boot.cache import Cache, uncached
from bivisor.boot.source import Source
from bivisor.errors import ImageError

_DIGITS = re.compile(rb"\x000\x001\x002\x003\x004\x005\x006\x007\x008\x009\0")
_TOKENS = 256
_A_MARKER_EACH = 256
_LONGEST_NAME = 512
_SHORTEST, _LONGEST = 256 * 2, 256 * 64
_ENOUGH = 16
_FARTHEST = 4 << 20
_KERNEL_HALF = 1 << 63
_TEXT_AT, _TEXT_SIZE = 0xFFFF_FFFF_8000_0000, 1 << 30


@dataclass(frozen=True, slots=True)
class Symbol:
    """`kind` is the letter of nm(1): t and T are code."""

    name: str
    address: int
    kind: str


def kernel_symbols(kernel: Path, cache: Cache = uncached) -> dict[str, Symbol]:
    """The symbols of a bzImage or vmlinux by name; of several with one name the first. ImageError if it has none."""
    source = Source.open(kernel, "kernel")
    try:
        head = source.read(0, 0x1000)
        if not bzimage.is_bzimage(head):
            return _first_of_each(symbols_in(source.read(0, source.size), str(kernel)))
        inner = bzimage.payload(source, bzimage.parse(source), cache)
        if inner is None:
            raise ImageError(f"{kernel}: the kernel inside cannot be unpacked here")
        try:
            return _first_of_each(symbols_in(inner.read(0, inner.size), str(kernel)))
        finally:
            inner.close()
    finally:
        source.close()


def _first_of_each(found: Iterator[Symbol]) -> dict[str, Symbol]:
    named: dict[str, Symbol] = {}
    for symbol in found:
        named.setdefault(symbol.name, symbol)
    return named


def symbols_in(image: bytes, name: str) -> Iterator[Symbol]:
    """The symbols of an unpacked kernel, by address. ImageError where there are none; `name` is for its message."""
    for match in _DIGITS.finditer(image):
        try:
            table = _Table(image, match.start() + 1)
            names = table.names()
            addresses = table.addresses(len(names))
        except (ValueError, IndexError, StopIteration, struct.error):
            continue
        for text, address in zip(names, addresses, strict=True):
            yield Symbol(text[1:].decode("utf-8", "replace"), address, chr(text[0]))
        return
    raise ImageError(f"{name}: no symbols: it was built without CONFIG_KALLSYMS, or in a way that is not known here")


class _Table:
    """The arrays around a token table in which the token of the digit 0 stands at `zero`. ValueError if it is none."""

    def __init__(self, image: bytes, zero: int) -> None:
        self._image = image
        start = zero
        for _ in range(ord("0")):
            start = image.rindex(b"\0", max(0, start - _LONGEST_NAME), start - 1) + 1
        # What is before the first token need not end with a zero; the table is aligned.
        first_end = image.index(b"\0", start)
        self._start = next(at for at in range(-(-start // 8) * 8, first_end + 1, 8) if self._is_table(at))
        self._find_names()

    def _is_table(self, start: int) -> bool:
        """Whether tokens that begin at `start` are followed by the list of where each of them begins."""
        tokens, offsets, at = [], [], start
        for _ in range(_TOKENS):
            end = self._image.index(b"\0", at, at + _LONGEST_NAME)
            tokens.append(self._image[at:end])
            offsets.append(at - start)
            at = end + 1
        self._tokens, self._index = tokens, -(-at // 8) * 8
        return list(struct.unpack_from(f"<{_TOKENS}H", self._image, self._index)) == offsets

    def _find_names(self) -> None:
        """`markers` say where each 256th name begins: they rise from 0. Some kernels have a list of three bytes a
        symbol between them and the tokens, so they are looked for by what they look like."""
        start = max(0, self._start - _FARTHEST) & ~7
        words = memoryview(self._image)[start : self._start & ~7].cast("I")
        for at in range(len(words) - _ENOUGH & ~1, 0, -2):
            if words[at] == 0 and _rises(words, at, _ENOUGH):
                break
        else:
            raise ValueError
        end = at + _ENOUGH
        while end < len(words) and _rises(words, end - 1, 2):
            end += 1
        self._markers = words[at:end].tolist()
        self._find_count(start + 4 * at)

    def _find_count(self, behind: int) -> None:
        """The number of symbols, on which the names follow; these end within 8 bytes of `behind`."""
        for start in range(behind - 8, max(8, behind - self._markers[-1] - _A_MARKER_EACH * _LONGEST_NAME), -8):
            count, zero = struct.unpack_from("<2I", self._image, start - 8)
            parts = -(-count // _A_MARKER_EACH)
            if zero or not 0 < parts <= len(self._markers):
                continue
            rest = behind - start - self._markers[parts - 1]
            if 0 < rest < _A_MARKER_EACH * _LONGEST_NAME and self._fits(start, count):
                self._names, self._count = start, count
                return
        raise ValueError

    def _fits(self, start: int, count: int) -> bool:
        at = start
        for number in range(min(count, 2 * _A_MARKER_EACH + 1)):
            if number % _A_MARKER_EACH == 0 and at - start != self._markers[number // _A_MARKER_EACH]:
                return False
            length, at = self._length(at)
            at += length
        return True

    def _length(self, at: int) -> tuple[int, int]:
        length = self._image[at]
        if length & 0x80:  # Linux 6.1 and newer: two bytes
            return length & 0x7F | self._image[at + 1] << 7, at + 2
        return length, at + 1

    def names(self) -> list[bytes]:
        """Each name with the letter of its kind before it."""
        image, tokens, at, found = self._image, self._tokens, self._names, []
        for _ in range(self._count):
            length, at = self._length(at)
            found.append(b"".join([tokens[byte] for byte in image[at : at + length]]))
            at += length
        if not all(found):
            raise ValueError
        return found

    def addresses(self, count: int) -> list[int]:
        """The address of each, from 32-bit offsets and the address that they count from."""
        size = -(-4 * count // 8) * 8
        behind = self._index + 2 * _TOKENS
        for offsets, base_at in ((self._names - 16 - size, self._names - 16), (behind, behind + size)):
            (base,) = struct.unpack_from("<Q", self._image, base_at)
            if base >= _KERNEL_HALF and offsets > 0:
                break
        else:
            raise ValueError
        values = struct.unpack_from(f"<{count}i", self._image, offsets)
        if sum(value < 0 for value in values) * 2 > count:
            # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: what is not negative is an address by itself.
            return [base - 1 - value if value < 0 else value for value in values]
        return [base + (value & 0xFFFF_FFFF) for value in values]


def _rises(words: memoryview, at: int, count: int) -> bool:
    """Whether `count` words from `at` on are as far apart as 256 names are long."""
    return all(_SHORTEST < words[i + 1] - words[i] < _LONGEST for i in range(at, at + count - 1))


def symbol_file(symbols: Mapping[str, Symbol]) -> bytes:
    """An ELF file with a symbol table and nothing else, for gdb's `symbol-file` (System V ABI, "Symbol Table")."""
    strings, entries = bytearray(b"\0"), [bytes(elf.SYM64.size)]
    for symbol in symbols.values():
        if not _TEXT_AT <= symbol.address < _TEXT_AT + _TEXT_SIZE:
            continue
        kind = elf.STT_FUNC if symbol.kind in "tTwW" else elf.STT_OBJECT
        info = elf.STB_GLOBAL << 4 | kind
        entries.append(elf.SYM64.pack(len(strings), info, 0, 1, symbol.address, 0))
        strings += symbol.name.encode() + b"\0"
    names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
    table = b"".join(entries)
    at = elf.EHDR64.size
    places = [at, at + len(table), at + len(table) + len(strings)]
    sections_at = -(-(places[2] + len(names)) // 8) * 8
    sections = [
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (1, elf.SHT_NOBITS, elf.SHF_ALLOC | elf.SHF_EXECINSTR, _TEXT_AT, at, _TEXT_SIZE, 0, 0, 4096, 0),
        (7, elf.SHT_SYMTAB, 0, 0, places[0], len(table), 3, 1, 8, elf.SYM64.size),
        (15, elf.SHT_STRTAB, 0, 0, places[1], len(strings), 0, 0, 1, 0),
        (23, elf.SHT_STRTAB, 0, 0, places[2], len(names), 0, 0, 1, 0),
    ]
    header = elf.EHDR64.pack(
        b"\x7fELF\x02\x01\x01", elf.ET_EXEC, elf.EM_X86_64, 1, 0,
        0, sections_at, 0, elf.EHDR64.size, 0, 0, elf.SHDR64.size, len(sections), len(sections) - 1,
    )  # fmt: skip
    body = (header + table + bytes(strings) + names).ljust(sections_at, b"\0")
    return body + b"".join(elf.SHDR64.pack(*section) for section in sections)
