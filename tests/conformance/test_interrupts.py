"""Interrupts that the host injects, the window for them, NMIs; HLT. No interrupt controller in the engine."""

from __future__ import annotations

import pytest

from bivisor.cpu.exits import Hlt, Hypercall, InterruptWindow
from bivisor.errors import EngineError

from .conftest import Lacking
from .guest import CODE, DATA, Guest


def test_hlt_comes_out_and_the_guest_goes_on_after_it(guest: Guest) -> None:
    guest.load("f4 b0 01 f4")  # hlt; mov al, 1; hlt
    assert guest.run() == Hlt()
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax & 0xFF == 1


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_an_interrupt_wakes_a_halted_guest(guest: Guest, bits: int) -> None:
    guest.load("fb f4 90", bits)  # sti; hlt; nop
    assert guest.run() == Hlt()
    assert guest.vcpu.ready_for_interrupt
    guest.vcpu.interrupt(0x40)
    frame = guest.caught()
    assert (frame.vector, frame.rip, frame.flags >> 9 & 1) == (0x40, CODE + 2, 1)


def test_the_window_opens_after_sti_and_its_shadow(guest: Guest) -> None:
    guest.load(
        """
                e6 10           ; out 0x10, al
                fb              ; sti
                90              ; nop
        again:  90              ; nop
                eb @again       ; jmp again
        """
    )
    guest.out(0x10)
    assert not guest.vcpu.ready_for_interrupt
    guest.vcpu.request_interrupt_window()
    assert guest.run() == InterruptWindow()
    assert guest.vcpu.ready_for_interrupt
    assert guest.vcpu.get_regs().rip >= CODE + 4, "one instruction after STI runs first"
    guest.vcpu.request_interrupt_window(False)
    guest.vcpu.interrupt(0x55)
    assert guest.caught().vector == 0x55


def test_a_window_that_is_no_longer_wanted_does_not_come_out(guest: Guest) -> None:
    guest.load("e6 10 fb 90 90 e6 11")
    guest.out(0x10)
    guest.vcpu.request_interrupt_window()
    guest.vcpu.request_interrupt_window(False)
    guest.out(0x11)


def test_interrupts_one_after_the_other_are_all_delivered(guest: Guest) -> None:
    code = guest.load(
        """
                fb                        ; sti
        idle:   f4                        ; hlt
                eb @idle                  ; jmp idle
        count:  48 ff 04 25 =0x3000       ; inc qword [0x3000]
                48 cf                     ; iretq
        """
    )
    guest.handle(0x30, code["count"])
    for _ in range(50):
        assert guest.run() == Hlt()
        guest.vcpu.interrupt(0x30)
    assert guest.run() == Hlt()
    assert guest.memory.read_u64(DATA) == 50


def test_the_handler_runs_with_interrupts_off(guest: Guest) -> None:
    guest.load("fb f4")
    assert guest.run() == Hlt()
    guest.vcpu.interrupt(0x40)
    guest.caught()
    assert not guest.vcpu.get_regs().rflags & 0x200


def test_an_nmi_is_vector_2_even_with_interrupts_off(guest: Guest) -> None:
    guest.load("fa f4 90")  # cli; hlt; nop
    assert guest.run() == Hlt()
    guest.vcpu.nmi()
    frame = guest.caught()
    assert (frame.vector, frame.error, frame.rip) == (2, None, CODE + 2)


def test_a_second_nmi_waits_for_iret(guest: Guest, lacking: Lacking, emulated_processor: Lacking) -> None:
    lacking("a pending NMI right after IRET")
    emulated_processor("the window after IRET now and then stops the whole host, KVM_RUN never coming back")
    code = guest.load(
        """
                f4                        ; hlt
                f4                        ; hlt
        nmi:    ff 04 25 =0x3000          ; inc dword [0x3000]
                e6 20                     ; out 0x20, al
                e6 21                     ; out 0x21, al
                48 cf                     ; iretq
        """
    )
    guest.handle(2, code["nmi"])
    assert guest.run() == Hlt()
    guest.vcpu.nmi()
    guest.out(0x20)
    guest.vcpu.nmi()
    guest.out(0x21)
    assert guest.memory.read_u32(DATA) == 1, "the first has not returned"
    guest.out(0x20)
    assert guest.memory.read_u32(DATA) == 2


def test_there_is_no_injection_beside_the_engines_own_controller(apic_guest: Guest) -> None:
    apic_guest.load("f4")
    with pytest.raises(EngineError):
        apic_guest.vcpu.interrupt(0x40)


@pytest.mark.parametrize("instruction", ["0f 01 c1", "0f 01 d9"], ids=["vmcall", "vmmcall"])
def test_a_hypercall_is_answered(guest: Guest, instruction: str, lacking: Lacking) -> None:
    """On `soft` it comes out. On `kvm` the kernel answers it with -KVM_ENOSYS, and the host never sees it."""
    lacking("VMCALL and VMMCALL (they never end)")
    guest.load(f"{instruction} f4", rax=99, rbx=1, rcx=2, rdx=3, rsi=4)
    exit_ = guest.run()
    if guest.engine.name == "kvm":
        assert exit_ == Hlt()
        assert guest.vcpu.get_regs().rax == -1000 & 0xFFFF_FFFF_FFFF_FFFF
        return
    assert isinstance(exit_, Hypercall)
    assert (exit_.nr, exit_.cpl, exit_.long_mode) == (99, 0, True)
    if exit_.abi == "kvm":
        assert exit_.args == (1, 2, 3, 4)
    exit_.result[:] = (0x1234).to_bytes(8, "little")
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax == 0x1234
