"""ioeventfd: a write of the guest signals a descriptor, and nothing comes out."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bivisor.cpu.exits import Hlt, Mmio, PortIo

from .guest import MMIO, Guest


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield made
    os.close(made)


def signals(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


STORE = "89 03 f4"  # mov [rbx], eax; hlt
OUT = "66 ef f4"  # out dx, ax; hlt


def test_a_store_signals_and_does_not_come_out(guest: Guest, fd: int) -> None:
    guest.machine.ioeventfd(fd, MMIO + 0x10, 4)
    guest.load(STORE, rbx=MMIO + 0x10)
    assert guest.run() == Hlt()
    assert signals(fd) == 1


def test_a_port_write_signals_and_does_not_come_out(guest: Guest, fd: int) -> None:
    guest.machine.ioeventfd(fd, 0xC050, 2, pio=True)
    guest.load(OUT, rdx=0xC050)
    assert guest.run() == Hlt()
    assert signals(fd) == 1


def test_length_0_takes_any_width(guest: Guest, fd: int) -> None:
    guest.machine.ioeventfd(fd, MMIO, 0)
    guest.load("88 03 89 03 f4", rbx=MMIO)
    assert guest.run() == Hlt()
    assert signals(fd) == 2


def test_another_width_comes_out(guest: Guest, fd: int) -> None:
    guest.machine.ioeventfd(fd, MMIO, 4)
    guest.load("88 03 f4", rbx=MMIO)
    assert isinstance(guest.run(), Mmio)
    assert signals(fd) == 0


def test_only_the_matching_value_signals(guest: Guest, fd: int) -> None:
    guest.machine.ioeventfd(fd, 0xC050, 2, pio=True, datamatch=3)
    guest.load(OUT, rdx=0xC050, rax=4)
    assert isinstance(guest.run(), PortIo)
    assert guest.run() == Hlt()
    assert signals(fd) == 0
    guest.load(OUT, rdx=0xC050, rax=3)
    assert guest.run() == Hlt()
    assert signals(fd) == 1


def test_one_that_is_removed_comes_out_again(guest: Guest, fd: int) -> None:
    guest.machine.ioeventfd(fd, MMIO, 4)
    guest.machine.remove_ioeventfd(fd, MMIO, 4)
    guest.load(STORE, rbx=MMIO)
    assert isinstance(guest.run(), Mmio)
    assert signals(fd) == 0


def test_a_load_comes_out(guest: Guest, fd: int) -> None:
    guest.machine.ioeventfd(fd, MMIO, 4)
    guest.load("8b 03 f4", rbx=MMIO)
    assert isinstance(guest.run(), Mmio)
    assert signals(fd) == 0
