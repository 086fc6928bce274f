"""A PS/2 keyboard with 102 keys, which sends scan code set 2 (or 1).

Specification: IBM Personal System/2 technical reference, "Keyboards (101- and 102-Key)".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bivisor.platform.ps2.scancodes import SET1_TO_SET2

ACK, RESEND, SELF_TEST_PASSED, ECHO = 0xFA, 0xFE, 0xAA, 0xEE
QUEUE_LIMIT = 256
_IDENTITY = (0xAB, 0x83)


class Keyboard:
    """The keyboard. `queue` is what it has sent and nobody has read; `news()` is called when that changes."""

    def __init__(self, news: Callable[[], None]) -> None:
        self.queue: deque[int] = deque()
        self._news = news
        self._command = 0
        self._enabled = True
        self._set = 2
        self.leds = 0

    def key(self, code: int, pressed: bool) -> bool:
        """A key goes down or up. `code` is that of set 1, with 0xe000 for the keys that have a prefix. False where the
        guest has no keyboard on, or reads so little that there is no room."""
        if not self._enabled or len(self.queue) > QUEUE_LIMIT - 4:
            return False
        if code >> 8:
            self.queue.append(code >> 8)
        if self._set == 1:
            self.queue.append(code & 0x7F | (0 if pressed else 0x80))
        else:
            if not pressed:
                self.queue.append(0xF0)
            self.queue.append(SET1_TO_SET2.get(code & 0x7F, 0))
        self._news()
        return True

    def write(self, value: int) -> None:
        """A byte from the host's controller: a command, or the parameter of one."""
        command, self._command = self._command, 0
        match command, value:
            case 0xED, _:
                self.leds = value & 7
                self._send(ACK)
            case 0xF0, 0:
                self._send(ACK, self._set)
            case 0xF0, _:
                self._set = 1 if value == 1 else 2
                self._send(ACK)
            case ((0xF3 | 0xFB | 0xFC | 0xFD), _):
                self._send(ACK)
            case _, 0xFF:
                self._reset()
                self._send(ACK, SELF_TEST_PASSED)
            case _, 0xEE:
                self._send(ECHO)
            case _, 0xF2:
                self._send(ACK, *_IDENTITY)
            case _, 0xF4:
                self._enabled = True
                self._send(ACK)
            case _, 0xF5:
                self._reset()
                self._enabled = False
                self._send(ACK)
            case _, 0xF6:
                self._reset()
                self._send(ACK)
            case _, (0xED | 0xF0 | 0xF3 | 0xFB | 0xFC | 0xFD):
                self._command = value
                self._send(ACK)
            case _, (0xF7 | 0xF8 | 0xF9 | 0xFA):
                self._send(ACK)
            case _:
                self._send(RESEND)

    def _reset(self) -> None:
        self.queue.clear()
        self._enabled, self._set = True, 2

    def _send(self, *values: int) -> None:
        if len(self.queue) + len(values) <= QUEUE_LIMIT:  # who never reads cannot fill the host
            self.queue.extend(values)
        self._news()
