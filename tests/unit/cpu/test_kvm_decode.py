"""Exits as kvm_run tells them, without a KVM: the area is an ordinary file."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.abi import linux_kvm as abi
from bivisor.abi.linux_kvm import ExitReason, Run
from bivisor.cpu.exits import (
    Debug,
    Direction,
    Hlt,
    Hypercall,
    InternalError,
    Mmio,
    PortIo,
    RdMsr,
    SystemEvent,
    UnknownExit,
    WrMsr,
)
from bivisor.cpu.kvm.decode import RunArea

SIZE = 3 * 4096
PORT_DATA = 4096


@pytest.fixture(name="area")
def fixture_area() -> Iterator[RunArea]:
    made = new_area()
    yield made
    made.close()


def new_area() -> RunArea:
    fd = os.memfd_create("kvm_run", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    try:
        return RunArea(fd, SIZE)
    finally:
        os.close(fd)


def tell(area: RunArea, reason: int, data: bytes = b"") -> None:
    area.words[Run.EXIT_REASON // 4] = reason
    area.bytes[Run.EXIT : Run.EXIT + len(data)] = data


def test_a_port_exit_is_made_once_and_its_data_is_the_page_of_the_kernel(area: RunArea) -> None:
    tell(area, ExitReason.IO, abi.EXIT_IO.pack(abi.EXIT_IO_OUT, 2, 0x3F8, 3, PORT_DATA))
    first = area.decode()
    assert isinstance(first, PortIo)
    assert (first.direction, first.port, first.size, first.count) == (Direction.OUT, 0x3F8, 2, 3)
    area.bytes[PORT_DATA : PORT_DATA + 6] = b"abcdef"
    assert bytes(first.data) == b"abcdef"
    assert area.ports[area.quads[Run.EXIT // 8]] is first


def test_an_mmio_exit_is_told_by_address_length_and_direction_and_not_by_padding(area: RunArea) -> None:
    tell(area, ExitReason.MMIO, abi.EXIT_MMIO.pack(0xFEE0_0000, 4, 1) + b"\xaa\xbb\xcc")
    first = area.decode()
    tell(area, ExitReason.MMIO, abi.EXIT_MMIO.pack(0xFEE0_0000, 4, 1) + b"\x01\x02\x03")
    assert area.decode() is first
    tell(area, ExitReason.MMIO, abi.EXIT_MMIO.pack(0xFEE0_0000, 4, 0))
    second = area.decode()
    assert isinstance(second, Mmio)
    assert not second.is_write
    assert (second.length, len(second.data)) == (4, 4)


def test_a_guest_that_sweeps_all_addresses_does_not_fill_the_host(area: RunArea) -> None:
    for address in range(0, 20_000 * 8, 8):
        tell(area, ExitReason.MMIO, abi.EXIT_MMIO.pack(address, 8, 0))
        area.decode()
        tell(area, ExitReason.IO, abi.EXIT_IO.pack(abi.EXIT_IO_IN, 1, address & 0xFFFF, 1 + address % 512, PORT_DATA))
        area.decode()
    assert len(area.mmios) <= 4096
    assert len(area.ports) <= 4096


def test_an_msr_exit_is_answered_in_place(area: RunArea) -> None:
    tell(area, ExitReason.X86_RDMSR, abi.EXIT_MSR.pack(abi.MSR_EXIT_REASON_UNKNOWN, 0x1234, 0))
    read = area.decode()
    assert isinstance(read, RdMsr)
    read.data[:] = (77).to_bytes(8, "little")
    read.error[0] = 1
    assert abi.EXIT_MSR.unpack_from(area.bytes, Run.EXIT) == (abi.MSR_EXIT_REASON_UNKNOWN, 0x1234, 77)
    assert area.bytes[Run.MSR_ERROR] == 1
    tell(area, ExitReason.X86_WRMSR, abi.EXIT_MSR.pack(abi.MSR_EXIT_REASON_FILTER, 0x5678, 99))
    write = area.decode()
    assert isinstance(write, WrMsr)
    assert (write.index, write.value) == (0x5678, 99)


def test_hypercalls_of_both_kinds_carry_their_arguments(area: RunArea) -> None:
    tell(area, ExitReason.HYPERCALL, abi.EXIT_HYPERCALL.pack(12, 1, 2, 3, 4, 0, 0, 1))
    kvm = area.decode()
    assert isinstance(kvm, Hypercall)
    assert (kvm.abi, kvm.nr, kvm.args, kvm.long_mode) == ("kvm", 12, (1, 2, 3, 4), True)
    tell(area, ExitReason.XEN, abi.EXIT_XEN.pack(abi.EXIT_XEN_HCALL, 1, 3, 34, 1, 2, 3, 4, 5, 6))
    xen = area.decode()
    assert isinstance(xen, Hypercall)
    assert (xen.abi, xen.nr, xen.args, xen.cpl) == ("xen", 34, (1, 2, 3, 4, 5, 6), 3)


def test_an_internal_error_names_the_instruction(area: RunArea) -> None:
    code = bytes.fromhex("480fc70f").ljust(15, b"\0")
    tell(area, ExitReason.INTERNAL_ERROR, abi.EXIT_EMULATION.pack(1, 3, 1, 4, code))
    error = area.decode()
    assert isinstance(error, InternalError)
    assert error.text.endswith("48 0f c7 0f")
    assert len(error.data) == 3


def test_the_other_reasons_have_their_classes(area: RunArea) -> None:
    tell(area, ExitReason.HLT)
    assert area.decode() == Hlt()
    tell(area, ExitReason.DEBUG, abi.EXIT_DEBUG.pack(1, 0x1000, 0xFFFF_4FF0, 0x400))
    assert area.decode() == Debug(1, 0x1000, 0xFFFF_4FF0, 0x400)
    tell(area, ExitReason.SYSTEM_EVENT, abi.EXIT_SYSTEM_EVENT.pack(2, 1, 5, *[0] * 15))
    assert area.decode() == SystemEvent(2, (5,))
    tell(area, 99)
    assert area.decode() == UnknownExit(99)


@given(st.integers(0, 60), st.binary(min_size=256, max_size=256))
def test_no_content_of_the_area_but_a_port_direction_can_raise(reason: int, data: bytes) -> None:
    if reason == ExitReason.IO:
        data = bytes((data[0] & 1,)) + data[1:]
    area = new_area()
    try:
        tell(area, reason, data)
        area.decode()
    finally:
        area.close()


def test_closing_releases_what_exits_carry(area: RunArea) -> None:
    tell(area, ExitReason.MMIO, abi.EXIT_MMIO.pack(0, 4, 0))
    exit_ = area.decode()
    assert isinstance(exit_, Mmio)
    area.close()
    with pytest.raises(ValueError, match="released"):
        exit_.data[0] = 1


def test_a_write_to_the_hypercall_port_is_a_hypercall_with_the_registers_of_its_mode(area: RunArea) -> None:
    area.take_hypercalls(0xE6)
    registers = range(1 << 40, (1 << 40) + 18)
    abi.REGS.pack_into(area.bytes, Run.SYNC_REGS, *registers)
    rax, rbx, rcx, rdx, rsi, rdi, _, rbp, r8, r9, r10, *_ = registers
    for long_mode, cpl in ((1, 3), (0, 0)):
        abi.SEGMENT.pack_into(area.bytes, Run.SYNC_SREGS, 0, 0, 0x10 | cpl, 11, 1, cpl, 0, 1, long_mode, 0, 0, 0)
        tell(area, ExitReason.IO, abi.EXIT_IO.pack(abi.EXIT_IO_OUT, 4, 0xE6, 1, 0x1000))
        exit_ = area.decode()
        assert isinstance(exit_, Hypercall)
        wanted = (rdi, rsi, rdx, r10, r8, r9) if long_mode else (rbx, rcx, rdx, rsi, rdi, rbp)
        mask = (1 << 64 if long_mode else 1 << 32) - 1
        assert (exit_.abi, exit_.nr, exit_.cpl) == ("xen", rax & mask, cpl)
        assert exit_.args == tuple(value & mask for value in wanted)
        exit_.result[:] = (99).to_bytes(8, "little")
        assert area.quads[Run.SYNC_REGS // 8] == 99
        assert area.quads[Run.DIRTY_REGS // 8] == abi.SYNC_X86_REGS
        abi.REGS.pack_into(area.bytes, Run.SYNC_REGS, *registers)


def test_other_accesses_to_the_hypercall_port_are_port_exits(area: RunArea) -> None:
    area.take_hypercalls(0xE6)
    tell(area, ExitReason.IO, abi.EXIT_IO.pack(abi.EXIT_IO_OUT, 1, 0xE6, 1, 0x1000))
    assert isinstance(area.decode(), PortIo)
