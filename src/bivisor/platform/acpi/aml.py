"""An encoder of AML, the byte code of the DSDT: each function gives the bytes of one term.

Specification: ACPI 6.5, chapter 20 "ACPI Machine Language (AML) Specification"; the names are those of its grammar.
A path is written as in ASL: `\\_SB.PCI0`, and names shorter than four characters are padded.
"""

from __future__ import annotations

ZERO, ONE, ARG0 = b"\x00", b"\x01", b"\x68"
LOCAL0 = b"\x60"
_NAME, _BYTE, _WORD, _DWORD, _STRING, _QWORD = 0x08, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E
_SCOPE, _BUFFER, _PACKAGE, _METHOD = 0x10, 0x11, 0x12, 0x14
_STORE, _IF, _RETURN = 0x70, 0xA0, 0xA4
_AND, _OR, _SHIFT_LEFT, _SUBTRACT, _FIND_SET_RIGHT = 0x7B, 0x7D, 0x79, 0x74, 0x82
_CREATE_WORD_FIELD = 0x8B
_REGION, _FIELD = b"\x5b\x80", b"\x5b\x81"
SYSTEM_IO, PCI_CONFIG = 1, 2
_BYTE_ACCESS, _DWORD_ACCESS = 1, 3
_DEVICE = b"\x5b\x82"
_DUAL_NAME, _MULTI_NAME = 0x2E, 0x2F
_INTEGERS = ((1, _BYTE), (2, _WORD), (4, _DWORD), (8, _QWORD))


def name_string(path: str) -> bytes:
    """A NameString: a root or parent prefix and names of up to four characters between dots."""
    bare = path.lstrip("\\^")
    prefix = path[: len(path) - len(bare)].encode("ascii")
    names = [name.ljust(4, "_").encode("ascii") for name in bare.split(".")] if bare else []
    if any(len(name) != 4 for name in names):
        raise ValueError(f"not an ACPI path: {path!r}")
    match len(names):
        case 0:
            return prefix + b"\x00"
        case 1:
            return prefix + names[0]
        case 2:
            return prefix + bytes((_DUAL_NAME,)) + b"".join(names)
        case count:
            return prefix + bytes((_MULTI_NAME, count)) + b"".join(names)


def integer(value: int) -> bytes:
    """A constant in the shortest form that holds it."""
    if value in (0, 1):
        return (ZERO, ONE)[value]
    for size, opcode in _INTEGERS:
        if value < 1 << 8 * size:
            return bytes((opcode,)) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit into 64 bits")


def string(text: str) -> bytes:
    """An ASCII string."""
    return bytes((_STRING,)) + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A seven-character EISA id such as `PNP0A03`, compressed into a number."""
    letters = [ord(letter) - 0x40 & 0x1F for letter in text[:3]]
    number = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return bytes((_DWORD,)) + number.to_bytes(4, "big")


def package(*elements: bytes) -> bytes:
    """A package of at most 255 elements."""
    return bytes((_PACKAGE,)) + _with_length(bytes((len(elements),)) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    """A buffer with initial contents."""
    return bytes((_BUFFER,)) + _with_length(integer(len(data)) + data)


def name(path: str, value: bytes) -> bytes:
    """Name (path, value)"""
    return bytes((_NAME,)) + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) { terms }"""
    return bytes((_SCOPE,)) + _with_length(name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) { terms }"""
    return _DEVICE + _with_length(name_string(path) + b"".join(terms))


def method(path: str, arguments: int, *terms: bytes) -> bytes:
    """Method (path, arguments, NotSerialized) { terms }"""
    return bytes((_METHOD,)) + _with_length(name_string(path) + bytes((arguments,)) + b"".join(terms))


def store(source: bytes, target: bytes) -> bytes:
    """Store (source, target)"""
    return bytes((_STORE,)) + source + target


def and_(left: bytes, right: bytes) -> bytes:
    """And (left, right)"""
    return bytes((_AND,)) + left + right + ZERO


def or_(left: bytes, right: bytes, target: bytes = ZERO) -> bytes:
    """Or (left, right, target)"""
    return bytes((_OR,)) + left + right + target


def shift_left(value: bytes, count: bytes) -> bytes:
    """ShiftLeft (value, count)"""
    return bytes((_SHIFT_LEFT,)) + value + count + ZERO


def subtract(left: bytes, right: bytes) -> bytes:
    """Subtract (left, right)"""
    return bytes((_SUBTRACT,)) + left + right + ZERO


def find_set_right_bit(value: bytes) -> bytes:
    """FindSetRightBit (value): its number counts from 1."""
    return bytes((_FIND_SET_RIGHT,)) + value + ZERO


def word_field(source: bytes, offset: int, path: str) -> bytes:
    """CreateWordField (source, offset, path)"""
    return bytes((_CREATE_WORD_FIELD,)) + source + integer(offset) + name_string(path)


def region(path: str, space: int, offset: int, length: int) -> bytes:
    """OperationRegion (path, space, offset, length)"""
    return _REGION + name_string(path) + bytes((space,)) + integer(offset) + integer(length)


def field(path: str, *units: tuple[str, int]) -> bytes:
    """Field (path, ByteAcc or DWordAcc, NoLock, Preserve) { units }, each a name and its width: 8 or 32 bits."""
    access = _BYTE_ACCESS if all(bits == 8 for _, bits in units) else _DWORD_ACCESS
    body = b"".join(name_string(unit) + _length_of(bits) for unit, bits in units)
    return _FIELD + _with_length(name_string(path) + bytes((access,)) + body)


def if_(predicate: bytes, *terms: bytes) -> bytes:
    """If (predicate) { terms }"""
    return bytes((_IF,)) + _with_length(predicate + b"".join(terms))


def return_(value: bytes) -> bytes:
    """Return (value)"""
    return bytes((_RETURN,)) + value


def _length_of(bits: int) -> bytes:
    """PkgLength of a field element, which does not count its own bytes."""
    if bits < 1 << 6:
        return bytes((bits,))
    raise ValueError(f"a field of {bits} bits is too wide")


def _with_length(body: bytes) -> bytes:
    """PkgLength and `body`. The length counts its own one to four bytes."""
    if len(body) + 1 < 1 << 6:
        return bytes((len(body) + 1,)) + body
    for following in (1, 2, 3):
        length = len(body) + 1 + following
        if length < 1 << 4 + 8 * following:
            lead = following << 6 | length & 15
            return bytes((lead,)) + (length >> 4).to_bytes(following, "little") + body
    raise ValueError(f"an AML package of {len(body)} bytes is too long")
