"""A kernel that an HVM domain loads by itself, where VMCALL does not come out of the processor."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from bivisor.abi.x86 import Cr0, Efer
from bivisor.errors import EngineError
from bivisor.memory import GuestMemory
from bivisor.xen.hvm.kernels import EFER, REACH, is_kernel_start, read_efer, replace_around, write_efer
from bivisor.xen.hypercall_entry import VMMCALL

MIB = 1 << 20
OUT = b"\xe7\xe6\x90"
CALL = VMMCALL + b"\xc3"
LONG = int(Efer.LME | Efer.LMA)


class Processor:
    """Has EFER and CR0, and no bits beyond NX."""

    def __init__(self, efer: int, cr0: int) -> None:
        self.efer = efer
        self.cr0 = cr0

    def get_msrs(self, _: list[int]) -> dict[int, int]:
        return {EFER: self.efer}

    def set_msrs(self, values: Mapping[int, int]) -> None:
        if values[EFER] & ~int(LONG | Efer.SCE | Efer.NX):
            raise EngineError("MSR 0xc0000080 cannot be set")
        self.efer = values[EFER]

    def get_sregs(self) -> SimpleNamespace:
        return SimpleNamespace(cr0=self.cr0)


def test_the_hypercalls_around_the_running_kernel_are_replaced_and_no_others() -> None:
    with GuestMemory(128 * MIB) as memory:
        within = (64 * MIB - REACH, 60 * MIB, 65 * MIB - 16, 64 * MIB + REACH - 16)
        beyond = (64 * MIB - REACH - 16, 64 * MIB + REACH)
        for at in within + beyond:
            memory.write(at, CALL)
        assert replace_around(memory, 65 * MIB + 0x1234, OUT) == len(within)
        assert all(memory.read(at, 4) == OUT + b"\xc3" for at in within)
        assert all(memory.read(at, 4) == CALL for at in beyond)


@pytest.mark.parametrize("gpa", [0, 0x1000, 4 * MIB - 1, 512 * MIB, 1 << 50])
def test_a_kernel_at_the_edge_of_memory_or_beyond_it_ends_nothing(gpa: int) -> None:
    with GuestMemory(4 * MIB, gap=(0xA_0000, 0xC_0000)) as memory:
        memory.write(2 * MIB, CALL)
        assert replace_around(memory, gpa, OUT) == (gpa < 4 * MIB)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (LONG, LONG | Efer.SCE, True),
        (LONG, LONG | Efer.NX, False),
        (LONG | Efer.SCE, LONG | Efer.SCE | Efer.NX, False),
        (Efer.LME, Efer.LME | Efer.SCE, False),  # a trampoline of 16 bits, for another processor
    ],
)
def test_a_kernel_starts_where_system_calls_are_turned_on_in_long_mode(before: int, after: int, expected: bool) -> None:
    assert is_kernel_start(before, after) is expected


def test_a_write_of_efer_counts_as_the_processor_takes_it() -> None:
    processor = Processor(LONG, Cr0.PG | Cr0.PE)
    assert write_efer(processor, LONG | Efer.SCE | Efer.NX)  # type: ignore[arg-type]
    assert read_efer(processor) == LONG | Efer.SCE | Efer.NX  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, LONG | Efer.SVME, LONG | 1 << 40])
def test_a_write_of_efer_that_is_refused_changes_nothing(value: int) -> None:
    processor = Processor(LONG, Cr0.PG | Cr0.PE)
    assert not write_efer(processor, value)  # type: ignore[arg-type]
    assert processor.efer == LONG


def test_long_mode_is_turned_off_where_there_is_no_paging() -> None:
    processor = Processor(int(Efer.LME), Cr0.PE)
    assert write_efer(processor, 0)  # type: ignore[arg-type]
    assert processor.efer == 0
