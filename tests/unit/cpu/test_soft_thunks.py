"""The native glue: thunks.py holds what thunks.S assembles to, and both agree with private.py on where things are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bivisor.cpu.soft import library, private
from bivisor.cpu.soft.thunks import CODE

SOURCE = Path(private.__file__).with_name("thunks.S")
_SET = re.compile(r"^\s*\.set\s+(\w+),\s*([^#\n]+)", re.MULTILINE)

SETS = {name: eval(value, {}) for name, value in _SET.findall(SOURCE.read_text())}

FIELDS = {
    "C_OUT": "out",
    "C_IN": "in_",
    "C_RDMSR": "rdmsr",
    "C_WRMSR": "wrmsr",
    "C_CPUID": "cpuid",
    "C_TRAP": "trap",
    "C_INTA": "inta",
    "C_READ_CR8": "read_cr8",
    "C_WRITE_CR8": "write_cr8",
    "C_MMIO_READ": "mmio_read",
    "C_MMIO_WRITE": "mmio_write",
    "C_TRAP_MASK": "trap_mask",
    "C_MORE": "more",
    "C_INFLIGHT": "inflight",
    "C_RETADDR": "return_address",
    "C_VECTORS": "vectors",
    "C_BREAK": "break_",
    "C_RAM": "ram",
    "C_CODE_MAP": "code_map",
    "C_CODE_PAGES": "code_pages",
    "C_SYSCALL": "syscall",
    "C_READ_CR": "read_cr",
    "C_WRITE_CR": "write_cr",
    "C_PF_MASK": "page_fault_mask",
    "C_PF_MATCH": "page_fault_match",
    "C_SHORT_NR": "shortcut_number",
    "C_SHORT_RIP": "shortcut_rip",
    "C_NEXT": "next_mmio",
    "C_FAST_PORT": "fast_port",
    "C_FAST_AT": "fast_at",
    "C_FAST_END": "fast_end",
    "C_UC": "uc",
    "C_NATIVE": "native",
    "C_NATIVE_ST": "native_state",
    "C_CODE_BIT": "code_bit",
    "C_PEERS": "peers",
}
PLACES = {
    "ENV": private.ENV_IN_CPU,
    "CPU_EXC": private.CPU_EXCEPTION_INDEX,
    "CPU_IREQ": private.CPU_INTERRUPT_REQUEST,
    "UC_CPU": private.UC_CPU,
    "UC_ERROR": private.UC_INVALID_ERROR,
    "E_EIP": private.ENV_EIP,
    "E_EFLAGS": private.ENV_EFLAGS,
    "E_CC_SRC": private.ENV_CC_SRC,
    "E_CC_OP": private.ENV_CC_OP,
    "E_DF": private.ENV_DF,
    "E_HFLAGS": private.ENV_HFLAGS,
    "E_CS": private.ENV_SEGS + 24,
    "E_SS": private.ENV_SEGS + 48,
    "E_EFER": private.ENV_EFER,
    "E_STAR": private.ENV_STAR,
    "E_ERROR": private.ENV_ERROR_CODE,
    "E_IS_INT": private.ENV_IS_INT,
    "E_NEXT_EIP": private.ENV_NEXT_EIP,
    "E_CTX": private.ENV_CONTEXT,
}


def test_the_bytes_are_what_the_source_assembles_to(tmp_path: Path) -> None:
    if not (shutil.which("as") and shutil.which("objcopy")):
        pytest.skip("binutils (as, objcopy) are not installed")
    object_, binary = tmp_path / "thunks.o", tmp_path / "thunks.bin"
    subprocess.run(["as", SOURCE, "-o", object_], check=True, timeout=30)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", object_, binary], check=True, timeout=30)
    assert binary.read_bytes() == CODE


def test_every_field_of_the_context_is_where_the_source_says() -> None:
    named = {name for name in SETS if name.startswith("C_")}
    assert named == set(FIELDS)
    assert {name: SETS[name] for name in named} == {
        name: getattr(private.Context, field).offset for name, field in FIELDS.items()
    }


def test_every_field_of_the_context_is_known_to_the_source() -> None:
    assert {name for name, _ in private.Context._fields_ if not name.startswith("_")} == set(FIELDS.values())


@pytest.mark.parametrize("name", PLACES)
def test_the_source_and_the_engine_agree_on_the_library(name: str) -> None:
    assert SETS[name] == PLACES[name]


def test_the_code_fits_into_its_page() -> None:
    assert len(CODE) <= library._PAGE
