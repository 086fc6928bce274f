"""From what a key stands for to where it is: X11's keysyms (keysymdef.h) on an American keyboard, set 1.

A client tells the character that its own keyboard made; the guest has to make the same one of a key and Shift. So Shift
is pressed or let go for the moment where the client's keyboard has the character in another place.
"""

from __future__ import annotations

from collections.abc import Iterator

from bivisor.platform.ps2.scancodes import CHARACTERS, SHIFT

SHIFT_RIGHT = 0x36
_LETTERS = frozenset(range(ord("a"), ord("z") + 1)) | frozenset(range(ord("A"), ord("Z") + 1))
_KEYPAD = (0x52, 0x4F, 0x50, 0x51, 0x4B, 0x4C, 0x4D, 0x47, 0x48, 0x49)
NAMED = {
    0xFE03: 0xE038, 0xFE20: 0x0F,                                                            # ISO_Level3_Shift, Tab
    0xFF08: 0x0E, 0xFF09: 0x0F, 0xFF0D: 0x1C, 0xFF14: 0x46, 0xFF15: 0xE037, 0xFF1B: 0x01,    # BackSpace to Escape
    0xFF50: 0xE047, 0xFF51: 0xE04B, 0xFF52: 0xE048, 0xFF53: 0xE04D, 0xFF54: 0xE050,          # Home and arrows
    0xFF55: 0xE049, 0xFF56: 0xE051, 0xFF57: 0xE04F, 0xFF61: 0xE037, 0xFF63: 0xE052,          # Page_Up to Insert
    0xFF67: 0xE05D, 0xFF7F: 0x45, 0xFF8D: 0xE01C,                                            # Menu, Num_Lock, KP_Enter
    0xFF95: 0x47, 0xFF96: 0x4B, 0xFF97: 0x48, 0xFF98: 0x4D, 0xFF99: 0x50, 0xFF9A: 0x49,      # KP_Home to KP_Page_Up
    0xFF9B: 0x51, 0xFF9C: 0x4F, 0xFF9D: 0x4C, 0xFF9E: 0x52, 0xFF9F: 0x53,                    # KP_Page_Down to KP_Delete
    0xFFAA: 0x37, 0xFFAB: 0x4E, 0xFFAD: 0x4A, 0xFFAE: 0x53, 0xFFAF: 0xE035,                  # KP_Multiply to KP_Divide
    **{0xFFB0 + digit: code for digit, code in enumerate(_KEYPAD)},
    **{0xFFBE + number: 0x3B + number for number in range(10)}, 0xFFC8: 0x57, 0xFFC9: 0x58,  # F1 to F12
    0xFFE1: SHIFT, 0xFFE2: SHIFT_RIGHT, 0xFFE3: 0x1D, 0xFFE4: 0xE01D, 0xFFE5: 0x3A,          # Shift, Control, Caps_Lock
    0xFFE7: 0xE05B, 0xFFE8: 0xE05C, 0xFFE9: 0x38, 0xFFEA: 0xE038, 0xFFEB: 0xE05B, 0xFFEC: 0xE05C, 0xFFFF: 0xE053,
}  # fmt: skip
"""The keys that make no character."""

Event = tuple[int, bool]
"""A code of set 1, and whether the key goes down."""


class Keysyms:
    """One person's keys, as they go down and up."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}
        self._shifts: set[int] = set()

    def events(self, keysym: int, pressed: bool, *, caps_lock: bool) -> Iterator[Event]:
        """What the guest's keyboard does for it; nothing for what it has no key for."""
        if not pressed:
            code = self._held.pop(keysym, None)
            if code is not None:
                self._shifts.discard(code)
                yield code, False
            return
        if keysym in NAMED:
            code = self._held[keysym] = NAMED[keysym]
            if code in (SHIFT, SHIFT_RIGHT):
                self._shifts.add(code)
            yield code, True
            return
        found = CHARACTERS.get(chr(keysym)) if 0x20 <= keysym < 0x7F else None
        if found is None:
            return
        code, wants_shift = found
        self._held[keysym] = code
        wants_shift ^= caps_lock and keysym in _LETTERS
        if wants_shift and not self._shifts:
            yield from ((SHIFT, True), (code, True), (SHIFT, False))
        elif self._shifts and not wants_shift:
            held = sorted(self._shifts)
            yield from ((shift, False) for shift in held)
            yield code, True
            yield from ((shift, True) for shift in held)
        else:
            yield code, True
