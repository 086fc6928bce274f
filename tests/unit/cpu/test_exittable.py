"""Exits of a processor that somebody listens to, and that nothing is in their way when nobody does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bivisor.cpu.exits import Direction, Exit, Hlt, Hypercall, Interrupted, Mmio, PortIo, RdMsr, WrMsr
from bivisor.cpu.exittable import ExitTable
from bivisor.events import Answer, Delay, Deny, Drop, Event, Events, Kind, Verdict
from bivisor.events import Exit as ExitEvent


def data(value: int, size: int = 8) -> memoryview:
    return memoryview(bytearray(value.to_bytes(size, "little")))


class Machine:
    """Handlers that write down what they get, and answer each read with 0x55."""

    def __init__(self) -> None:
        self.seen: list[Exit] = []
        self.plain: dict[type[Any], Callable[[Any], bool]] = {
            PortIo: self._io,
            Mmio: self._mmio,
            RdMsr: self._rdmsr,
            WrMsr: self._seen,
            Hypercall: self._call,
        }
        self.table = ExitTable(self.plain, lambda exit_: "COM1" if isinstance(exit_, PortIo) else "")
        self.events = Events()
        self.sites = self.table.watch(self.events, 3, 1)

    def _seen(self, exit_: Exit) -> bool:
        self.seen.append(exit_)
        return True

    def _io(self, exit_: PortIo) -> bool:
        if exit_.direction is Direction.IN:
            exit_.data[: exit_.size] = b"\x55" * exit_.size
        return self._seen(exit_)

    def _mmio(self, exit_: Mmio) -> bool:
        if not exit_.is_write:
            exit_.data[: exit_.length] = b"\x55" * exit_.length
        return self._seen(exit_)

    def _rdmsr(self, exit_: RdMsr) -> bool:
        exit_.data[0] = 0x55
        return self._seen(exit_)

    def _call(self, exit_: Hypercall) -> bool:
        exit_.result[0] = 0x55
        return self._seen(exit_)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_the_handlers_themselves_are_in_the_table_while_nobody_listens(machine: Machine) -> None:
    assert machine.table.handlers == machine.plain
    with machine.events.subscribe([Kind.EXIT, Kind.ENTRY]):
        assert machine.table.handlers != machine.plain
        assert Hlt in machine.table.handlers
    assert machine.table.handlers == machine.plain
    with machine.events.subscribe([Kind.EXIT, Kind.ENTRY], domains=[2]):
        assert machine.table.handlers == machine.plain


def test_an_exit_is_told_with_what_was_read_and_the_entry_after_it(machine: Machine) -> None:
    with machine.events.subscribe([Kind.EXIT, Kind.ENTRY]) as heard:
        machine.table.entering()
        assert machine.table.handle(PortIo(Direction.IN, 0x3F8, 1, 1, data(0, 1)))
        assert not machine.table.handle(Hlt())
        machine.table.left(Hlt())
        machine.table.left(Interrupted())
        events = heard.take()
    assert [event.name for event in events] == ["entry", "PortIo", "entry", "Hlt", "Interrupted"]
    read, halt = events[1], events[3]
    assert isinstance(read, ExitEvent) and isinstance(halt, ExitEvent)
    assert (read.domain, read.vcpu, read.address, read.value, read.device) == (3, 1, 0x3F8, 0x55, "COM1")
    assert (read.is_write, read.ended, halt.ended) == (False, False, True)
    assert read.access is None  # nobody keeps what the next exit uses again


def intercepted(machine: Machine, exit_: Exit, verdict: Verdict | None, value: int | None = None) -> bool:
    def before(event: Event) -> Verdict | None:
        assert isinstance(event, ExitEvent) and event.access is exit_
        if value is not None:
            event.value = value
        return verdict

    with machine.events.intercept(Kind.EXIT, before):
        return machine.table.handle(exit_)


def test_a_write_can_be_changed_and_dropped(machine: Machine) -> None:
    out = PortIo(Direction.OUT, 0x3F8, 2, 1, data(0x1234, 2))
    assert intercepted(machine, out, None, 0x4321)
    assert machine.seen == [out] and bytes(out.data) == b"\x21\x43"
    for verdict in (Drop(), Deny(), Answer(7)):
        assert intercepted(machine, Mmio(0x9000, 4, True, data(1)), verdict)
    assert machine.seen == [out]
    assert intercepted(machine, WrMsr(0x10, 1, data(0, 1)), None, 2)
    assert isinstance(machine.seen[-1], WrMsr) and machine.seen[-1].value == 2


def test_a_read_can_be_answered_refused_and_changed(machine: Machine) -> None:
    for verdict, expected in ((Answer(0x99), 0x99), (Answer(b"\x98"), 0x98), (Drop(), 0xFF), (Deny(), 0xFF)):
        port = PortIo(Direction.IN, 0x60, 1, 1, data(0, 1))
        assert intercepted(machine, port, verdict)
        assert port.data[0] == expected
    assert machine.seen == []
    mmio = Mmio(0x9000, 4, False, data(0))
    with machine.events.intercept(Kind.EXIT, after=lambda event: setattr(event, "value", 0xABCD)):
        assert machine.table.handle(mmio)
    assert bytes(mmio.data[:4]) == b"\xcd\xab\0\0" and machine.seen == [mmio]


def test_an_msr_that_is_denied_is_a_general_protection_fault(machine: Machine) -> None:
    rdmsr, wrmsr = RdMsr(0x10, data(0), data(0, 1)), WrMsr(0x10, 5, data(0, 1))
    assert intercepted(machine, rdmsr, Deny()) and intercepted(machine, wrmsr, Deny())
    assert rdmsr.error[0] == wrmsr.error[0] == 1
    assert machine.seen == []


def test_a_hypercall_that_is_denied_gets_the_error(machine: Machine) -> None:
    call = Hypercall("xen", 29, (0, 0), 0, True, data(0))
    assert intercepted(machine, call, Deny(22))
    assert int.from_bytes(call.result, "little") == (1 << 64) - 22
    assert intercepted(machine, call, Delay(0.0))
    assert call.result[0] == 0x55 and machine.seen == [call]


def test_exits_that_nobody_handles_stay_so_whatever_a_hook_says(machine: Machine) -> None:
    assert not intercepted(machine, Hlt(), Drop())
