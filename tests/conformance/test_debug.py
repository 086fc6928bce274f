"""What the host stops at: single steps, its own breakpoints (KVM_EXIT_DEBUG)."""

from __future__ import annotations

import pytest

from bivisor.abi.x86 import Vector
from bivisor.cpu.exits import Debug, Hlt, Interrupted, PortIo
from bivisor.cpu.registers import GuestDebug

from .conftest import Lacking
from .guest import CODE, Guest


def test_a_single_step_stops_after_each_instruction(guest: Guest) -> None:
    guest.load(
        """
        90          ; nop
        b0 01       ; mov al, 1
        ff c3       ; inc ebx
        f4          ; hlt
        """
    )
    guest.vcpu.set_debug(GuestDebug(single_step=True))
    stops = [guest.run() for _ in range(3)]
    assert [(type(stop), getattr(stop, "pc", None)) for stop in stops] == [
        (Debug, CODE + 1),
        (Debug, CODE + 3),
        (Debug, CODE + 5),
    ]
    assert all(isinstance(stop, Debug) and stop.exception == Vector.DB for stop in stops)
    guest.vcpu.set_debug(GuestDebug())
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rbx == 1


def test_a_software_breakpoint_stops_at_the_int3(guest: Guest, lacking: Lacking, emulated_processor: Lacking) -> None:
    lacking("INT3")
    emulated_processor("INT3 does not leave the guest by the exception bitmap")
    guest.load("90 cc f4")
    guest.vcpu.set_debug(GuestDebug(software_breakpoints=True))
    stop = guest.run()
    assert isinstance(stop, Debug)
    assert (stop.exception, stop.pc) == (Vector.BP, CODE + 1)
    assert guest.vcpu.get_regs().rip == CODE + 1


def test_a_hardware_breakpoint_stops_before_the_instruction(guest: Guest, emulated_processor: Lacking) -> None:
    emulated_processor("VMRUN does not arm the breakpoints of DR7")
    guest.load(
        """
        b0 01   ; mov al, 1
        b0 02   ; mov al, 2
        f4      ; hlt
        """
    )
    guest.vcpu.set_debug(GuestDebug(addresses=(CODE + 2,)))
    stop = guest.run()
    assert isinstance(stop, Debug)
    assert (stop.exception, stop.pc, stop.dr6 & 0xF) == (Vector.DB, CODE + 2, 1)
    assert guest.vcpu.get_regs().rax & 0xFF == 1
    guest.vcpu.set_debug(GuestDebug())
    assert guest.run() == Hlt()


def test_breakpoints_of_the_host_are_not_seen_by_the_guest(guest: Guest) -> None:
    guest.load("90 90 f4")
    guest.vcpu.set_debug(GuestDebug(single_step=True))
    guest.run()
    assert not guest.vcpu.get_regs().rflags & 0x100, "TF is the host's"


def test_a_breakpoint_that_was_away_for_a_while_stops_again(guest: Guest, emulated_processor: Lacking) -> None:
    emulated_processor("VMRUN does not arm the breakpoints of DR7")
    guest.load(
        """
        ff c0   ; inc eax
        eb fc   ; jmp back
        """
    )
    there = GuestDebug(addresses=(CODE,))
    guest.vcpu.set_debug(there)
    guest.run()
    guest.vcpu.set_debug(GuestDebug(single_step=True))
    guest.run()
    guest.vcpu.set_debug(there)
    stop = guest.run()
    assert isinstance(stop, Debug)
    assert stop.pc == CODE
    assert guest.vcpu.get_regs().rax & 0xFF == 1


def test_a_breakpoint_that_the_host_led_the_guest_away_from_stops_the_next_time(
    guest: Guest, emulated_processor: Lacking
) -> None:
    emulated_processor("VMRUN does not arm the breakpoints of DR7")
    guest.load(
        """
        ff c0   ; inc eax
        eb fc   ; jmp back
        """
    )
    guest.vcpu.set_debug(GuestDebug(addresses=(CODE,)))
    guest.run()
    regs = guest.vcpu.get_regs()
    regs.rip = CODE + 2
    guest.vcpu.set_regs(regs)
    stop = guest.run()
    assert isinstance(stop, Debug)
    assert (stop.pc, guest.vcpu.get_regs().rax & 0xFF) == (CODE, 0)


def test_an_out_in_place_of_an_int3_stops_before_it_on_every_kvm(guest: Guest) -> None:
    if guest.engine.name != "kvm":
        pytest.skip("soft stops at addresses")
    guest.load("90 ee f4")
    guest.vcpu.set_debug(GuestDebug(outs=frozenset({CODE + 1})))
    stop = guest.run()
    assert isinstance(stop, Debug)
    assert (stop.exception, stop.pc) == (Vector.BP, CODE + 1)
    assert guest.vcpu.get_regs().rip == CODE + 1
    guest.vcpu.set_debug(GuestDebug())
    stops = [guest.vcpu.run() for _ in range(2)]
    assert next(type(stop) for stop in stops if not isinstance(stop, Interrupted)) is PortIo, "it is an OUT again"
