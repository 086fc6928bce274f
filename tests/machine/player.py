"""A tiny guest that carries out a list of accesses to ports and memory which the host has put into its memory."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from bivisor.kvm import VirtualMachine
from conformance.asm import assemble

from .tiny import CODE, enter

SCRIPT, SCRIPT_END = 0x10_0000, 0x20_0000
STATUS = 0x5A  # what the guest ends with when it has played everything
_RECORD = struct.Struct("<QQ")

_LISTING = f"""
        48be =8:{SCRIPT:#x}     ; mov rsi, SCRIPT
next:   488b06                  ; mov rax, [rsi]
        488b5e08                ; mov rbx, [rsi + 8]
        4883c610                ; add rsi, 16
        89c2                    ; mov edx, eax           ; a port, or the address's lower half
        48c1e838                ; shr rax, 56            ; which operation
        8d0cc5 =operations      ; lea ecx, [operations + 8 * rax]
        48bf =8:0xffffffffffffff ; mov rdi, 2^56 - 1
        48237ef0                ; and rdi, [rsi - 16]
        4889d8                  ; mov rax, rbx
        ffd1                    ; call rcx
        eb @next                ; jmp next
operations:
        b0 {STATUS:02x} e6f4 f4 909090
        8807 c3 9090909090      ; 1: mov [rdi], al
        668907 c3 90909090      ; 2: mov [rdi], ax
        8907 c3 9090909090      ; 3: mov [rdi], eax
        488907 c3 90909090      ; 4: mov [rdi], rax
        8a07 c3 9090909090      ; 5: mov al, [rdi]
        668b07 c3 90909090      ; 6: mov ax, [rdi]
        8b07 c3 9090909090      ; 7: mov eax, [rdi]
        488b07 c3 90909090      ; 8: mov rax, [rdi]
        ee c3 909090909090      ; 9: out dx, al
        66ef c3 9090909090      ; 10: out dx, ax
        ef c3 909090909090      ; 11: out dx, eax
        ec c3 909090909090      ; 12: in al, dx
        66ed c3 9090909090      ; 13: in ax, dx
        ed c3 909090909090      ; 14: in eax, dx
        89d9 f36e c3 909090     ; 15: mov ecx, ebx; rep outsb: RSI goes on behind what was sent
"""
_WRITES = {1: 1, 2: 2, 4: 3, 8: 4}
_READS = {1: 5, 2: 6, 4: 7, 8: 8}
_OUTS = {1: 9, 2: 10, 4: 11}
_INS = {1: 12, 2: 13, 4: 14}


@dataclass(frozen=True, slots=True)
class Access:
    """One access of `size` bytes; `value` is None for a read."""

    address: int
    size: int
    value: int | None = None
    port: bool = False

    def record(self) -> bytes:
        """As the guest reads it."""
        if self.value is None:
            operation = (_INS if self.port else _READS)[self.size]
        else:
            operation = (_OUTS if self.port else _WRITES)[self.size]
        return _RECORD.pack(self.address | operation << 56, self.value or 0)


@cache
def _code() -> bytes:
    return assemble(_LISTING, CODE).data


def prepare(vm: VirtualMachine, script: Iterable[Access]) -> None:
    """Put `script` into guest memory and processor 0, in long mode, before the player. It ends with `STATUS`."""
    data = b"".join(access.record() for access in script) + bytes(_RECORD.size)
    assert len(data) <= SCRIPT_END - SCRIPT
    vm.memory.write(SCRIPT, data)
    enter(vm, _code(), 64)
