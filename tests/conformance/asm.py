"""Tiny guests as annotated machine code: hex bytes with labels, one instruction a line, its meaning after a semicolon.

    again:  e6 80       ; out 0x80, al
            eb @again   ; jmp again

`@name` is an 8-bit and `@@name` a 32-bit distance to a label, `=name` its address in 4 bytes, `=2:name` and `=8:name`
in 2 and 8, `=4:0x1234` a number. Bytes may stand together (`0fb6c0`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^(\w+):\s*")
_RELATIVE = {"@": 1, "@@": 4}


@dataclass(frozen=True, slots=True)
class Code:
    """Assembled bytes and where their labels are."""

    origin: int
    data: bytes
    labels: dict[str, int]

    def __getitem__(self, label: str) -> int:
        return self.labels[label]


@dataclass(frozen=True, slots=True)
class _Reference:
    label: str
    length: int
    relative: bool


def assemble(text: str, origin: int = 0x1000) -> Code:
    """The bytes of `text`, to be loaded at `origin`. KeyError for a label that is not there."""
    labels: dict[str, int] = {}
    parts: list[bytes | _Reference] = []
    at = origin
    for line in text.splitlines():
        line = line.split(";", 1)[0].strip()
        while found := _LABEL.match(line):
            labels[found[1]] = at
            line = line[found.end() :]
        for token in line.split():
            part = _part(token)
            parts.append(part)
            at += part.length if isinstance(part, _Reference) else len(part)
    return Code(origin, _resolve(parts, labels, origin), labels)


def _part(token: str) -> bytes | _Reference:
    if token.startswith("@"):
        mark = "@@" if token.startswith("@@") else "@"
        return _Reference(token[len(mark) :], _RELATIVE[mark], relative=True)
    if token.startswith("="):
        length, _, name = token[1:].rpartition(":")
        size = int(length or 4)
        if name[0].isdigit():
            return int(name, 0).to_bytes(size, "little")
        return _Reference(name, size, relative=False)
    return bytes.fromhex(token)


def _resolve(parts: list[bytes | _Reference], labels: dict[str, int], origin: int) -> bytes:
    data = bytearray()
    for part in parts:
        match part:
            case bytes():
                data += part
            case _Reference(label, length, True):
                distance = labels[label] - (origin + len(data) + length)
                data += distance.to_bytes(length, "little", signed=True)
            case _Reference(label, length, False):
                data += labels[label].to_bytes(length, "little")
    return bytes(data)
