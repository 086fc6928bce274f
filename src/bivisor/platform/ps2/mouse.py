"""A PS/2 mouse with three buttons, and a wheel for who asks for it in Microsoft's way.

Specification: IBM Personal System/2 technical reference, "Mouse"; Microsoft IntelliMouse, "Wheel detection".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

ACK, NACK, SELF_TEST_PASSED = 0xFA, 0xFE, 0xAA
QUEUE_LIMIT = 256
_WHEEL_KNOCK = (200, 100, 80)


class Mouse:
    """The mouse. `queue` is what it has sent and nobody has read; `news()` is called when that changes."""

    def __init__(self, news: Callable[[], None]) -> None:
        self.queue: deque[int] = deque()
        self._news = news
        self._rates: deque[int] = deque(maxlen=3)
        self._defaults()
        self._identity = 0
        self._command = 0

    def _defaults(self) -> None:
        self._enabled = self._double = self._remote = False
        self._resolution, self._rate = 2, 100
        self._moved = (0, 0, 0)
        self._buttons = 0

    def move(self, dx: int, dy: int, dz: int = 0, buttons: int = 0) -> None:
        """It moves right by `dx` and up by `dy`, its wheel turns by `dz`; `buttons`: 1 left, 2 right, 4 middle."""
        x, y, z = self._moved
        self._moved = (x + dx, y + dy, z + dz)
        self._buttons = buttons & 7
        if self._enabled and not self._remote:
            self._send(*self._packet())

    def _packet(self) -> tuple[int, ...]:
        x, y, z = (max(-limit, min(limit - 1, v)) for v, limit in zip(self._moved, (256, 256, 8), strict=True))
        self._moved = (0, 0, 0)
        head = 0x08 | self._buttons | (0x10 if x < 0 else 0) | (0x20 if y < 0 else 0)
        wheel = (-z & 0xFF,) if self._identity == 3 else ()
        return (head, x & 0xFF, y & 0xFF, *wheel)

    def write(self, value: int) -> None:
        """A byte from the host's controller: a command, or the parameter of one."""
        command, self._command = self._command, 0
        match command, value:
            case 0xF3, _:
                self._rate = value
                self._rates.append(value)
                if tuple(self._rates) == _WHEEL_KNOCK:
                    self._identity = 3
                self._send(ACK)
            case 0xE8, _:
                self._resolution = value & 3
                self._send(ACK)
            case _, 0xFF:
                self.queue.clear()
                self._defaults()
                self._identity = 0
                self._send(ACK, SELF_TEST_PASSED, 0)
            case _, 0xF6:
                self._defaults()
                self._send(ACK)
            case _, (0xF4 | 0xF5):
                self._enabled = value == 0xF4
                self._send(ACK)
            case _, 0xF2:
                self._send(ACK, self._identity)
            case _, (0xF0 | 0xEA):
                self._remote = value == 0xF0
                self._send(ACK)
            case _, (0xE6 | 0xE7):
                self._double = value == 0xE7
                self._send(ACK)
            case _, 0xEB:
                self._send(ACK, *self._packet())
            case _, 0xE9:
                status = self._remote << 6 | self._enabled << 5 | self._double << 4 | self._buttons
                self._send(ACK, status, self._resolution, self._rate & 0xFF)
            case _, (0xF3 | 0xE8):
                self._command = value
                self._send(ACK)
            case _:
                self._send(NACK)

    def _send(self, *values: int) -> None:
        if len(self.queue) + len(values) <= QUEUE_LIMIT:  # who never reads cannot fill the host
            self.queue.extend(values)
        self._news()
