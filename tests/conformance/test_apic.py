"""Local APICs of the engine (SDM 3A chapter 10): timer, x2APIC, TSC deadline, MSIs; and lines through an I/O APIC."""

from __future__ import annotations

import os

import pytest

from bivisor.abi.x86 import Msr
from bivisor.cpu.contract import Engine
from bivisor.errors import EngineError

from .guest import DONE, Guest

MSI_ADDRESS = 0xFEE0_0000

ENABLE_XAPIC = """
        bb =0xfee00000                  ; mov ebx, 0xfee00000
        c7 83 =0xf0 =0x1ff              ; mov dword [rbx + SIVR], 0x1ff
"""
IDLE = """
        fb                              ; sti
idle:   f4                              ; hlt
        eb @idle                        ; jmp idle
"""
ENABLE_X2APIC = """
        b9 =0x1b 0f 32                  ; rdmsr IA32_APIC_BASE
        0d =0x400 0f 30                 ; or eax, EXTD; wrmsr
        31 d2                           ; xor edx, edx
        b9 =0x80f b8 =0x1ff 0f 30       ; wrmsr SIVR = 0x1ff
"""


def test_the_timer_of_an_xapic_fires_once(apic_guest: Guest) -> None:
    apic_guest.load(
        ENABLE_XAPIC
        + """
        c7 83 =0x320 =0x41              ; LVT timer: one-shot, vector 0x41
        c7 83 =0x3e0 =0x0b              ; divide by 1
        c7 83 =0x380 =100000            ; initial count
        """
        + IDLE
    )
    assert apic_guest.caught().vector == 0x41


def test_a_periodic_timer_fires_again_after_eoi(apic_guest: Guest) -> None:
    code = apic_guest.load(
        ENABLE_XAPIC
        + """
        31 c9                           ; xor ecx, ecx
        c7 83 =0x320 =0x20042           ; LVT timer: periodic, vector 0x42
        c7 83 =0x3e0 =0x0b              ; divide by 1
        c7 83 =0x380 =200000            ; initial count
        """
        + IDLE
        + """
tick:   ff c1                           ; inc ecx
        83 f9 05                        ; cmp ecx, 5
        75 @eoi                         ; jne eoi
        e6 f4                           ; out DONE, al
eoi:    c7 83 =0xb0 =0                  ; EOI
        48 cf                           ; iretq
        """
    )
    apic_guest.handle(0x42, code["tick"])
    apic_guest.out(DONE)
    assert apic_guest.vcpu.get_regs().rcx == 5


def test_the_timer_of_an_x2apic_fires(apic_guest: Guest) -> None:
    apic_guest.load(
        ENABLE_X2APIC
        + """
        b9 =0x83e b8 =0x0b 0f 30        ; divide by 1
        b9 =0x832 b8 =0x43 0f 30        ; LVT timer: one-shot, vector 0x43
        b9 =0x838 b8 =100000 0f 30      ; initial count
        """
        + IDLE
    )
    assert apic_guest.caught().vector == 0x43


def test_the_tsc_deadline_fires(apic_guest: Guest) -> None:
    apic_guest.load(
        ENABLE_X2APIC
        + """
        b9 =0x832 b8 =0x40044 0f 30     ; LVT timer: TSC deadline, vector 0x44
        0f 31                           ; rdtsc
        48 c1 e2 20 48 09 d0            ; rax |= rdx << 32
        48 05 =200000                   ; add rax, 200000
        48 89 c2 48 c1 ea 20            ; rdx = rax >> 32
        b9 =0x6e0 0f 30                 ; wrmsr IA32_TSC_DEADLINE
        """
        + IDLE
    )
    assert apic_guest.caught().vector == 0x44


def test_the_x2apic_knows_its_id_and_version(apic_guest: Guest) -> None:
    apic_guest.load(
        ENABLE_X2APIC
        + """
        b9 =0x803 0f 32 89 c3           ; ebx = version
        b9 =0x802 0f 32                 ; eax = id
        e6 f4                           ; out DONE, al
        """
    )
    apic_guest.out(DONE)
    regs = apic_guest.vcpu.get_regs()
    assert regs.rax == 0
    assert regs.rbx & 0xFF in range(0x10, 0x16)


def test_a_self_ipi_arrives(apic_guest: Guest) -> None:
    apic_guest.load(
        ENABLE_X2APIC
        + """
        b9 =0x83f b8 =0x61 0f 30        ; self IPI, vector 0x61
        """
        + IDLE
    )
    assert apic_guest.caught().vector == 0x61


def test_an_msi_arrives_with_its_vector(apic_guest: Guest) -> None:
    apic_guest.load(ENABLE_XAPIC + "e6 f4" + IDLE)
    apic_guest.out(DONE)
    apic_guest.machine.signal_msi(MSI_ADDRESS, 0x51)
    assert apic_guest.caught().vector == 0x51


def test_the_higher_of_two_msis_comes_first(apic_guest: Guest) -> None:
    apic_guest.load(ENABLE_XAPIC + "e6 f4" + IDLE)
    apic_guest.out(DONE)
    for vector in (0x51, 0x81, 0x61):
        apic_guest.machine.signal_msi(MSI_ADDRESS, vector)
    assert apic_guest.caught().vector == 0x81


def test_an_msi_for_nobody_is_lost(apic_guest: Guest) -> None:
    apic_guest.load(ENABLE_XAPIC + "e6 f4 fb 90 90 e6 f5")
    apic_guest.out(DONE)
    apic_guest.machine.signal_msi(MSI_ADDRESS | 0x33 << 12, 0x51)
    apic_guest.out(0xF5)


def test_the_apic_base_msr_says_where_it_is(apic_guest: Guest) -> None:
    base = apic_guest.vcpu.get_msrs([Msr.IA32_APIC_BASE])[Msr.IA32_APIC_BASE]
    assert base == 0xFEE0_0900, "enabled, bootstrap processor"


# ── through the I/O APIC of the engine ──────────────────────────────────────────────────────────────────────────────

GSI = 20  # no line of the 8259 pair
ROUTE_GSI_20 = (
    ENABLE_XAPIC
    + """
        b8 =0xfec00000                  ; mov eax, 0xfec00000
        c7 00 =0x39                     ; select the upper half of entry 20
        c7 40 10 =0                     ; to processor 0
        c7 00 =0x38                     ; the lower half
        c7 40 10 =0x75                  ; edge, vector 0x75
        e6 f4                           ; out DONE, al
"""
    + IDLE
)


@pytest.fixture
def routed(apic_guest: Guest) -> Guest:
    if apic_guest.machine.irqchip != "kernel":
        pytest.skip("the I/O APIC of this engine is the platform's")
    apic_guest.load(ROUTE_GSI_20)
    apic_guest.out(DONE)
    return apic_guest


def test_a_line_arrives_with_the_vector_of_its_entry(routed: Guest) -> None:
    routed.machine.set_irq(GSI, True)
    assert routed.caught().vector == 0x75
    routed.machine.set_irq(GSI, False)


def test_an_irqfd_pulls_its_line(routed: Guest) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        routed.machine.irqfd(fd, GSI)
        os.eventfd_write(fd, 1)
        assert routed.caught().vector == 0x75
        routed.machine.remove_irqfd(fd, GSI)
    finally:
        os.close(fd)


def test_lines_need_an_irqchip(engine: Engine) -> None:
    with Guest(engine) as guest:
        assert guest.machine.irqchip == "none"
        with pytest.raises(EngineError):
            guest.machine.set_irq(GSI, True)
