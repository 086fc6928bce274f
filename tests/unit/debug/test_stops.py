"""Processors that stop at the same time: a debugger hears of one, and of the other when the guest is to go on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from queue import SimpleQueue

import pytest
from processors import OTHER, PLACE, Machine

from bivisor.abi.x86 import Vector
from bivisor.debug.registers import REGISTERS
from bivisor.debug.rsp import BREAK, Framing, frame
from bivisor.debug.server import Server
from bivisor.debug.target import INT3, Stop
from bivisor.errors import UsageError
from bivisor.host.tcp import listen
from bivisor.toolstack.inspect import Inspector

RSP = [register.name for register in REGISTERS].index("rsp")
FIRST, SECOND = Stop(0, "swbreak"), Stop(1, "swbreak")


class Heard:
    """What a machine with a breakpoint at `PLACE` tells of its stops; its processors run."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.target = self.machine.target
        self.stops: list[Stop] = []
        self.target.on_stop = self.stops.append
        self.target.attach()
        self.target.hold()
        self.target.insert(PLACE, False)
        self.target.resume()

    def new(self) -> list[Stop]:
        """What was told since the last call."""
        told = self.stops.copy()
        self.stops.clear()
        return told

    @property
    def held(self) -> bool:
        """Whether no processor may run."""
        return not any(self.machine.may_enter(index) for index in range(2))


@pytest.fixture
def heard() -> Heard:
    heard = Heard()
    assert not heard.held
    heard.machine.comes_to(0, PLACE)
    heard.machine.comes_to(1, PLACE)
    return heard


def test_the_second_stop_is_told_when_the_machine_is_to_go_on_which_stays_held(heard: Heard) -> None:
    assert heard.new() == [FIRST] and heard.held
    heard.target.resume()
    assert heard.new() == [SECOND] and heard.held
    heard.target.resume()
    assert not heard.new() and not heard.held


def test_a_step_of_the_first_is_not_in_the_seconds_way(heard: Heard) -> None:
    heard.target.resume(0)
    assert heard.machine.may_enter(0) and not heard.machine.may_enter(1)
    heard.machine.has_stepped(0)
    assert heard.new() == [FIRST, Stop(0)] and heard.held
    heard.target.resume()
    assert heard.new() == [SECOND]


def test_a_stop_is_no_longer_true_where_the_breakpoint_is_gone_or_the_processor_elsewhere(heard: Heard) -> None:
    heard.target.remove(PLACE)
    heard.target.resume()
    assert heard.new() == [FIRST] and not heard.held
    heard.target.hold()
    heard.target.insert(PLACE, False)
    for steps_away in (True, False):
        heard.target.resume()
        for index in range(2):
            heard.machine.comes_to(index, PLACE)
        if steps_away:
            heard.target.resume(1)
        else:
            heard.machine.processors[1].regs.rip = OTHER
        heard.target.resume()
        assert heard.new() == [FIRST] and not heard.held


def test_a_processor_that_comes_to_a_breakpoint_while_the_machine_is_about_to_be_held_is_told_of_later() -> None:
    heard = Heard()
    heard.target.hold()
    heard.machine.comes_to(1, PLACE)
    assert not heard.new()
    heard.target.resume()
    assert heard.new() == [SECOND]


def test_an_int3_of_the_guests_own_does_not_let_a_machine_go_that_is_held(heard: Heard) -> None:
    heard.machine.comes_to(1, OTHER)
    assert heard.held and heard.new() == [FIRST]
    assert heard.machine.processors[1].events.exception == Vector.BP


def test_a_step_goes_on_behind_an_int3_of_the_guests_own(heard: Heard) -> None:
    heard.target.resume(0)
    heard.machine.comes_to(0, OTHER)
    assert heard.machine.may_enter(0) and not heard.machine.may_enter(1)
    assert heard.machine.processors[0].debug.single_step
    heard.machine.has_stepped(0)
    assert heard.new() == [FIRST, Stop(0)] and not heard.machine.processors[0].debug.single_step


def test_a_machine_that_a_debugger_has_left_has_no_breakpoint_and_no_stop(heard: Heard) -> None:
    assert heard.machine.memory.read(PLACE, 1) == INT3
    heard.target.detach()
    assert heard.machine.memory.read(PLACE, 1) != INT3 and not heard.held
    heard.new()
    heard.target.attach()
    heard.target.resume()
    assert not heard.new() and not heard.held


class Conversation:
    """gdb's side of one with a machine, whose processors both come to the breakpoint as soon as it goes on."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.server = Server(self.machine.target, listen("127.0.0.1", 0), lambda: None)
        self.server.start()
        self.socket = socket.create_connection(("127.0.0.1", self.server.port), 20)
        self._framing = Framing()
        self._packets: SimpleQueue[bytes] = SimpleQueue()
        assert self.ask(b"QStartNoAckMode") == self.ask(b"Z0,%x,1" % PLACE) == b"OK"
        self._resume = self.machine.control.resume
        self.machine.control.resume = self._go  # type: ignore[method-assign]

    def _go(self, only: int | None = None) -> None:
        self._resume(only)
        if only is None:
            self.machine.comes_to(0, PLACE)
            self.machine.comes_to(1, PLACE)
        else:
            self.machine.has_stepped(only)

    def ask(self, packet: bytes) -> bytes:
        """The next packet after `packet` was sent."""
        self.socket.sendall(frame(packet) if packet != BREAK else b"\x03")
        return self.hear()

    def hear(self) -> bytes:
        """The next packet."""
        while self._packets.empty():
            data = self.socket.recv(4096)
            assert data
            for packet in self._framing.feed(data):
                if packet is not None:
                    self._packets.put(packet)
        return self._packets.get()

    def stack(self) -> int:
        """RSP of the processor that gdb believes to be stopped."""
        return int.from_bytes(bytes.fromhex(self.ask(b"p%x" % RSP).decode()), "little")

    def close(self) -> None:
        """Say goodbye."""
        self.machine.control.resume = self._resume  # type: ignore[method-assign]
        assert self.ask(b"D") == b"OK"
        self.socket.close()
        self.server.close()


@pytest.fixture
def conversation() -> Iterator[Conversation]:
    made = Conversation()
    yield made
    made.close()


def test_gdb_gets_one_answer_and_the_registers_are_those_of_the_processor_that_it_names(
    conversation: Conversation,
) -> None:
    assert conversation.ask(b"vCont;c") == b"T05thread:1;swbreak:;"
    assert conversation.stack() == 0x1000
    assert conversation.ask(b"vCont;s:1;c") == b"T05thread:1;"
    assert conversation.stack() == 0x1000
    assert conversation.ask(b"vCont;c") == b"T05thread:2;swbreak:;"
    assert conversation.stack() == 0x2000


def test_ctrl_c_and_a_stop_at_the_same_time_are_one_answer(conversation: Conversation) -> None:
    conversation.socket.sendall(frame(b"vCont;c") + b"\x03")
    assert conversation.hear() == b"T05thread:1;swbreak:;"
    assert conversation.stack() == 0x1000


def test_a_machine_that_was_made_held_stays_so_until_it_is_started_and_stops_at_the_breakpoint() -> None:
    machine = Machine()
    machine.control.hold()
    inspector = Inspector(machine.target, None, lambda source, *_: source)
    try:
        met = inspector.breakpoint(PLACE)
        assert inspector.registers(1).rsp == 0x2000 and not machine.may_enter(0)
        inspector.start()
        assert machine.may_enter(0)
        machine.comes_to(1, PLACE)
        assert met.wait(20).vcpu == 1 and not machine.may_enter(0)
        inspector.start()
        assert not machine.may_enter(0)
    finally:
        inspector.close()


def test_a_machine_that_cannot_be_held_goes_on() -> None:
    machine = Machine()
    inspector = Inspector(machine.target, None, lambda source, *_: source)

    def hold() -> bool:
        machine.control.close()
        return False

    machine.control.hold = hold  # type: ignore[method-assign,assignment]
    with pytest.raises(UsageError, match="a device works for it"):
        inspector.registers()
    assert machine.may_enter(0)


def test_a_program_meets_each_of_two_processors_though_it_looked_at_memory_meanwhile() -> None:
    machine = Machine()
    resume, hold = machine.control.resume, machine.target.hold
    inspector = Inspector(machine.target, None, lambda source, *_: source)

    def go(only: int | None = None) -> None:
        resume(only)
        if only is not None:
            machine.has_stepped(only)

    def hold_too_late() -> None:
        machine.target.hold = hold  # type: ignore[method-assign]
        machine.comes_to(0, PLACE)
        machine.comes_to(1, PLACE)
        hold()

    try:
        met = inspector.breakpoint(PLACE)
        machine.control.resume, machine.target.hold = go, hold_too_late  # type: ignore[method-assign]
        inspector.read(PLACE, 1)
        assert not machine.may_enter(0)
        for index in range(2):
            assert met.wait(20).vcpu == index and not machine.may_enter(0)
            met.resume()
        assert met.hits == 2 and machine.may_enter(0) and machine.may_enter(1)
    finally:
        inspector.close()
