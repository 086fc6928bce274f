"""Atomic operations on memory that guest code changes at the same time, natively and without Python's lock.

Python has none, so each is a few bytes of x86-64 machine code (System V ABI) in one executable page of the process,
called without giving up the interpreter lock. Each is a full memory barrier (Intel SDM volume 3, 9.1 and 9.2). An
operand has to be aligned to its size: many hosts stop a process for a lock that is split between two cache lines.
"""

from __future__ import annotations

import ctypes as C
import mmap
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from bivisor.errors import HostError

SOURCE = {
    "or_u64": """
        mov rax, [rdi]
     1: mov rcx, rax
        or rcx, rsi
        lock cmpxchg [rdi], rcx
        jne 1b
        ret""",
    "and_u64": """
        mov rax, [rdi]
     1: mov rcx, rax
        and rcx, rsi
        lock cmpxchg [rdi], rcx
        jne 1b
        ret""",
    "test_and_set_bit": """
        xor eax, eax
        lock bts qword ptr [rdi], rsi
        setc al
        ret""",
    "test_and_clear_bit": """
        xor eax, eax
        lock btr qword ptr [rdi], rsi
        setc al
        ret""",
    "cmpxchg_u16": """
        mov eax, esi
        lock cmpxchg [rdi], dx
        movzx eax, ax
        ret""",
    "cmpxchg_u32": """
        mov eax, esi
        lock cmpxchg [rdi], edx
        ret""",
    "cmpxchg_u64": """
        mov rax, rsi
        lock cmpxchg [rdi], rdx
        ret""",
    "raise_alone": """
        xor eax, eax
        lock bts dword ptr [rdi], 31
        setc al
        test dword ptr [rdi], 0x40000000
        jnz 1f
        lock bts dword ptr [rdi], 29
        jc 1f
        mov [rsi + 4 * rcx + 8], edx
        lock bts dword ptr [rsi], ecx
        jc 1f
        lock bts qword ptr [r8], 0
        jc 1f
        or al, 2
     1: ret""",
}
"""What each function is in assembly language. A test assembles it and compares with `CODE`."""

CODE = {
    "or_u64": bytes.fromhex("488b07 4889c1 4809f1 f0480fb10f 75f3 c3"),
    "and_u64": bytes.fromhex("488b07 4889c1 4821f1 f0480fb10f 75f3 c3"),
    "test_and_set_bit": bytes.fromhex("31c0 f0480fab37 0f92c0 c3"),
    "test_and_clear_bit": bytes.fromhex("31c0 f0480fb337 0f92c0 c3"),
    "cmpxchg_u16": bytes.fromhex("89f0 66f00fb117 0fb7c0 c3"),
    "cmpxchg_u32": bytes.fromhex("89f0 f00fb117 c3"),
    "cmpxchg_u64": bytes.fromhex("4889f0 f0480fb117 c3"),
    "raise_alone": bytes.fromhex(
        "31c0f00fba2f1f0f92c0f70700000040751bf00fba2f1d721489548e08f00fab0e720af0490fba280072020c02c3"
    ),
}

_TWO = C.PYFUNCTYPE(C.c_uint64, C.c_uint64, C.c_uint64)
_THREE = C.PYFUNCTYPE(C.c_uint64, C.c_uint64, C.c_uint64, C.c_uint64)
_FIVE = C.PYFUNCTYPE(C.c_uint64, *[C.c_uint64] * 5)
_ROOM = 64
_OF_TWO = frozenset({"or_u64", "and_u64", "test_and_set_bit", "test_and_clear_bit"})


@dataclass(frozen=True, slots=True)
class Atomics:
    """The operations, as functions of a host address. They trust it: check what a guest hands over before."""

    or_u64: Callable[[int, int], int]
    """(address, mask): sets the bits of `mask`; what was there."""
    and_u64: Callable[[int, int], int]
    """(address, mask): clears the bits that are not in `mask`; what was there."""
    test_and_set_bit: Callable[[int, int], int]
    """(address, bit): sets a bit of the string of 64-bit words at `address`; what it was, 0 or 1."""
    test_and_clear_bit: Callable[[int, int], int]
    """(address, bit): clears a bit of the string of 64-bit words at `address`; what it was, 0 or 1."""
    cmpxchg_u16: Callable[[int, int, int], int]
    """(address, expected, new): stores `new` where `expected` is; what was there."""
    cmpxchg_u32: Callable[[int, int, int], int]
    """(address, expected, new): stores `new` where `expected` is; what was there."""
    cmpxchg_u64: Callable[[int, int, int], int]
    """(address, expected, new): stores `new` where `expected` is; what was there."""
    raise_alone: Callable[[int, int, int, int, int], int]
    """(word, control block, port, priority, struct vcpu_info): an event at a port which is the only one that was in its
    queue of the FIFO event ABI: its word PENDING and, unless MASKED or LINKED already, LINKED, the queue's head, READY,
    and the processor's upcall. 1 if it was pending, and 2 if the processor has to be interrupted."""


@cache
def atomics() -> Atomics:
    """The operations, made executable once for the process. HostError where the host does not allow that."""
    if platform.machine() != "x86_64":
        raise HostError(f"a Xen host has to be an x86-64 machine; this one is {platform.machine()}")
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    offsets = {}
    for at, (name, code) in enumerate(CODE.items()):
        offsets[name] = at * _ROOM
        page[offsets[name] : offsets[name] + len(code)] = code
    anchor = C.c_char.from_buffer(page)  # the export that keeps the page mapped for as long as a function lives
    base = C.addressof(anchor)
    protection = C.c_int(mmap.PROT_READ | mmap.PROT_EXEC)
    if C.CDLL(None).mprotect(C.c_void_p(base), C.c_size_t(mmap.PAGESIZE), protection):
        raise HostError("this host does not let a process make memory executable; a Xen host needs that for its events")

    def function(name: str) -> Callable[..., int]:
        prototype = _TWO if name in _OF_TWO else _FIVE if name == "raise_alone" else _THREE
        made: Callable[..., int] = prototype(base + offsets[name])
        made.anchor = anchor  # type: ignore[attr-defined]
        return made

    return Atomics(**{name: function(name) for name in CODE})


def address_of(view: memoryview) -> int:
    """Where the host has the first byte of `view`, which is writable. Good for as long as somebody holds the view."""
    return C.addressof(C.c_char.from_buffer(view))
