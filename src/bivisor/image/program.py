"""A static ELF64 program from a listing of machine code and the data that it points at.

A listing has one instruction a line: its bytes in hexadecimal, two spaces, and the instruction in words. Among the
bytes may stand `@label`, the distance to a label in one byte, `@@label`, the same in four, and `=name`, the four-byte
address of a piece of data. A line that is one word with a colon is a label.

Specifications: System V ABI, "Executable and Linking Format"; its AMD64 supplement, A.2.1 (a system call has its number
in RAX and its arguments in RDI, RSI, RDX, R10, R8).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_BASE = 0x400000
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_CODE = _BASE + _ELF_HEADER.size + _PROGRAM_HEADER.size
_ET_EXEC, _EM_X86_64, _EV_CURRENT = 2, 62, 1
_PT_LOAD, _PF_X, _PF_R = 1, 1, 4
_CALL = struct.Struct("<q5Q")

END_OF_CALLS = -1
"""The number of the record that ends a list of calls."""

Argument = int | bytes | Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: its number and up to five arguments. Bytes become the address of a zero-terminated string, a
    sequence of bytes that of a null-terminated array of such strings (as execve takes them)."""

    number: int
    arguments: tuple[Argument, ...] = ()


class Program:
    """Code first, then data in the order in which it is placed. Addresses are final from the start."""

    def __init__(self, listing: str) -> None:
        self._tokens: list[str] = []
        self._labels: dict[str, int] = {}
        size = 0
        for line in filter(None, map(str.strip, listing.splitlines())):
            if line.endswith(":"):
                self._labels[line[:-1]] = size
                continue
            tokens = line.partition("  ")[0].split()
            self._tokens += tokens
            size += sum(map(_size, tokens))
        self._end = _CODE + size
        self._data = bytearray()
        self._placed: dict[bytes, int] = {}

    def place(self, data: bytes) -> int:
        """The address of `data` (8-byte aligned; equal data has one place)."""
        if data not in self._placed:
            self._data += bytes(-(self._end + len(self._data)) % 8)
            self._placed[data] = self._end + len(self._data)
            self._data += data
        return self._placed[data]

    def place_calls(self, calls: Iterable[Call]) -> int:
        """The address of 48-byte records, one a call (number and arguments, 8 bytes each), and of the end record."""
        records = [_CALL.pack(call.number, *self._arguments(call)) for call in calls]
        return self.place(b"".join(records) + struct.pack("<q", END_OF_CALLS))

    def elf(self, addresses: Mapping[str, int]) -> bytes:
        """The executable; `addresses` are those of the names that the listing has behind `=`."""
        code = bytearray()
        for token in self._tokens:
            position = len(code) + _size(token)
            match token[0], token.lstrip("@="):
                case "=", name:
                    code += struct.pack("<I", addresses[name])
                case "@", label:
                    code += struct.pack("<i" if token[1] == "@" else "<b", self._labels[label] - position)
                case _:
                    code += bytes.fromhex(token)
        size = self._end - _BASE + len(self._data)
        header = _ELF_HEADER.pack(
            b"\x7fELF\x02\x01\x01", _ET_EXEC, _EM_X86_64, _EV_CURRENT, _CODE,
            _ELF_HEADER.size, 0, 0, _ELF_HEADER.size, _PROGRAM_HEADER.size, 1, 0, 0, 0,
        )  # fmt: skip
        segment = _PROGRAM_HEADER.pack(_PT_LOAD, _PF_R | _PF_X, 0, _BASE, _BASE, size, size, 0x1000)
        return header + segment + bytes(code) + bytes(self._data)

    def _arguments(self, call: Call) -> list[int]:
        values = [self._value(argument) for argument in call.arguments]
        return values + [0] * (5 - len(values))

    def _value(self, argument: Argument) -> int:
        match argument:
            case int():
                return argument
            case bytes():
                return self.place(argument + b"\0")
            case _:
                pointers = [self.place(item + b"\0") for item in argument]
                return self.place(struct.pack(f"<{len(pointers) + 1}Q", *pointers, 0))


def _size(token: str) -> int:
    return 4 if token.startswith(("=", "@@")) else 1
