"""Several processors: INIT and SIPI start them (SDM 3A 9.4.4), each runs in a thread of its own."""

from __future__ import annotations

import threading

import pytest

from bivisor.cpu.exits import Exit, Interrupted, PortIo

from .guest import DATA, DONE, PATIENCE, Guest
from .test_apic import ENABLE_XAPIC, IDLE

SEND_INIT_SIPI = (
    ENABLE_XAPIC
    + """
        c7 83 =0x310 =0x01000000        ; ICR high: to APIC id 1
        c7 83 =0x300 =0x4500            ; ICR low: INIT
        c7 83 =0x310 =0x01000000
        c7 83 =0x300 =0x4603            ; SIPI to page 3
        e6 f4                           ; out DONE, al
"""
    + IDLE
)


@pytest.fixture
def pair(apic_guest: Guest) -> Guest:
    if apic_guest.engine.max_vcpus < 2:
        pytest.skip("this engine has one processor a machine")
    apic_guest.machine.create_vcpu(1)
    return apic_guest


def test_a_second_processor_starts_at_the_page_of_the_sipi(pair: Guest) -> None:
    pair.memory.write(DATA, bytes.fromhex("b099 e690 f4"))  # mov al, 0x99; out 0x90, al; hlt
    pair.load(SEND_INIT_SIPI)
    came: list[Exit] = []
    second = pair.machine.vcpus[1]
    thread = threading.Thread(target=lambda: came.append(second.run()))
    thread.start()
    pair.out(DONE)
    thread.join(PATIENCE)
    second.kick()
    thread.join()
    (exit_,) = came
    assert isinstance(exit_, PortIo)
    assert (exit_.port, exit_.data[0]) == (0x90, 0x99)
    sregs = second.get_sregs()
    assert (sregs.cs.selector, sregs.cs.base) == (DATA >> 4, DATA)


def test_a_processor_that_waits_for_its_sipi_can_be_kicked(pair: Guest) -> None:
    second = pair.machine.vcpus[1]
    timer = threading.Timer(0.01, second.kick)
    timer.start()
    assert second.run() == Interrupted()
    timer.join()


def test_processors_are_numbered_by_their_apic_ids(pair: Guest) -> None:
    assert [vcpu.index for vcpu in pair.machine.vcpus] == [0, 1]
