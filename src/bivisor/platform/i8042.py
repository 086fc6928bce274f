"""The 8042 keyboard controller at ports 0x60 and 0x64, with nothing plugged in: it resets the PC and holds A20.

Specification: IBM Personal System/2 technical reference, "Keyboard and Auxiliary Device Controller". The ACPI tables
say that there is none, so that Linux does not probe; who probes all the same gets every answer at once, and a timeout
indication from either port instead of silence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bivisor.platform.events import OnEvent, Reset

DATA_PORT, COMMAND_PORT = 0x60, 0x64

STATUS_OBF, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
STATUS_AUX, STATUS_TIMEOUT = 0x20, 0x40
CTR_KBD_IRQ, CTR_KBD_DISABLED, CTR_AUX_DISABLED = 0x01, 0x10, 0x20
OUT_RESET, OUT_A20 = 0x01, 0x02
RESEND = 0xFE
QUEUE_LIMIT = 16


class I8042:
    """The controller: `data` and `command` are the devices of its two ports."""

    def __init__(self, irq: Callable[[bool], None], on_event: OnEvent) -> None:
        self.data = _DataPort(self)
        self.command = _CommandPort(self)
        self._irq = irq
        self._on_event = on_event
        self._queue: deque[tuple[int, int]] = deque()
        self._ctr = CTR_KBD_DISABLED | CTR_AUX_DISABLED | 0x04
        self._output = OUT_RESET | OUT_A20
        self._pending = 0  # the command that the next data byte belongs to
        self._was_command = 0
        self._simple: dict[int, Callable[[], None]] = {
            0x20: lambda: self._answer(self._ctr),
            0xA7: lambda: self._set_ctr(self._ctr | CTR_AUX_DISABLED),
            0xA8: lambda: self._set_ctr(self._ctr & ~CTR_AUX_DISABLED),
            0xA9: lambda: self._answer(0x01),  # auxiliary port test: clock stuck low, so there is no port
            0xAA: lambda: self._answer(0x55),
            0xAB: lambda: self._answer(0x00),
            0xAD: lambda: self._set_ctr(self._ctr | CTR_KBD_DISABLED),
            0xAE: lambda: self._set_ctr(self._ctr & ~CTR_KBD_DISABLED),
            0xD0: lambda: self._answer(self._output),
        }

    def read_data(self) -> int:
        """The oldest byte of the output buffer."""
        value = self._queue.popleft()[0] if self._queue else 0
        self._drive()
        return value

    def write_data(self, value: int) -> None:
        """A command's parameter, or a byte for the keyboard."""
        self._was_command = 0
        pending, self._pending = self._pending, 0
        match pending:
            case 0x60:
                self._set_ctr(value)
            case 0xD1:
                self._set_output(value)
            case 0xD2 | 0xD3:
                self._answer(value)
            case 0xD4:
                self._answer(RESEND, STATUS_AUX | STATUS_TIMEOUT)
            case _:
                self._answer(RESEND, STATUS_TIMEOUT)

    def status(self) -> int:
        """The status register."""
        buffer = STATUS_OBF | self._queue[0][1] if self._queue else 0
        return STATUS_UNLOCKED | buffer | self._was_command | self._ctr & STATUS_SYSTEM

    def write_command(self, value: int) -> None:
        """A command; one that does not exist is ignored."""
        self._was_command = STATUS_COMMAND
        self._pending = 0
        if value in self._simple:
            self._simple[value]()
        elif value >= 0xF0 and not value & 1:
            self._on_event(Reset("i8042"))  # pulse the reset line
        elif value in (0x60, 0xD1, 0xD2, 0xD3, 0xD4):
            self._pending = value

    def _set_ctr(self, value: int) -> None:
        self._ctr = value
        self._drive()

    def _set_output(self, value: int) -> None:
        self._output = value
        if not value & OUT_RESET:
            self._on_event(Reset("i8042"))

    def _answer(self, value: int, status: int = 0) -> None:
        if len(self._queue) < QUEUE_LIMIT:  # who never reads cannot fill the host
            self._queue.append((value, status))
        self._drive()

    def _drive(self) -> None:
        self._irq(bool(self._queue) and bool(self._ctr & CTR_KBD_IRQ))


class _DataPort:
    def __init__(self, controller: I8042) -> None:
        self._controller = controller

    def read(self, offset: int, size: int) -> int:
        return self._controller.read_data()

    def write(self, offset: int, size: int, value: int) -> None:
        self._controller.write_data(value & 0xFF)


class _CommandPort:
    def __init__(self, controller: I8042) -> None:
        self._controller = controller

    def read(self, offset: int, size: int) -> int:
        return self._controller.status()

    def write(self, offset: int, size: int, value: int) -> None:
        self._controller.write_command(value & 0xFF)
