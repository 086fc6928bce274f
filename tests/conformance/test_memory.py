"""Memory slots: mapped and taken away, read-only, and which pages were written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bivisor.cpu.contract import Engine
from bivisor.cpu.exits import Hlt, Mmio
from bivisor.errors import BivisorError
from bivisor.memory import PAGE, MemoryRegion, Slot

from .guest import DATA, Guest

EXTRA = 0x20_0000


@pytest.fixture
def region() -> Iterator[MemoryRegion]:
    with MemoryRegion(8 * PAGE) as made:
        yield made


def test_guest_and_host_see_the_same_bytes(guest: Guest) -> None:
    guest.memory.write(DATA, b"host")
    guest.load(
        """
        8b 03          ; mov eax, [rbx]
        c7 43 08 67756573   ; mov dword [rbx + 8], "gues"
        f4             ; hlt
        """,
        rbx=DATA,
    )
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax == int.from_bytes(b"host", "little")
    assert guest.memory.read(DATA + 8, 4) == b"gues"


def test_code_that_the_host_rewrites_runs_as_rewritten(guest: Guest) -> None:
    for value in (1, 2, 3):
        guest.load(f"b0 {value:02x} f4")  # mov al, value; hlt
        assert guest.run() == Hlt()
        assert guest.vcpu.get_regs().rax & 0xFF == value


def test_code_that_the_guest_rewrites_runs_as_rewritten(guest: Guest) -> None:
    guest.load(
        """
                c6 04 25 =there 02   ; mov byte [there], 2 (in long mode an absolute address)
                eb 00                ; jmp to the next instruction
                b0                   ; mov al, …
        there:  01
                f4                   ; hlt
        """
    )
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax & 0xFF == 2


def test_a_slot_that_is_added_is_memory_and_one_that_is_taken_away_is_not(guest: Guest, region: MemoryRegion) -> None:
    slot = Slot(EXTRA, region.size, region)
    region.view[0x10:0x14] = b"\x01\x02\x03\x04"
    load = "8b 03 f4"  # mov eax, [rbx]; hlt
    guest.machine.map(slot)
    guest.load(load, rbx=EXTRA + 0x10)
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax == 0x0403_0201
    guest.machine.unmap(slot)
    guest.load(load, rbx=EXTRA + 0x10)
    exit_ = guest.run()
    assert isinstance(exit_, Mmio)
    assert (exit_.address, exit_.length) == (EXTRA + 0x10, 4)


def test_a_slot_can_be_mapped_again_elsewhere(guest: Guest, region: MemoryRegion) -> None:
    region.view[0] = 0x5A
    for gpa in (EXTRA, 2 * EXTRA, EXTRA):
        slot = Slot(gpa, region.size, region)
        guest.machine.map(slot)
        guest.load("8a 03 f4", rbx=gpa)
        assert guest.run() == Hlt()
        assert guest.vcpu.get_regs().rax & 0xFF == 0x5A
        guest.machine.unmap(slot)


def test_a_read_only_slot_is_read_in_place_and_its_writes_come_out(region: MemoryRegion, guest: Guest) -> None:
    region.view[0] = 0x77
    guest.machine.map(Slot(EXTRA, region.size, region, readonly=True))
    guest.load("8a 03 88 4b 01 f4", rbx=EXTRA, rcx=0x99)  # mov al, [rbx]; mov [rbx + 1], cl; hlt
    exit_ = guest.run()
    assert isinstance(exit_, Mmio)
    assert (exit_.address, exit_.length, exit_.is_write, exit_.data[0]) == (EXTRA + 1, 1, True, 0x99)
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax & 0xFF == 0x77
    assert region.view[1] == 0


def test_dirty_pages_are_those_that_the_guest_wrote(engine: Engine, region: MemoryRegion) -> None:
    with Guest(engine) as guest:
        slot = Slot(EXTRA, region.size, region)
        guest.machine.map(slot, log_dirty=True)
        store = "88 03 88 83 =0x3fff f4"  # mov [rbx], al; mov [rbx + 0x3fff], al; hlt
        guest.load(store, rbx=EXTRA + PAGE)
        guest.machine.dirty_pages(slot)
        assert guest.run() == Hlt()
        assert guest.machine.dirty_pages(slot) == [EXTRA + PAGE, EXTRA + 4 * PAGE]
        assert guest.machine.dirty_pages(slot) == [], "asking clears the log"
        guest.load(store, rbx=EXTRA + PAGE)
        assert guest.run() == Hlt()
        assert guest.machine.dirty_pages(slot) == [EXTRA + PAGE, EXTRA + 4 * PAGE]


def test_a_slot_that_is_not_mapped_has_no_dirty_pages(guest: Guest, region: MemoryRegion) -> None:
    slot = Slot(EXTRA, region.size, region)
    with pytest.raises(BivisorError):
        guest.machine.dirty_pages(slot)
    with pytest.raises(BivisorError):
        guest.machine.unmap(slot)
