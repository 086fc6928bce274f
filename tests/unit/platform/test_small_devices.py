from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.platform.debugexit import DebugExit
from bivisor.platform.events import Event, ExitStatus, Panic, Reset
from bivisor.platform.i8042 import I8042, RESEND, STATUS_AUX, STATUS_OBF, STATUS_TIMEOUT
from bivisor.platform.pvpanic import PvPanic
from bivisor.platform.reset import FastReset, ResetControl


@pytest.fixture
def events() -> list[Event]:
    return []


def test_debug_exit_makes_the_value_the_status(events: list[Event]) -> None:
    DebugExit(events.append).write(0, 4, 0x107)
    assert events == [ExitStatus(7)]


def test_pvpanic_tells_a_panic_from_a_crash_kernel(events: list[Event]) -> None:
    device = PvPanic(events.append)
    assert device.read(0, 1) == 3
    for value in (1, 2, 0x80):
        device.write(0, 1, value)
    assert events == [Panic(False), Panic(True)]


def test_0xcf9_resets_on_the_rising_edge(events: list[Event]) -> None:
    device = ResetControl(events.append)
    device.write(0, 1, 0x02)
    assert events == []
    device.write(0, 1, 0x06)
    device.write(0, 1, 0x06)
    assert events == [Reset("port 0xcf9")]


def test_port_0x92_resets_and_keeps_a20(events: list[Event]) -> None:
    device = FastReset(events.append)
    device.write(0, 1, 0x02)
    assert (device.read(0, 1), events) == (2, [])
    device.write(0, 1, 0x01)
    assert events == [Reset("port 0x92")]


class TestI8042:
    def test_command_0xfe_resets_at_once(self, events: list[Event]) -> None:
        chip = I8042(lambda level: None, events.append)
        assert not chip.command.read(0, 1) & 2  # Linux waits for this before it resets
        chip.command.write(0, 1, 0xFE)
        assert events == [Reset("i8042")]

    def test_the_self_tests_pass_and_there_is_no_auxiliary_port(self, events: list[Event]) -> None:
        chip = I8042(lambda level: None, events.append)
        for command, answer in ((0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x01)):
            chip.command.write(0, 1, command)
            assert chip.command.read(0, 1) & STATUS_OBF
            assert chip.data.read(0, 1) == answer
        assert not chip.command.read(0, 1) & STATUS_OBF

    def test_the_command_byte_can_be_written_and_read(self, events: list[Event]) -> None:
        levels: list[bool] = []
        chip = I8042(levels.append, events.append)
        chip.command.write(0, 1, 0x60)
        chip.data.write(0, 1, 0x45)
        chip.command.write(0, 1, 0x20)
        assert levels[-1]
        assert chip.data.read(0, 1) == 0x45
        assert not levels[-1]

    def test_both_ports_time_out_instead_of_staying_silent(self, events: list[Event]) -> None:
        chip = I8042(lambda level: None, events.append)
        chip.data.write(0, 1, 0xF2)
        assert chip.command.read(0, 1) & (STATUS_OBF | STATUS_TIMEOUT | STATUS_AUX) == STATUS_OBF | STATUS_TIMEOUT
        assert chip.data.read(0, 1) == RESEND
        chip.command.write(0, 1, 0xD4)
        chip.data.write(0, 1, 0xF2)
        assert chip.command.read(0, 1) & STATUS_AUX

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 255)), max_size=200))
    def test_no_sequence_of_accesses_raises(self, steps: list[tuple[int, int]]) -> None:
        chip = I8042(lambda level: None, lambda event: None)
        for kind, value in steps:
            port = (chip.data, chip.command)[kind & 1]
            if kind & 2:
                port.write(0, 1, value)
            else:
                assert 0 <= port.read(0, 1) <= 255
