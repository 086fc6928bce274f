"""What becomes of a program that does what it may not: tiny/pv_traps.c, run in a guest (test_xen_pv.py)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "tiny" / "pv_traps.c"
FLAGS = "-O2 -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie -fcf-protection=none".split()
_ILL, _TRAP, _BUS, _FPE, _SEGV = 4, 5, 7, 8, 11
_OTHERS = {
    "int80": 0,  # a system call of 32-bit programs
    "int3_": _TRAP,
    "int_3": _TRAP,
    "icebp": _TRAP,
    "step": _TRAP,
    "ud2_": _ILL,
    "divide": _FPE,
    "misaligned": _BUS,
}
_FAULTS = """
    int_4 int_0 int_2 int_6 int_8 int_14 int_2e int_82 int_f0 port_in port_call port_trap port_crash cli_ hlt_ rdmsr_
    read_cr lidt_ swapgs_ sysret_ iret_ iret_cpl0 far_cpl0 load_ss load_ds too_long jump_null jump_wild jump_hypervisor
    jump_kernel load_wild load_hypervisor load_kernel sigreturn
""".split()
ENDS = _OTHERS | dict.fromkeys(_FAULTS, _SEGV)
"""How Linux on a processor of its own ends the process, by case: the signal, or 0."""
OF_THE_LIBRARY = {"icebp": _ILL, "misaligned": 0}
"""What the soft engine's library has otherwise: it knows neither ICEBP nor alignment checks."""


def program(into: Path) -> bytes:
    """The program; skips where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    output = into / "traps"
    subprocess.run([compiler, *FLAGS, "-o", output, SOURCE], check=True, timeout=60)
    return output.read_bytes()


def ends(said: bytes) -> dict[str, int]:
    """What it said, by case."""
    lines = (line.split() for line in said.decode(errors="replace").splitlines())
    return {words[0]: int(words[1], 16) for words in lines if len(words) == 2 and words[0] in ENDS}
