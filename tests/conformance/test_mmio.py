"""Accesses to guest-physical addresses that are not memory (KVM_EXIT_MMIO)."""

from __future__ import annotations

import pytest

from bivisor.cpu.exits import Hlt, Mmio

from .guest import MMIO, Guest

STORE = {1: "88 03", 2: "66 89 03", 4: "89 03", 8: "48 89 03"}  # mov [rbx], al/ax/eax/rax
LOAD = {1: "8a 03", 2: "66 8b 03", 4: "8b 03", 8: "48 8b 03"}
VALUE = 0x8877_6655_4433_2211


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_store_carries_address_and_value(guest: Guest, size: int) -> None:
    guest.load(f"{STORE[size]} f4", rax=VALUE, rbx=MMIO + 0x18)
    exit_ = guest.run()
    assert isinstance(exit_, Mmio)
    assert (exit_.address, exit_.length, exit_.is_write) == (MMIO + 0x18, size, True)
    assert bytes(exit_.data) == VALUE.to_bytes(8, "little")[:size]
    assert guest.run() == Hlt()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_load_takes_what_the_host_fills_in(guest: Guest, size: int) -> None:
    guest.load(f"{LOAD[size]} f4", rax=0, rbx=MMIO)
    exit_ = guest.run()
    assert isinstance(exit_, Mmio)
    assert (exit_.address, exit_.length, exit_.is_write, len(exit_.data)) == (MMIO, size, False, size)
    exit_.data[:] = VALUE.to_bytes(8, "little")[:size]
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax == VALUE & ((1 << 8 * size) - 1)


def test_a_store_of_8_bytes_comes_whole_or_in_two_halves(guest: Guest) -> None:
    guest.load(f"{STORE[8]} f4", rax=VALUE, rbx=MMIO)
    seen = bytearray()

    def handler(exit_: object) -> bool:
        if not isinstance(exit_, Mmio):
            return False
        assert (exit_.address, exit_.is_write) == (MMIO + len(seen), True)
        seen.extend(exit_.data)
        return True

    assert guest.run(handler) == Hlt()
    assert seen == VALUE.to_bytes(8, "little")


def test_a_load_of_8_bytes_comes_whole_or_in_two_halves(guest: Guest) -> None:
    guest.load(f"{LOAD[8]} f4", rbx=MMIO)
    value = VALUE.to_bytes(8, "little")

    def handler(exit_: object) -> bool:
        if not isinstance(exit_, Mmio):
            return False
        at = exit_.address - MMIO
        exit_.data[:] = value[at : at + exit_.length]
        return True

    assert guest.run(handler) == Hlt()
    assert guest.vcpu.get_regs().rax == VALUE


def test_a_read_modify_write_reads_and_then_writes(guest: Guest) -> None:
    guest.load(
        """
        83 03 05   ; add dword [rbx], 5
        f4         ; hlt
        """,
        rbx=MMIO,
    )
    seen = []

    def handler(exit_: object) -> bool:
        if not isinstance(exit_, Mmio):
            return False
        seen.append(exit_.is_write)
        if exit_.is_write:
            assert int.from_bytes(exit_.data, "little") == 105
        else:
            exit_.data[:] = (100).to_bytes(4, "little")
        return True

    assert guest.run(handler) == Hlt()
    assert seen == [False, True]


def test_two_loads_of_one_address_are_two_exits(guest: Guest) -> None:
    guest.load(
        """
        8b 03   ; mov eax, [rbx]
        8b 0b   ; mov ecx, [rbx]
        f4      ; hlt
        """,
        rbx=MMIO,
    )
    for value in (1, 2):
        exit_ = guest.run()
        assert isinstance(exit_, Mmio)
        exit_.data[:] = value.to_bytes(4, "little")
    assert guest.run() == Hlt()
    regs = guest.vcpu.get_regs()
    assert (regs.rax, regs.rcx) == (1, 2)


def test_a_string_move_to_a_device_writes_every_item(guest: Guest) -> None:
    guest.memory.write(0x3000, b"abcd")
    guest.load("f3 a4 f4", rsi=0x3000, rdi=MMIO, rcx=4)  # rep movsb; hlt
    seen = bytearray()

    def handler(exit_: object) -> bool:
        if isinstance(exit_, Mmio):
            assert exit_.is_write
            seen.extend(exit_.data)
            return True
        return False

    assert guest.run(handler) == Hlt()
    assert seen == b"abcd"


def test_real_mode_reaches_devices_below_1_mib(guest: Guest) -> None:
    guest.load(
        """
        b8 00 d0     ; mov ax, 0xd000
        8e d8        ; mov ds, ax
        a0 34 12     ; mov al, [0x1234]
        f4           ; hlt
        """,
        16,
    )
    exit_ = guest.run()
    assert isinstance(exit_, Mmio)
    assert (exit_.address, exit_.length, exit_.is_write) == (MMIO + 0x1234, 1, False)
    exit_.data[0] = 0x99
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax & 0xFF == 0x99
