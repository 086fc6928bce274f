"""The 8042 keyboard controller with a keyboard and a mouse, at ports 0x60 and 0x64; it resets the PC and gates A20.

Specification: IBM Personal System/2 technical reference, "Keyboard and Auxiliary Device Controller".
"""

from __future__ import annotations

from collections.abc import Callable

from bivisor.platform.events import OnEvent, Reset
from bivisor.platform.ps2.keyboard import Keyboard
from bivisor.platform.ps2.mouse import Mouse
from bivisor.platform.ps2.scancodes import SET2_TO_SET1

DATA_PORT, COMMAND_PORT = 0x60, 0x64
KEYBOARD_IRQ, MOUSE_IRQ = 1, 12

OBF, SYSTEM, COMMAND, UNLOCKED, AUX = 0x01, 0x04, 0x08, 0x10, 0x20
CTR_KBD_IRQ, CTR_AUX_IRQ, CTR_SYSTEM, CTR_KBD_OFF, CTR_AUX_OFF, CTR_TRANSLATE = 0x01, 0x02, 0x04, 0x10, 0x20, 0x40
OUT_RESET, OUT_A20 = 0x01, 0x02
_RAM = range(0x20, 0x40)
_OWN_LIMIT = 16


class Ps2Controller:
    """The controller: `data` and `command` are the devices of its two ports; `a20(bool)` is its output pin 1."""

    def __init__(
        self,
        keyboard_irq: Callable[[bool], None],
        mouse_irq: Callable[[bool], None],
        on_event: OnEvent,
        a20: Callable[[bool], None],
    ) -> None:
        self.data = _Port(self._read_data, self._write_data)
        self.command = _Port(self._status, self._write_command)
        self.keyboard = Keyboard(self._drive)
        self.mouse = Mouse(self._drive)
        self._irqs = keyboard_irq, mouse_irq
        self._on_event = on_event
        self._a20 = a20
        self._ctr = CTR_KBD_IRQ | CTR_SYSTEM | CTR_TRANSLATE
        self._ram = bytearray(32)
        self._output = OUT_RESET | OUT_A20
        self._own: list[tuple[int, bool]] = []  # answers of the controller itself: byte, whether it is the mouse's
        self._released = False
        self._pending = 0
        self._was_command = 0
        self._last = 0
        self._commands: dict[int, Callable[[], None]] = {
            0xA7: lambda: self._set_ctr(self._ctr | CTR_AUX_OFF),
            0xA8: lambda: self._set_ctr(self._ctr & ~CTR_AUX_OFF),
            0xA9: lambda: self._answer(0x00),
            0xAA: self._self_test,
            0xAB: lambda: self._answer(0x00),
            0xAD: lambda: self._set_ctr(self._ctr | CTR_KBD_OFF),
            0xAE: lambda: self._set_ctr(self._ctr & ~CTR_KBD_OFF),
            0xC0: lambda: self._answer(0x80),
            0xD0: lambda: self._answer(self._output),
            0xDD: lambda: self._set_output(self._output & ~OUT_A20),
            0xDF: lambda: self._set_output(self._output | OUT_A20),
        }

    # What waits: the controller's own answers first, then the keyboard's bytes, then the mouse's

    def _waiting(self) -> tuple[bool, bool]:
        """Whether a byte waits, and whether it is the mouse's."""
        if self._own:
            return True, self._own[0][1]
        if self.keyboard.queue and not self._ctr & CTR_KBD_OFF:
            return True, False
        if self.mouse.queue and not self._ctr & CTR_AUX_OFF:
            return True, True
        return False, False

    def _read_data(self) -> int:
        waits, from_mouse = self._waiting()
        if waits:
            if self._own:
                self._last = self._own.pop(0)[0]
            elif from_mouse:
                self._last = self.mouse.queue.popleft()
            else:
                self._last = self._translated()
            for irq in self._irqs:  # down, so that the next byte is an edge
                irq(False)
        self._drive()
        return self._last

    def _translated(self) -> int:
        """The keyboard's next byte; translation makes a break code's prefix the top bit of the code behind it."""
        byte = self.keyboard.queue.popleft()
        if not self._ctr & CTR_TRANSLATE:
            return byte
        released = 0
        if byte == 0xF0 and self.keyboard.queue:
            byte, released = self.keyboard.queue.popleft(), 0x80
        return SET2_TO_SET1.get(byte, byte) | released

    def _write_data(self, value: int) -> None:
        self._was_command = 0
        pending, self._pending = self._pending, 0
        match pending:
            case 0x60:
                self._set_ctr(value)
            case 0xD1:
                self._set_output(value)
            case 0xD2:
                self._answer(value)
            case 0xD3:
                self._answer(value, of_mouse=True)
            case 0xD4:
                self.mouse.write(value)
            case _ if 0x61 <= pending < 0x80:
                self._ram[pending & 31] = value
            case _:
                self._ctr &= ~CTR_KBD_OFF  # talking to the keyboard turns it on
                self.keyboard.write(value)
        self._drive()

    def _status(self) -> int:
        waits, from_mouse = self._waiting()
        buffer = (OBF | AUX if from_mouse else OBF) if waits else 0
        return UNLOCKED | buffer | self._was_command | self._ctr & SYSTEM

    def _write_command(self, value: int) -> None:
        self._was_command = COMMAND
        self._pending = 0
        if value in self._commands:
            self._commands[value]()
        elif value >= 0xF0:
            if not value & 1:
                self._on_event(Reset("i8042"))
        elif value in _RAM:
            self._answer(self._ctr if value == 0x20 else self._ram[value & 31])
        elif value in (0x60, 0xD1, 0xD2, 0xD3, 0xD4) or 0x61 <= value < 0x80:
            self._pending = value

    def _self_test(self) -> None:
        self._ctr |= CTR_SYSTEM
        self._answer(0x55)

    def _set_ctr(self, value: int) -> None:
        self._ctr = value
        self._drive()

    def _set_output(self, value: int) -> None:
        if (value ^ self._output) & OUT_A20:
            self._a20(bool(value & OUT_A20))
        self._output = value
        if not value & OUT_RESET:
            self._on_event(Reset("i8042"))

    def _answer(self, value: int, *, of_mouse: bool = False) -> None:
        if len(self._own) < _OWN_LIMIT:  # who never reads cannot fill the host
            self._own.append((value, of_mouse))
        self._drive()

    def _drive(self) -> None:
        waits, from_mouse = self._waiting()
        keyboard, mouse = self._irqs
        keyboard(waits and not from_mouse and bool(self._ctr & CTR_KBD_IRQ))
        mouse(waits and from_mouse and bool(self._ctr & CTR_AUX_IRQ))


class _Port:
    def __init__(self, read: Callable[[], int], write: Callable[[int], None]) -> None:
        self._read, self._write = read, write

    def read(self, offset: int, size: int) -> int:
        return self._read()

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(value & 0xFF)
