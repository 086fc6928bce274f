"""IN, OUT and their string forms (KVM_EXIT_IO)."""

from __future__ import annotations

import pytest

from bivisor.cpu.exits import Direction, Hlt, PortIo

from .guest import DATA, Guest

OUTS = {
    1: "ee",  # out dx, al
    2: "66 ef",  # out dx, ax
    4: "ef",  # out dx, eax
}
INS = {1: "ec", 2: "66 ed", 4: "ed"}
OUTSB = {1: "6e", 2: "66 6f", 4: "6f"}
INSB = {1: "6c", 2: "66 6d", 4: "6d"}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_out_carries_port_and_value(guest: Guest, size: int) -> None:
    guest.load(f"{OUTS[size]} f4", rax=0x8877_6655, rdx=0x1234)
    exit_ = guest.run()
    assert isinstance(exit_, PortIo)
    assert (exit_.direction, exit_.port, exit_.size, exit_.count) == (Direction.OUT, 0x1234, size, 1)
    assert bytes(exit_.data) == bytes.fromhex("55667788")[:size]
    assert guest.run() == Hlt()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_in_takes_what_the_host_fills_in(guest: Guest, size: int) -> None:
    guest.load(f"{INS[size]} f4", rax=0x1111_1111_1111_1111, rdx=0x71)
    exit_ = guest.run()
    assert isinstance(exit_, PortIo)
    assert (exit_.direction, exit_.port, exit_.size, len(exit_.data)) == (Direction.IN, 0x71, size, size)
    exit_.data[:] = bytes.fromhex("aabbccdd")[:size]
    assert guest.run() == Hlt()
    upper = {1: 0x1111_1111_1111_11AA, 2: 0x1111_1111_1111_BBAA, 4: 0xDDCC_BBAA}
    assert guest.vcpu.get_regs().rax == upper[size]


def test_the_immediate_forms_reach_ports_below_256(guest: Guest) -> None:
    guest.load(
        """
        e6 80   ; out 0x80, al
        e4 64   ; in al, 0x64
        f4      ; hlt
        """,
        rax=0x5A,
    )
    assert guest.out(0x80) == 0x5A
    exit_ = guest.run()
    assert isinstance(exit_, PortIo)
    assert (exit_.direction, exit_.port) == (Direction.IN, 0x64)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_rep_outs_sends_every_item_in_order(guest: Guest, size: int) -> None:
    sent = bytes(range(1, 1 + 12 * size))
    guest.memory.write(DATA, sent)
    guest.load(f"f3 {OUTSB[size]} f4", rsi=DATA, rcx=12, rdx=0x3F8)
    seen = bytearray()

    def handler(exit_: object) -> bool:
        if isinstance(exit_, PortIo):
            assert (exit_.direction, exit_.port, exit_.size) == (Direction.OUT, 0x3F8, size)
            assert len(exit_.data) == exit_.size * exit_.count
            seen.extend(exit_.data)
            return True
        return False

    assert guest.run(handler) == Hlt()
    assert bytes(seen) == sent
    regs = guest.vcpu.get_regs()
    assert (regs.rcx, regs.rsi) == (0, DATA + len(sent))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_rep_ins_stores_every_item_in_order(guest: Guest, size: int) -> None:
    guest.load(f"f3 {INSB[size]} f4", rdi=DATA, rcx=9, rdx=0x1F0)
    sent = bytes(range(100, 100 + 9 * size))
    done = 0

    def handler(exit_: object) -> bool:
        nonlocal done
        if isinstance(exit_, PortIo):
            exit_.data[:] = sent[done : done + len(exit_.data)]
            done += len(exit_.data)
            return True
        return False

    assert guest.run(handler) == Hlt()
    assert guest.memory.read(DATA, len(sent)) == sent
    assert guest.vcpu.get_regs().rdi == DATA + len(sent)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("size", [2, 4])
def test_gathered_rep_ins_comes_in_few_exits_and_stores_every_item(guest: Guest, size: int, bits: int) -> None:
    """A page of items: neither engine comes out for each of them, in code that is reached in a loop as well."""
    guest.machine.gather_strings()
    words = INSB[size]
    if bits == 16:
        words = words.removeprefix("66 ") if size == 2 else f"66 {words}"
    total = 2048 // size
    back = -(9 + len(words.split())) & 0xFF
    guest.load(f"89 f1 89 df f3 {words} ff cd 75 {back:02x} f4", bits, rsi=total, rbx=DATA, rbp=3, rdx=0x1F0)
    done, counts = 0, []

    def handler(exit_: object) -> bool:
        nonlocal done
        if isinstance(exit_, PortIo):
            counts.append(exit_.count)
            for at in range(0, len(exit_.data), size):
                exit_.data[at : at + size] = (done & 0xFFFF).to_bytes(size, "little")
                done += 1
            return True
        return False

    assert guest.run(handler) == Hlt()
    expected = b"".join((n & 0xFFFF).to_bytes(size, "little") for n in range(2 * total, 3 * total))
    assert guest.memory.read(DATA, 2048) == expected
    assert sum(counts) == 3 * total
    assert len(counts) <= 12


def test_a_single_outs_moves_rsi(guest: Guest) -> None:
    guest.memory.write(DATA, b"Z")
    guest.load("6e f4", rsi=DATA, rdx=0x402)
    assert guest.out(0x402) == ord("Z")
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rsi == DATA + 1


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_ports_work_in_every_mode(guest: Guest, bits: int) -> None:
    guest.load("ee f4", bits, rax=0x77, rdx=0x92)
    assert guest.out(0x92) == 0x77
    assert guest.run() == Hlt()
