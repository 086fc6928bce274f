"""Scan codes: set 1 (the PC XT's), set 2 (the PC AT's), and which keys make which characters on an American keyboard.

Specification: IBM Personal System/2 technical reference, "Keyboard scan codes"; the translation from set 2 to set 1 is
that of the 8042.
"""

from __future__ import annotations

from bivisor.errors import UsageError

_TRANSLATION = bytes.fromhex(
    "ff43413f3d3b3c58644442403e0f2959 65382a701d10025a66712c1f1e11035b"
    "672e2d201205045c68392f211413065d 693130232215075e6a7232241608095f"
    "6b332517180b0a606c34352627190c61 6d7328741a0d626e3a361c1b752b6376"
    "555677 78797a0e7b7c4f7d4b477e7f6f 5253504c4d48014557 4e514a37494654"
)
SET2_TO_SET1 = dict(enumerate(_TRANSLATION)) | {0x83: 0x41, 0x84: 0x54}
SET1_TO_SET2 = {one: two for two, one in SET2_TO_SET1.items() if two}

_ROWS = (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
)
CHARACTERS: dict[str, tuple[int, bool]] = {" ": (0x39, False), "\n": (0x1C, False), "\t": (0x0F, False)}
"""For each character the key, and whether Shift is held."""
for _first, _plain, _shifted in _ROWS:
    for _at in range(len(_plain)):
        CHARACTERS[_plain[_at]] = (_first + _at, False)
        CHARACTERS[_shifted[_at]] = (_first + _at, True)

SHIFT, CONTROL, ALT = 0x2A, 0x1D, 0x38
NAMES = {
    "esc": 0x01, "backspace": 0x0E, "tab": 0x0F, "ret": 0x1C, "enter": 0x1C, "ctrl": CONTROL, "shift": SHIFT,
    "alt": ALT, "spc": 0x39, "space": 0x39, "caps": 0x3A, "up": 0xE048, "down": 0xE050, "left": 0xE04B,
    "right": 0xE04D, "home": 0xE047, "end": 0xE04F, "pgup": 0xE049, "pgdn": 0xE051, "insert": 0xE052,
    "delete": 0xE053, "meta": 0xE05B,
    **{f"f{number}": 0x3A + number for number in range(1, 11)}, "f11": 0x57, "f12": 0x58,
}  # fmt: skip


def keys_of(word: str) -> list[int]:
    """The set 1 codes of a chord such as `ctrl-alt-delete`, `f12` or `a`, in the order in which they go down."""
    parts = [word] if word in CHARACTERS else word.split("-")
    codes = []
    for part in parts:
        if part.lower() in NAMES:
            codes.append(NAMES[part.lower()])
        elif part in CHARACTERS:
            code, shifted = CHARACTERS[part]
            codes += [SHIFT, code] if shifted else [code]
        else:
            raise UsageError(f"key {word!r}: {part!r} is neither a character nor one of {', '.join(sorted(NAMES))}")
    return codes
