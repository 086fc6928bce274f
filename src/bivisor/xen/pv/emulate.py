"""Stores to page tables that the guest tries itself, as Xen carries them out: the few instructions that kernels use.

A small decoder of x86-64: lock and operand-size prefixes, REX, one opcode, ModRM, displacement (Intel SDM volume
2, chapter 2). The address is not computed: the fault has told it.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from typing import Final

CF, PF, AF, ZF, SF, OF = 1, 4, 16, 64, 128, 2048
_RAX = 0


@dataclass(frozen=True, slots=True)
class Store:
    """An instruction that stores to memory: `size` bytes, by `operation` with a register or an immediate operand."""

    operation: str
    size: int
    register: int | None
    immediate: int
    length: int
    high: bool = False
    """The operand is AH, CH, DH or BH."""


_PLAIN: Final = {0x88: "mov", 0x89: "mov", 0x86: "xchg", 0x87: "xchg", 0x20: "and", 0x21: "and", 0x08: "or", 0x09: "or"}
_GROUP: Final = {0x80: 1, 0x81: 4, 0x83: 1}
_GROUP_OPERATIONS: Final = {1: "or", 4: "and"}
_TWO: Final = {0xB0: "cmpxchg", 0xB1: "cmpxchg", 0xB3: "btr", 0xAB: "bts"}
_BITS: Final = {5: "bts", 6: "btr"}


def decode(code: bytes) -> Store | None:
    """The instruction at the beginning of `code` (15 bytes if there are so many); None where it is another."""
    try:
        return _decode(code)
    except IndexError:
        return None


def _decode(code: bytes) -> Store | None:
    at, rex, wide = 0, 0, 4
    while code[at] in (0xF0, 0x66, 0x2E, 0x36, 0x3E, 0x26):
        wide = 2 if code[at] == 0x66 else wide
        at += 1
    if code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
        wide = 8 if rex & 8 else wide
    opcode = code[at]
    at += 1
    immediate_size = 0
    if opcode == 0x0F:
        opcode = code[at]
        at += 1
        operation = _TWO.get(opcode, "")
        if opcode == 0xBA:
            operation = _BITS.get(code[at] >> 3 & 7, "")
            immediate_size = 1
        size = 1 if opcode == 0xB0 else wide
    else:
        operation = _PLAIN.get(opcode, "")
        size = wide if opcode & 1 else 1
        if opcode in (0xC6, 0xC7) and code[at] >> 3 & 7 == 0:
            operation, immediate_size = "mov", min(size, 4)
        elif opcode in _GROUP:
            operation = _GROUP_OPERATIONS.get(code[at] >> 3 & 7, "")
            size = 1 if opcode == 0x80 else wide
            immediate_size = min(_GROUP[opcode], size)
    if not operation or code[at] >> 6 == 3:
        return None
    register = code[at] >> 3 & 7 | (rex & 4) << 1
    at = _after_address(code, at)
    if not immediate_size:
        high = size == 1 and not rex and register >= 4
        return Store(operation, size, register - 4 if high else register, 0, at, high)
    data = code[at : at + immediate_size]
    if len(data) < immediate_size:
        return None
    return Store(operation, size, None, int.from_bytes(data, "little", signed=True), at + immediate_size)


def _after_address(code: bytes, at: int) -> int:
    """Behind ModRM, SIB and displacement."""
    mod, rm = code[at] >> 6, code[at] & 7
    at += 1
    if rm == 4:
        if mod == 0 and code[at] & 7 == 5:
            at += 4
        at += 1
    elif mod == 0 and rm == 5:
        at += 4
    return at + (0, 1, 4, 0)[mod]


def carry_out(
    store: Store, old: int, registers: MutableSequence[int], flags: Callable[[], int]
) -> tuple[int, int | None, int | None]:
    """(what is in memory afterwards, what is in the register that it changes or None, the arithmetic flags or None).

    `old` is what is in memory; the register is RAX for CMPXCHG, and the operand for XCHG.
    """
    mask = (1 << 8 * store.size) - 1
    operand = store.immediate if store.register is None else registers[store.register] >> (8 if store.high else 0)
    operand &= mask
    match store.operation:
        case "mov":
            return operand, None, None
        case "xchg":
            return operand, old, None
        case "and" | "or":
            new = old & operand if store.operation == "and" else old | operand
            parity = PF if (new & 0xFF).bit_count() % 2 == 0 else 0
            return new, None, (0 if new else ZF) | (SF if new >> 8 * store.size - 1 & 1 else 0) | parity
        case "cmpxchg":
            if registers[_RAX] & mask == old:
                return operand, None, flags() | ZF
            return old, old, flags() & ~ZF
        case _:
            bit = 1 << operand % (8 * store.size)
            carry = flags() & ~CF | (CF if old & bit else 0)
            return (old | bit if store.operation == "bts" else old & ~bit), None, carry


def merged(store: Store, old: int, value: int) -> int:
    """The register with `value` in that part of it which the instruction changes (32-bit results clear the rest)."""
    if store.high:
        return old & ~0xFF00 | value << 8
    if store.size >= 4:
        return value
    mask = (1 << 8 * store.size) - 1
    return old & ~mask | value
