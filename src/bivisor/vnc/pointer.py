"""A client's hands: which keys and buttons it holds, and how far its pointer has moved."""

from __future__ import annotations

from bivisor.vnc.contract import Controls

_CENTRE = 0x7FFF
_WHEEL_UP, _WHEEL_DOWN = 8, 16
_HELD_MAX = 64


class Pointer:
    """Makes movements of places, as the mouse of a PC has no places, and turns of the wheel of buttons 4 and 5."""

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self._place: tuple[int, int] | None = None
        self._buttons = self._told = 0
        self._keysyms: set[int] = set()
        self._codes: set[int] = set()

    def moved(self, x: int, y: int, buttons: int, *, is_relative: bool) -> None:
        """A PointerEvent. `is_relative`: x and y are distances from 0x7fff (rfbproto, "QEMU Pointer Motion Change")."""
        if is_relative:
            dx, dy = x - _CENTRE, y - _CENTRE
        else:
            before = self._place or (x, y)
            dx, dy = x - before[0], y - before[1]
            self._place = (x, y)
        pressed = buttons & ~self._buttons
        wheel = bool(pressed & _WHEEL_UP) - bool(pressed & _WHEEL_DOWN)
        self._buttons = buttons
        held = buttons & 1 | (buttons & 4) >> 1 | (buttons & 2) << 1
        if dx or dy or wheel or held != self._told:
            self._told = held
            self._controls.pointer(dx, dy, wheel, held)

    def keysym(self, keysym: int, pressed: bool) -> None:
        """A KeyEvent."""
        _hold(self._keysyms, keysym, pressed)
        self._controls.keysym(keysym, pressed)

    def scancode(self, code: int, pressed: bool) -> None:
        """A key by its place: 0x80 stands for the prefix (rfbproto, "QEMU Extended Key Event Message")."""
        code = code & 0x7F | (0xE000 if code & 0x80 or code >> 8 == 0xE0 else 0)
        _hold(self._codes, code, pressed)
        self._controls.scancode(code, pressed)

    def release(self) -> None:
        """Let go of everything."""
        for keysym in self._keysyms:
            self._controls.keysym(keysym, False)
        for code in self._codes:
            self._controls.scancode(code, False)
        if self._told:
            self._controls.pointer(0, 0, 0, 0)
        self._keysyms, self._codes, self._told = set(), set(), 0


def _hold(held: set[int], key: int, pressed: bool) -> None:
    if not pressed:
        held.discard(key)
    elif len(held) < _HELD_MAX:  # nobody has more fingers, and a client cannot fill the host
        held.add(key)
