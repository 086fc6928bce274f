"""Exceptions through the guest's own IDT or IVT (SDM 3A chapter 6), in 64, 32 and 16 bits; double and triple faults."""

from __future__ import annotations

import pytest

from bivisor.abi.x86 import PageFault, Rflags, Vector
from bivisor.cpu.exits import Hlt, Shutdown
from bivisor.cpu.registers import DescriptorTable, Events
from bivisor.memory import PAGE

from .conftest import Lacking
from .guest import CODE, CODE32, CODE64, IDT, PAGE_DIRECTORIES, STACK, USER64, Frame, Guest

SELECTOR = {16: 0, 32: CODE32, 64: CODE64}
BEYOND = 1 << 38  # no page table entry


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_division_by_zero_is_de_at_the_instruction(guest: Guest, bits: int) -> None:
    guest.load(
        """
        90      ; nop
        f6 f1   ; div cl
        """,
        bits,
        rcx=0,
    )
    frame = guest.caught()
    assert (frame.vector, frame.error, frame.rip, frame.cs) == (Vector.DE, None, CODE + 1, SELECTOR[bits])


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_ud2_is_ud_at_the_instruction(guest: Guest, bits: int) -> None:
    guest.load("90 0f 0b", bits)
    frame = guest.caught()
    assert (frame.vector, frame.error, frame.rip) == (Vector.UD, None, CODE + 1)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_int_n_returns_after_the_instruction(guest: Guest, bits: int, lacking: Lacking) -> None:
    if bits != 16:
        lacking("INT n outside real mode")
    guest.load("cd 21 f4", bits)
    frame = guest.caught()
    assert (frame.vector, frame.rip, frame.flags & 2) == (0x21, CODE + 2, 2)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_int3_is_bp_after_the_instruction(guest: Guest, bits: int, lacking: Lacking) -> None:
    lacking("INT3")
    guest.load("cc f4", bits)
    frame = guest.caught()
    assert (frame.vector, frame.rip) == (Vector.BP, CODE + 1)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_iret_goes_back_to_the_guest(guest: Guest, bits: int, lacking: Lacking) -> None:
    if bits != 16:
        lacking("INT n outside real mode")
    ret = {16: "cf", 32: "cf", 64: "48 cf"}[bits]
    code = guest.load(
        f"""
                cd 30      ; int 0x30
                f4         ; hlt
        back:   b0 77      ; mov al, 0x77
                {ret}      ; iret
        """,
        bits,
    )
    guest.handle(0x30, code["back"])
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax & 0xFF == 0x77
    assert guest.vcpu.get_regs().rsp == STACK


@pytest.mark.parametrize("bits", [32, 64])
def test_a_bad_selector_is_gp_with_the_selector_as_error(guest: Guest, bits: int) -> None:
    guest.load(
        """
        66 b8 88 08   ; mov ax, 0x888
        8e d8         ; mov ds, ax
        """,
        bits,
    )
    frame = guest.caught()
    assert (frame.vector, frame.error, frame.rip) == (Vector.GP, 0x888, CODE + 4)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_missing_gate_is_np_with_the_vector_in_the_error(
    guest: Guest, bits: int, lacking: Lacking, emulated_processor: Lacking
) -> None:
    lacking("INT n outside real mode")
    if bits == 64:
        emulated_processor("the error code counts 16 for each gate")
    guest.load("cd 55", bits)
    guest.forget(0x55)
    guest.memory.write(IDT + 0x55 * bits // 4 + 5, b"\x0e")  # an interrupt gate that is not present
    frame = guest.caught()
    assert (frame.vector, frame.error) == (Vector.NP, 0x55 << 3 | 2)


def test_a_non_canonical_address_is_gp_with_error_0(guest: Guest) -> None:
    guest.load("8a 03", rbx=0x8000_0000_0000_0000)  # mov al, [rbx]
    frame = guest.caught()
    assert (frame.vector, frame.error) == (Vector.GP, 0)


@pytest.mark.parametrize(("code", "error"), [("8a 03", PageFault(0)), ("88 03", PageFault.W)], ids=["read", "write"])
def test_an_unmapped_address_is_pf_with_cr2(guest: Guest, code: str, error: PageFault) -> None:
    guest.load(code, rbx=BEYOND + 0x123)
    frame = guest.caught()
    assert (frame.vector, frame.error, frame.rip) == (Vector.PF, error, CODE)
    assert guest.vcpu.get_sregs().cr2 == BEYOND + 0x123


def test_a_jump_to_an_unmapped_address_is_pf_at_the_target(guest: Guest) -> None:
    guest.load("ff e3", rbx=BEYOND)  # jmp rbx
    frame = guest.caught()
    assert (frame.vector, frame.rip) == (Vector.PF, BEYOND)
    assert guest.vcpu.get_sregs().cr2 == BEYOND


def test_a_write_to_a_read_only_page_is_pf_present_and_write(guest: Guest) -> None:
    guest.load("88 03", rbx=10 << 20)
    guest.memory.write(PAGE_DIRECTORIES + 8 * 5, (0x81).to_bytes(8, "little"))  # 10 MiB: present, large, not writable
    frame = guest.caught()
    assert (frame.vector, frame.error) == (Vector.PF, PageFault.P | PageFault.W)


def test_pf_in_32_bits(guest: Guest, lacking: Lacking) -> None:
    lacking("paging in 32-bit protected mode")
    guest.load("88 03", 32, paged=True, rbx=0x0800_0000)
    frame = guest.caught()
    assert (frame.vector, frame.error, frame.rip, frame.cs) == (Vector.PF, PageFault.W, CODE, CODE32)
    assert guest.vcpu.get_sregs().cr2 == 0x0800_0000


def test_hlt_at_cpl_3_is_gp_on_the_stack_of_cpl_0(guest: Guest) -> None:
    guest.load("90 f4", user=True)
    frame = guest.caught()
    assert (frame.vector, frame.error, frame.rip, frame.cs) == (Vector.GP, 0, CODE + 1, USER64)
    assert guest.vcpu.get_regs().rsp == STACK - 48


def test_a_port_at_cpl_3_without_iopl_is_gp(guest: Guest, lacking: Lacking) -> None:
    lacking("the IOPL check")
    guest.load("e6 80", user=True)  # out 0x80, al
    frame = guest.caught()
    assert (frame.vector, frame.error, frame.rip) == (Vector.GP, 0, CODE)


def test_a_page_of_the_kernel_is_pf_for_cpl_3(guest: Guest) -> None:
    guest.load("8a 03", user=True, rbx=10 << 20)
    guest.memory.write(PAGE_DIRECTORIES + 8 * 5, (0x83).to_bytes(8, "little"))
    frame = guest.caught()
    assert (frame.vector, frame.error) == (Vector.PF, PageFault.P | PageFault.U)


def test_the_host_injects_an_exception_with_its_error_code(guest: Guest) -> None:
    guest.load("90 f4")
    guest.vcpu.set_events(Events(exception=Vector.GP, exception_error=0x123))
    assert guest.caught() == Frame(Vector.GP, 0x123, CODE, CODE64, Rflags.FIXED)


def test_a_fault_while_a_fault_is_delivered_is_df(guest: Guest) -> None:
    guest.load("8a 03", rbx=0x8000_0000_0000_0000)
    guest.forget(Vector.GP)
    guest.forget(Vector.NP)
    frame = guest.caught()
    assert (frame.vector, frame.error) == (Vector.DF, 0)


def test_a_pf_while_a_pf_is_delivered_is_df(guest: Guest) -> None:
    guest.load("88 03", rbx=BEYOND)
    # The IDT straddles the end of what is mapped at 10 MiB: the gate of #DF is there, that of #PF is not.
    table, page, unmapped = 0x1_7000, 0x1_8000, 12 << 20
    guest.memory.write(PAGE_DIRECTORIES + 8 * 5, (table | 7).to_bytes(8, "little"))
    guest.memory.write(PAGE_DIRECTORIES + 8 * 6, bytes(8))
    guest.memory.write(table + 8 * 511, (page | 7).to_bytes(8, "little"))
    below = 14 * 16
    guest.memory.write(page + PAGE - below, guest.memory.read(IDT, below))
    sregs = guest.vcpu.get_sregs()
    sregs.idt = DescriptorTable(unmapped - below, 0xFFF)
    guest.vcpu.set_sregs(sregs)
    frame = guest.caught()
    assert (frame.vector, frame.error) == (Vector.DF, 0)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_triple_fault_is_a_shutdown(guest: Guest, bits: int, lacking: Lacking) -> None:
    if bits == 16:
        lacking("the limit of the IVT")
    guest.load("0f 0b", bits)
    sregs = guest.vcpu.get_sregs()
    sregs.idt = DescriptorTable(0, 0)
    guest.vcpu.set_sregs(sregs)
    assert guest.run() == Shutdown()


def test_a_stack_that_is_not_there_ends_in_a_shutdown(guest: Guest) -> None:
    guest.load("0f 0b", rsp=BEYOND)
    assert guest.run() == Shutdown()


def test_single_step_of_the_guest_itself_is_db(guest: Guest) -> None:
    guest.load(
        """
        9c                ; pushfq
        80 4c 24 01 01    ; or byte [rsp + 1], 1
        9d                ; popfq
        90                ; nop
        f4                ; hlt
        """
    )
    frame = guest.caught()
    assert (frame.vector, frame.rip) == (Vector.DB, CODE + 8)
