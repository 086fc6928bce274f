"""What is set comes back, and the guest sees it: system registers, FPU, MSRs, CPUID."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bivisor.abi.x86 import Cr0, Cr4, Msr
from bivisor.cpu.contract import Engine
from bivisor.cpu.exits import Cpuid, Hlt, RdMsr, WrMsr
from bivisor.cpu.registers import CpuidEntry, Events, Fpu
from bivisor.errors import EngineError

from .conftest import Lacking
from .guest import Guest

UNKNOWN_MSR = 0x5A5A_0001
RDMSR = """
        0f 32        ; rdmsr
        f4           ; hlt
        """
WRMSR = """
        0f 30        ; wrmsr
        f4           ; hlt
        """


def test_system_registers_are_what_was_set(guest: Guest) -> None:
    guest.load("f4")
    sregs = guest.vcpu.get_sregs()
    sregs.fs.base, sregs.gs.base, sregs.cr2 = 0x1234_5000, 0xFFFF_8000_0000_0000, 0xDEAD_B000
    sregs.idt.base, sregs.idt.limit = 0xA000, 0x7FF
    guest.vcpu.set_sregs(sregs)
    again = guest.vcpu.get_sregs()
    for name in ("cs", "ds", "ss", "fs", "gs", "gdt", "idt", "cr0", "cr2", "cr3", "cr4", "efer"):
        assert getattr(again, name) == getattr(sregs, name), name


def test_the_guest_reads_the_control_registers_that_were_set(guest: Guest) -> None:
    guest.load(
        """
        0f 20 c0    ; mov rax, cr0
        0f 20 d3    ; mov rbx, cr2
        0f 20 d9    ; mov rcx, cr3
        0f 20 e2    ; mov rdx, cr4
        f4          ; hlt
        """
    )
    sregs = guest.vcpu.get_sregs()
    sregs.cr2 = 0x7777_0000
    guest.vcpu.set_sregs(sregs)
    assert guest.run() == Hlt()
    regs = guest.vcpu.get_regs()
    assert regs.rax & (Cr0.PE | Cr0.PG) == Cr0.PE | Cr0.PG
    assert (regs.rbx, regs.rcx) == (0x7777_0000, 0x1_0000)
    assert regs.rdx & Cr4.PAE


def test_fpu_state_is_what_was_set(guest: Guest) -> None:
    wanted = Fpu(fcw=0x27F, mxcsr=0x1FA0, xmm=[bytes([n] * 16) for n in range(16)])
    guest.vcpu.set_fpu(wanted)
    got = guest.vcpu.get_fpu()
    assert (got.fcw, got.mxcsr, got.xmm) == (wanted.fcw, wanted.mxcsr, wanted.xmm)


def test_the_guest_computes_with_the_fpu_that_was_set(guest: Guest, lacking: Lacking) -> None:
    lacking("SSE")
    guest.load(
        """
        66 0f ef c0         ; pxor xmm0, xmm0
        66 0f fe c1         ; paddd xmm0, xmm1
        66 0f fe c1         ; paddd xmm0, xmm1
        f4                  ; hlt
        """
    )
    sregs = guest.vcpu.get_sregs()
    sregs.cr4 |= Cr4.OSFXSR | Cr4.OSXMMEXCPT
    guest.vcpu.set_sregs(sregs)
    xmm = [bytes(16)] * 16
    xmm[1] = bytes.fromhex("01000000 02000000 03000000 04000000")
    guest.vcpu.set_fpu(Fpu(xmm=xmm))
    assert guest.run() == Hlt()
    assert guest.vcpu.get_fpu().xmm[0] == bytes.fromhex("02000000 04000000 06000000 08000000")


def test_msrs_are_what_was_set(guest: Guest) -> None:
    wanted = {
        int(Msr.IA32_LSTAR): 0xFFFF_FFFF_8100_0000,
        int(Msr.IA32_STAR): 0x0023_0010_0000_0000,
        int(Msr.IA32_KERNEL_GS_BASE): 0xFFFF_8880_0000_0000,
        int(Msr.IA32_SYSENTER_EIP): 0x1234,
        int(Msr.IA32_PAT): 0x0007_0406_0007_0406,
    }
    guest.vcpu.set_msrs(wanted)
    assert guest.vcpu.get_msrs(wanted) == wanted


def test_an_msr_that_is_not_there_is_named(guest: Guest) -> None:
    with pytest.raises(EngineError, match=f"{UNKNOWN_MSR:#x}"):
        guest.vcpu.get_msrs([Msr.IA32_LSTAR, UNKNOWN_MSR])
    with pytest.raises(EngineError, match=f"{UNKNOWN_MSR:#x}"):
        guest.vcpu.set_msrs({UNKNOWN_MSR: 1})


def test_the_guest_reads_an_msr_that_was_set(guest: Guest) -> None:
    guest.load(RDMSR, rcx=Msr.IA32_LSTAR)
    guest.vcpu.set_msrs({Msr.IA32_LSTAR: 0xFFFF_8111_2222_3333})
    assert guest.run() == Hlt()
    regs = guest.vcpu.get_regs()
    assert (regs.rdx, regs.rax) == (0xFFFF_8111, 0x2222_3333)


def test_the_host_reads_an_msr_that_the_guest_set(guest: Guest) -> None:
    guest.load(WRMSR, rcx=Msr.IA32_KERNEL_GS_BASE, rax=0x4444_5555, rdx=0)
    assert guest.run() == Hlt()
    assert guest.vcpu.get_msrs([Msr.IA32_KERNEL_GS_BASE]) == {Msr.IA32_KERNEL_GS_BASE: 0x4444_5555}


def test_reading_an_unknown_msr_comes_out_and_can_be_answered(guest: Guest) -> None:
    guest.load(RDMSR, rcx=UNKNOWN_MSR)
    exit_ = guest.run()
    assert isinstance(exit_, RdMsr)
    assert exit_.index == UNKNOWN_MSR
    exit_.data[:] = (0x0102_0304_0506_0708).to_bytes(8, "little")
    assert guest.run() == Hlt()
    regs = guest.vcpu.get_regs()
    assert (regs.rdx, regs.rax) == (0x0102_0304, 0x0506_0708)


def test_writing_an_unknown_msr_comes_out_with_its_value(guest: Guest) -> None:
    guest.load(WRMSR, rcx=UNKNOWN_MSR, rax=0x5566_7788, rdx=0x1122_3344)
    exit_ = guest.run()
    assert isinstance(exit_, WrMsr)
    assert (exit_.index, exit_.value) == (UNKNOWN_MSR, 0x1122_3344_5566_7788)
    assert guest.run() == Hlt()


@pytest.mark.parametrize("code", [RDMSR, WRMSR])
def test_an_msr_exit_can_be_answered_with_gp(guest: Guest, code: str) -> None:
    guest.load(code, rcx=UNKNOWN_MSR)
    exit_ = guest.run()
    assert isinstance(exit_, RdMsr | WrMsr)
    exit_.error[0] = 1
    frame = guest.caught()
    assert (frame.vector, frame.error, frame.rip) == (13, 0, 0x1000)


def test_the_filter_brings_out_msrs_that_the_engine_has(guest: Guest) -> None:
    guest.machine.filter_msrs([(Msr.IA32_LSTAR, 2), (0x4000_0000, 0x100)])
    guest.load(WRMSR, rcx=Msr.IA32_LSTAR, rax=7, rdx=0)
    exit_ = guest.run()
    assert isinstance(exit_, WrMsr)
    assert (exit_.index, exit_.value) == (Msr.IA32_LSTAR, 7)
    assert guest.run() == Hlt()
    assert guest.vcpu.get_msrs([Msr.IA32_LSTAR])[Msr.IA32_LSTAR] != 7, "a filtered write stays outside"
    guest.load(WRMSR, rcx=Msr.IA32_STAR, rax=7, rdx=0)
    assert guest.run() == Hlt()


def test_cpuid_says_what_was_set(guest: Guest) -> None:
    mine = CpuidEntry(0x4000_0000, None, 0x4000_0001, 0x7669_6942, 0x2172_6F73, 0x2121_2121)
    model = [entry for entry in guest.engine.supported_cpuid() if entry.leaf >> 28 != 4]
    guest.vcpu.set_cpuid([*model, mine])
    assert mine in guest.vcpu.get_cpuid()
    guest.load("0f a2 f4", rax=0x4000_0000)  # cpuid; hlt
    assert guest.run() == Hlt()
    regs = guest.vcpu.get_regs()
    assert (regs.rax, regs.rbx, regs.rcx, regs.rdx) == (mine.eax, mine.ebx, mine.ecx, mine.edx)


def test_cpuid_tells_subleaves_apart(guest: Guest) -> None:
    model = [entry for entry in guest.engine.supported_cpuid() if entry.leaf != 4]
    caches = [CpuidEntry(4, number, 0x100 + number, 0, 0, 0) for number in range(3)]
    guest.vcpu.set_cpuid([*model, *caches])
    guest.load("0f a2 f4", rax=4, rcx=2)
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax == 0x102


def test_the_engines_own_model_has_long_mode_and_its_apic_id(engine: Engine) -> None:
    with engine.create_machine() as machine:
        machine.create_irqchip()
        first = {entry.leaf: entry for entry in machine.create_vcpu(0).get_cpuid()}
        assert first[0x8000_0001].edx >> 29 & 1, "long mode"
        assert first[1].ebx >> 24 == 0
        if engine.max_vcpus > 1:
            second = {entry.leaf: entry for entry in machine.create_vcpu(1).get_cpuid()}
            assert second[1].ebx >> 24 == 1


def test_cpuid_comes_out_where_the_engine_can(guest: Guest) -> None:
    try:
        guest.machine.exit_on_cpuid()
    except EngineError as error:
        pytest.skip(str(error))
    guest.load("0f a2 f4", rax=0x1234, rcx=0x56)
    exit_ = guest.run()
    assert isinstance(exit_, Cpuid)
    assert (exit_.leaf, exit_.subleaf) == (0x1234, 0x56)
    exit_.data[:] = bytes(range(16))
    assert guest.run() == Hlt()
    regs = guest.vcpu.get_regs()
    assert (regs.rax, regs.rdx) == (0x0302_0100, 0x0F0E_0D0C)


def test_supported_features_can_all_be_told_to_a_guest(engine: Engine) -> None:
    with Guest(engine, irqchip=True) as guest:
        guest.vcpu.set_cpuid(replace(entry) for entry in engine.supported_cpuid())


def test_the_tsc_frequency_is_a_plausible_one(engine: Engine) -> None:
    assert 100_000 < engine.tsc_khz() < 10_000_000


def test_events_of_a_quiet_processor_are_none(guest: Guest) -> None:
    guest.load("f4")
    assert guest.run() == Hlt()
    assert guest.vcpu.get_events() == Events()
