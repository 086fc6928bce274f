"""Registers to the kernel's structures and back."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.abi import linux_kvm as abi
from bivisor.cpu.kvm import state
from bivisor.cpu.registers import CpuidEntry, DescriptorTable, Events, Fpu, GuestDebug, Regs, Segment, Sregs
from bivisor.errors import UsageError

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
segments = st.builds(Segment, u64, u32, u16, *[u8] * 9)
tables = st.builds(DescriptorTable, u64, u16)


@given(st.builds(Regs, *[u64] * len(fields(Regs))))
def test_registers_survive(regs: Regs) -> None:
    assert state.unpack_regs(state.pack_regs(regs)) == regs


@given(st.builds(Sregs, *[segments] * 8, tables, tables, *[u64] * 7))
def test_system_registers_survive(sregs: Sregs) -> None:
    assert state.unpack_sregs(state.pack_sregs(sregs)) == sregs


registers = st.binary(min_size=16, max_size=16)
fpus = st.builds(
    Fpu,
    st.lists(registers, min_size=8, max_size=8),
    u16, u16, u8, u16, u64, u64,
    st.lists(registers, min_size=16, max_size=16),
    u32,
)  # fmt: skip


@given(fpus)
def test_fpu_state_survives_and_the_rest_of_xsave_stays(fpu: Fpu) -> None:
    xsave = bytearray(b"\x5a" * abi.XSAVE_SIZE)
    state.put_fpu(xsave, fpu)
    assert state.unpack_fpu(xsave) == fpu
    assert xsave[abi.XSAVE_MXCSR_MASK : abi.XSAVE_MXCSR_MASK + 4] == b"\x5a" * 4
    assert xsave[416:512] == b"\x5a" * 96
    assert xsave[abi.XSAVE_XSTATE_BV] & 3 == 3


@given(
    st.builds(
        Events,
        exception=st.none() | st.integers(0, 31),
        interrupt=st.none() | u8,
        interrupt_soft=st.booleans(),
        interrupt_shadow=st.booleans(),
        nmi_injected=st.booleans(),
        nmi_pending=st.booleans(),
        nmi_masked=st.booleans(),
    )
)
def test_events_survive(events: Events) -> None:
    assert state.unpack_events(state.pack_events(events)) == events


def test_an_exception_keeps_its_error_code() -> None:
    events = Events(exception=14, exception_error=0)
    assert state.unpack_events(state.pack_events(events)) == events


@given(st.lists(st.builds(CpuidEntry, u32, st.none() | u32, u32, u32, u32, u32), max_size=20))
def test_cpuid_survives(entries: list[CpuidEntry]) -> None:
    assert state.unpack_cpuid(state.pack_cpuid(entries)) == tuple(entries)


def test_addresses_without_dr7_are_execution_breakpoints() -> None:
    control, first, second, *_, dr7 = abi.GUEST_DEBUG.unpack(state.pack_debug(GuestDebug(addresses=(0x10, 0x20))))
    assert (first, second, dr7) == (0x10, 0x20, 0x40A)
    assert control == abi.GuestDbg.ENABLE | abi.GuestDbg.USE_HW_BP


def test_a_fifth_breakpoint_is_refused() -> None:
    with pytest.raises(UsageError, match="4"):
        state.pack_debug(GuestDebug(addresses=(1, 2, 3, 4, 5)))
