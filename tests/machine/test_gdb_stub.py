"""The stub against a tiny guest on `soft`: registers, memory, breakpoints, steps, as gdb asks for them."""

from __future__ import annotations

import queue
import threading
from binascii import unhexlify
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bivisor.cpu.exits import Debug
from bivisor.cpu.runcontrol import RunControl
from bivisor.cpu.soft.engine import SoftEngine
from bivisor.debug.registers import REGISTERS, target_xml
from bivisor.debug.stub import Detached, Killed, Stub
from bivisor.debug.target import Stop, Target
from conformance.guest import CODE, DATA, Guest

LOOP = """
    ff c0           ; inc eax
    89 04 25 00 30 00 00  ; mov [DATA], eax
    eb f5           ; jmp back
    """
STORE = CODE + 2


class Session:
    """A guest in a loop, held, and the stub."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.control = RunControl([guest.vcpu])
        self.target = Target([guest.vcpu], guest.memory, self.control, "soft")
        self.stops: queue.SimpleQueue[Stop] = queue.SimpleQueue()
        self.target.on_stop = self.stops.put
        self.target.attach()
        self.stub = Stub(self.target)
        self._ending = False
        self.control.hold()
        self.control.enter_thread()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.target.hold()

    def _run(self) -> None:
        while not self._ending:
            self.control.gate(self.guest.vcpu)
            exit_ = self.guest.vcpu.run()
            if isinstance(exit_, Debug):
                self.control.hit(self.guest.vcpu, exit_)
        self.control.leave_thread()

    def close(self) -> None:
        self._ending = True
        self.control.end()
        self.guest.vcpu.kick()
        self._thread.join()

    def ask(self, packet: bytes) -> bytes:
        answer = self.stub.packet(packet)
        assert answer is not None
        return answer

    def go(self, packet: bytes) -> bytes:
        """Let it run until it stops by itself."""
        assert self.stub.packet(packet) is None
        return self.stub.stopped(self.stops.get(timeout=20))

    def register(self, name: str) -> int:
        number = [register.name for register in REGISTERS].index(name)
        return int.from_bytes(unhexlify(self.ask(b"p%x" % number)), "little")


@pytest.fixture
def session() -> Iterator[Session]:
    with SoftEngine() as engine, Guest(engine) as guest:
        guest.load(LOOP)
        made = Session(guest)
        yield made
        made.close()


def test_a_held_guest_says_where_it_is(session: Session) -> None:
    assert session.ask(b"?") == b"T05thread:1;"
    assert session.register("rip") == CODE
    everything = session.ask(b"g")
    assert len(everything) == 2 * sum(register.size for register in REGISTERS)


def test_a_breakpoint_stops_before_its_instruction_each_time_around(session: Session) -> None:
    assert session.ask(b"Z0,%x,1" % STORE) == b"OK"
    for turn in (1, 2, 3):
        assert session.go(b"vCont;c") == b"T05thread:1;hwbreak:;"
        assert (session.register("rip"), session.register("rax")) == (STORE, turn)
        assert session.ask(b"z0,%x,1" % STORE) == b"OK"
        session.go(b"vCont;s:1;c")
        assert session.register("rip") == STORE + 7
        assert session.ask(b"m%x,4" % DATA) == b"%02x000000" % turn
        assert session.ask(b"Z0,%x,1" % STORE) == b"OK"


def test_ctrl_c_holds_a_running_guest(session: Session) -> None:
    assert session.stub.packet(b"c") is None
    assert session.stub.running
    assert session.stub.interrupted() == b"T02thread:1;"
    before = session.register("rax")
    assert session.register("rax") == before
    assert CODE <= session.register("rip") < CODE + 11


def test_registers_and_memory_are_written(session: Session) -> None:
    names = [register.name for register in REGISTERS]
    assert session.ask(b"P%x=%s" % (names.index("rax"), b"7800000000000000")) == b"OK"
    assert session.ask(b"P%x=%s" % (names.index("xmm3"), b"01" * 16)) == b"OK"
    assert session.register("xmm3") == int.from_bytes(b"\1" * 16, "little")
    assert session.ask(b"M%x,2:cdab" % (DATA + 8)) == b"OK"
    assert session.ask(b"X%x,2:\x01\x02" % (DATA + 10)) == b"OK"
    assert session.ask(b"m%x,4" % (DATA + 8)) == b"cdab0102"
    session.go(b"s")
    assert session.register("rax") == 0x79


def test_what_is_written_over_code_is_what_runs(session: Session) -> None:
    session.stub.packet(b"c")
    session.stub.interrupted()
    session.ask(b"P%x=%s" % (16, CODE.to_bytes(8, "little").hex().encode()))
    assert session.ask(b"M%x,2:ffc8" % CODE) == b"OK"  # dec eax
    before = session.register("rax")
    session.go(b"s")
    assert session.register("rax") == (before - 1) & 0xFFFF_FFFF


def test_memory_that_is_not_there_is_an_error_and_nothing_more(session: Session) -> None:
    assert session.ask(b"m7fffffff0000,4") == b"E14"
    assert session.ask(b"M7fffffff0000,1:00") == b"E14"
    assert session.ask(b"M%x,2:00" % DATA) == b"E22"


def test_the_description_names_each_register_in_the_order_of_the_numbers(session: Session) -> None:
    xml, at = b"", 0
    while True:
        part = session.ask(b"qXfer:features:read:target.xml:%x,400" % at)
        xml += part[1:]
        at = len(xml)
        if part[:1] == b"l":
            break
    assert xml == target_xml()
    places = [xml.index(f'<reg name="{register.name}"'.encode()) for register in REGISTERS]
    assert places == sorted(places)


def test_a_processor_is_a_thread(session: Session) -> None:
    assert session.ask(b"qfThreadInfo") == b"m1"
    assert session.ask(b"qsThreadInfo") == b"l"
    assert session.ask(b"Hg1") == b"OK"
    assert session.ask(b"Hg2") == b"E22"
    assert unhexlify(session.ask(b"qThreadExtraInfo,1")) == b"CPU#0"


def test_detach_and_kill_leave_the_conversation(session: Session) -> None:
    with pytest.raises(Detached):
        session.stub.packet(b"D")
    with pytest.raises(Killed):
        session.stub.packet(b"k")


def test_monitor_commands_print(session: Session) -> None:
    def say(words: bytes) -> bytes:
        return unhexlify(session.ask(b"qRcmd," + words.hex().encode()))

    assert b"translate" in say(b"help")
    assert say(b"translate 0x1000") == b"0x1000 is at 0x1000\n"
    assert say(b"msr 0xc0000080").startswith(b"MSR 0xc0000080 = 0x")
    assert b"read or write" in say(b"msr")
    assert b"no MSR" in say(b"msr 0x12345")
    assert b"dpl 0" in say(b"segments")


@given(st.binary(max_size=40))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_packet_breaks_the_stub(session: Session, packet: bytes) -> None:
    if packet[:1] in (b"c", b"s", b"v"):
        return
    try:
        session.stub.packet(packet)
    except (Detached, Killed):
        pass
