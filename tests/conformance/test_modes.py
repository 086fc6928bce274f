"""Entering real, protected and long mode by set_sregs, and what the processor then is."""

from __future__ import annotations

from bivisor.abi.x86 import Cr0, Efer, Rflags
from bivisor.cpu.exits import Hlt, Mmio
from bivisor.cpu.registers import Regs

from .conftest import Lacking
from .guest import CODE32, DATA, Guest


def test_a_new_processor_is_at_the_reset_vector(guest: Guest) -> None:
    sregs, regs = guest.vcpu.get_sregs(), guest.vcpu.get_regs()
    assert (sregs.cs.base + regs.rip, regs.rip) == (0xFFFF_FFF0, 0xFFF0)
    assert not sregs.cr0 & (Cr0.PE | Cr0.PG)
    assert sregs.cr0 & (Cr0.CD | Cr0.NW)
    assert regs.rflags == 2


def test_the_first_fetch_after_reset_goes_to_the_top_of_4_gib(guest: Guest) -> None:
    exit_ = guest.vcpu.run(lambda exit_: False)
    if isinstance(exit_, Mmio):  # an engine may as well give up with an internal error: nothing can be fetched there
        assert exit_.address & ~0xF == 0xFFFF_FFF0


def test_real_mode_addresses_by_segments(guest: Guest) -> None:
    guest.memory.write(0x2_3456, b"\x42")
    guest.load(
        """
        b8 00 20    ; mov ax, 0x2000
        8e c0       ; mov es, ax
        26 a0 56 34 ; mov al, es:[0x3456]
        f4          ; hlt
        """,
        16,
    )
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax & 0xFF == 0x42
    assert guest.vcpu.get_sregs().es.base == 0x2_0000


def test_protected_mode_has_32_bit_operands(guest: Guest) -> None:
    guest.load(
        """
        b8 =0x89abcdef        ; mov eax, 0x89abcdef
        a3 =0x3000            ; mov [0x3000], eax
        f4                    ; hlt
        """,
        32,
    )
    assert guest.run() == Hlt()
    assert guest.memory.read_u32(DATA) == 0x89AB_CDEF
    assert guest.vcpu.get_sregs().cs.selector == CODE32


def test_long_mode_has_64_bit_operands(guest: Guest) -> None:
    guest.load(
        """
        48 b8 =8:0x1122334455667788   ; mov rax, 0x1122334455667788
        49 89 c7                      ; mov r15, rax
        49 c1 cf 20                   ; ror r15, 32
        f4                            ; hlt
        """
    )
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().r15 == 0x5566_7788_1122_3344
    assert guest.vcpu.get_sregs().efer & Efer.LMA


def test_a_guest_goes_from_real_to_protected_mode_by_itself(guest: Guest) -> None:
    guest.load(
        """
                0f 01 16 =2:gdtr      ; lgdt [gdtr]
                0f 20 c0              ; mov eax, cr0
                66 83 c8 01           ; or eax, 1
                0f 22 c0              ; mov cr0, eax
                66 ea =flat 18 00     ; jmp 0x18:flat
        flat:   66 b8 10 00           ; mov ax, 0x10
                8e d8                 ; mov ds, ax
                c7 05 =0x3000 =0x600d ; mov dword [0x3000], 0x600d
                f4                    ; hlt
        gdtr:   4f 00 =0x9000
        """,
        16,
    )
    assert guest.run() == Hlt()
    assert guest.memory.read_u32(DATA) == 0x600D
    sregs = guest.vcpu.get_sregs()
    assert sregs.cr0 & Cr0.PE
    assert (sregs.cs.selector, sregs.cs.db) == (0x18, 1)


def test_paging_in_protected_mode_translates(guest: Guest, lacking: Lacking) -> None:
    lacking("paging in 32-bit protected mode")
    guest.load("a1 =0x00403000 f4", 32, paged=True)  # mov eax, [4 MiB + DATA]; hlt
    guest.memory.write(0x1_6004, (0x87).to_bytes(4, "little"))  # the second 4 MiB are the first once more
    guest.memory.write(DATA, b"\x0d\xf0\x00\x00")
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax == 0xF00D


def test_translate_walks_the_page_tables(guest: Guest) -> None:
    guest.load("f4")
    guest.memory.write(0x1_2000 + 8 * 5, (0x87).to_bytes(8, "little"))  # 10 MiB is mapped to 0
    assert guest.run() == Hlt()
    assert guest.vcpu.translate(0x1234) == 0x1234
    assert guest.vcpu.translate((10 << 20) + 0x321) == 0x321
    assert guest.vcpu.translate(1 << 40) is None


def test_registers_are_what_was_set(guest: Guest) -> None:
    guest.load("f4")
    wanted = Regs(**{name: 0x1111_0000_0000_0000 + number for number, name in enumerate(Regs.__slots__)})
    wanted.rip, wanted.rflags = 0x1000, Rflags.FIXED | Rflags.CF | Rflags.ZF
    guest.vcpu.set_regs(wanted)
    assert guest.vcpu.get_regs() == wanted
