"""run(), its handler, and kick(): how control comes back."""

from __future__ import annotations

import threading

import pytest

from bivisor.cpu.exits import Exit, Hlt, Interrupted, PortIo

from .guest import CODE, PATIENCE, Guest

LOOP = "eb fe"  # jmp to itself
OUT_LOOP = "e6 80 eb fc"  # 1: out 0x80, al; jmp 1b


def test_a_handler_that_says_true_keeps_the_guest_going(guest: Guest) -> None:
    guest.load(OUT_LOOP)
    seen = 0

    def handler(exit_: Exit) -> bool:
        nonlocal seen
        seen += 1
        return seen < 1000

    assert isinstance(guest.run(handler), PortIo)
    assert seen == 1000
    assert guest.vcpu.counters["PortIo"] == 1000


def test_a_handler_that_says_false_gets_the_exit_returned(guest: Guest) -> None:
    guest.load("e6 80 f4")
    got = guest.run(lambda exit_: False)
    assert isinstance(got, PortIo)
    assert got.port == 0x80
    assert guest.run(lambda exit_: False) == Hlt()


def test_an_exception_in_the_handler_comes_through(guest: Guest) -> None:
    guest.load("e6 80 f4")

    def handler(exit_: Exit) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guest.run(handler)
    guest.vcpu.get_regs()


def test_a_kick_before_run_is_not_lost(guest: Guest) -> None:
    guest.load(LOOP)
    guest.vcpu.kick()
    assert guest.vcpu.run() == Interrupted()


def test_kicks_before_run_are_one(guest: Guest) -> None:
    guest.load("f4")
    guest.vcpu.kick()
    guest.vcpu.kick()
    assert guest.vcpu.run() == Interrupted()
    assert guest.run() == Hlt()


def test_a_kick_ends_a_running_guest(guest: Guest) -> None:
    guest.load(LOOP)
    timer = threading.Timer(0.01, guest.vcpu.kick)
    timer.start()
    assert guest.vcpu.run() == Interrupted()
    timer.join()


def test_a_kick_inside_the_handler_comes_out_at_the_next_entry(guest: Guest) -> None:
    guest.load(OUT_LOOP)

    def handler(exit_: Exit) -> bool:
        guest.vcpu.kick()
        return True

    assert guest.vcpu.run(handler) == Interrupted()


def test_a_kick_finishes_the_instruction_that_came_out(guest: Guest) -> None:
    guest.load("e4 64 f4")  # in al, 0x64; hlt
    exit_ = guest.run()
    assert isinstance(exit_, PortIo)
    exit_.data[0] = 0x5A
    guest.vcpu.kick()
    assert guest.vcpu.run() == Interrupted()
    regs = guest.vcpu.get_regs()
    assert (regs.rip, regs.rax & 0xFF) == (CODE + 2, 0x5A)
    assert guest.run() == Hlt()


def test_the_handler_is_not_asked_about_a_kick(guest: Guest) -> None:
    guest.load(LOOP)
    guest.vcpu.kick()
    seen: list[Exit] = []

    def handler(exit_: Exit) -> bool:
        seen.append(exit_)
        return True

    assert guest.vcpu.run(handler) == Interrupted()
    assert not seen


@pytest.mark.parametrize("code", [LOOP, OUT_LOOP], ids=["silent", "exiting"])
def test_of_many_kicks_from_another_thread_none_is_lost(guest: Guest, code: str) -> None:
    guest.load(code)
    rounds = 300
    back = threading.Semaphore(0)
    ended = threading.Event()

    def processor() -> None:
        for _ in range(rounds):
            while guest.vcpu.run(lambda exit_: True) != Interrupted():
                pass
            back.release()
        ended.set()

    thread = threading.Thread(target=processor, daemon=True)
    thread.start()
    for number in range(rounds):
        guest.vcpu.kick()
        assert back.acquire(timeout=PATIENCE), f"kick {number} was lost"
    assert ended.wait(PATIENCE)
    thread.join()


def test_a_kick_ends_a_processor_that_halts_in_the_engine(apic_guest: Guest) -> None:
    apic_guest.load("fa f4")  # cli; hlt
    timer = threading.Timer(0.01, apic_guest.vcpu.kick)
    timer.start()
    assert apic_guest.vcpu.run() in (Interrupted(), Hlt())
    timer.join()


def test_a_processor_runs_in_any_thread(guest: Guest) -> None:
    guest.load("e6 80 f4")
    got: list[Exit] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: got.append(guest.vcpu.run()))
        thread.start()
        thread.join(PATIENCE)
    assert isinstance(got[0], PortIo)
    assert got[1] == Hlt()


def test_counters_tell_exits_by_class(guest: Guest) -> None:
    guest.load("e6 80 e6 80 a2 =8:0xd0000 f4")
    while guest.run() != Hlt():
        pass
    counters = guest.vcpu.counters
    assert (counters["PortIo"], counters["Mmio"], counters["Hlt"]) == (2, 1, 1)
