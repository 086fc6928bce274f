"""Instructions that a PV guest's kernel may not execute and Xen carries out for it: ports, MSRs, control registers.

A small decoder of x86-64: operand-size and repeat prefixes, REX, one or two bytes of opcode (Intel SDM volume 2,
chapter 2 and appendix A).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_PREFIXES: Final = (0x66, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65, 0x67)
_PORTS: Final = {
    0xE4: ("in", 1, True),
    0xE5: ("in", 4, True),
    0xE6: ("out", 1, True),
    0xE7: ("out", 4, True),
    0xEC: ("in", 1, False),
    0xED: ("in", 4, False),
    0xEE: ("out", 1, False),
    0xEF: ("out", 4, False),
}
_TWO: Final = {0x30: "wrmsr", 0x32: "rdmsr", 0x06: "clts", 0x08: "nothing", 0x09: "nothing", 0xA2: "cpuid"}
_MOVES: Final = {0x20: "read_cr", 0x22: "write_cr", 0x21: "read_dr", 0x23: "write_dr"}


@dataclass(frozen=True, slots=True)
class Privileged:
    """An instruction of `length` bytes: `operation` on port or register `number` with general register `register`."""

    operation: str
    length: int
    size: int = 8
    number: int | None = None
    register: int = 0


def decode(code: bytes) -> Privileged | None:
    """The instruction at the beginning of `code`; None where it is none of these."""
    try:
        return _decode(code)
    except IndexError:
        return None


def _decode(code: bytes) -> Privileged | None:
    at, wide, rex = 0, False, 0
    while code[at] in _PREFIXES:
        wide = wide or code[at] == 0x66
        at += 1
    if code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    opcode = code[at]
    at += 1
    if opcode in _PORTS:
        operation, size, immediate = _PORTS[opcode]
        size = 2 if size == 4 and wide else size
        return Privileged(operation, at + immediate, size, code[at] if immediate else None)
    if opcode in (0xFA, 0xFB):  # CLI and STI, which Xen takes and does nothing for
        return Privileged("nothing", at)
    if opcode != 0x0F:
        return None
    opcode = code[at]
    at += 1
    if opcode == 0x01 and code[at] == 0xD1:
        return Privileged("xsetbv", at + 1)
    if opcode in _TWO:
        return Privileged(_TWO[opcode], at)
    if opcode not in _MOVES:
        return None
    modrm = code[at]
    return Privileged(_MOVES[opcode], at + 1, 8, modrm >> 3 & 7 | (rex & 4) << 1, modrm & 7 | (rex & 1) << 3)
