"""Code that changes while it runs: what was stored last is executed, whichever mapping it was stored through."""

from __future__ import annotations

import struct

import pytest

from bivisor.abi.x86 import Efer, Pte
from bivisor.cpu.exits import Hlt

from .guest import PDPT, PML4, Guest

FUNCTIONS = 0x20000
ALIAS = 1 << 39  # the second entry of the PML4: the same memory once more

CALLS = """
    ff d3           ; call rbx: the first function
    88 c4           ; mov ah, al
    ff d1           ; call rcx: another function of its page
    41 c6 00 90     ; mov byte [r8], 0x90: a store to the page, beside both functions
    41 c6 41 01 02  ; mov byte [r9 + 1], 2: the first function returns 2 now
    ff d3           ; call rbx
    f4              ; hlt
"""


@pytest.mark.parametrize("alias", [0, ALIAS], ids=["in place", "through another mapping"])
@pytest.mark.parametrize("never_executable", [False, True], ids=["executable", "not executable"])
def test_changed_code_is_what_runs_next(guest: Guest, alias: int, never_executable: bool) -> None:
    if never_executable and not alias:
        pytest.skip("code has to be executable where it runs")
    code = FUNCTIONS
    guest.load(CALLS, rbx=code, rcx=code + 0x100, r8=alias + code + 0x800, r9=alias + code)
    guest.memory.write(code, bytes.fromhex("b001c3"))  # mov al, 1; ret
    guest.memory.write(code + 0x100, bytes.fromhex("c3"))
    entry = PDPT | Pte.P | Pte.RW | Pte.US | (Pte.XD if never_executable else 0)
    guest.memory.write(PML4 + 8, struct.pack("<Q", entry))
    sregs = guest.vcpu.get_sregs()
    sregs.efer |= Efer.NX
    guest.vcpu.set_sregs(sregs)
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax & 0xFFFF == 0x0102


def test_code_that_the_host_changed_is_what_runs_next(guest: Guest) -> None:
    guest.load("ff d3 f4 ff d3 f4", rbx=FUNCTIONS)
    guest.memory.write(FUNCTIONS, bytes.fromhex("b001c3"))
    assert guest.run() == Hlt()
    guest.memory.write(FUNCTIONS + 1, b"\x02")
    guest.machine.invalidate(FUNCTIONS + 1, 1)
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax & 0xFF == 2
