"""What a session shows and what it works: a screen, and keys and a mouse."""

from __future__ import annotations

from typing import Protocol

from PIL.Image import Image

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are outside, as Pillow has it."""


class ProtocolError(Exception):
    """A client said what the protocol does not know. Its session is over."""


class Screen(Protocol):
    """Something to look at."""

    def look(self) -> Image:
        """What is on it now, in mode RGB. The same object as before where nothing has changed; nobody alters it."""


class Controls(Protocol):
    """What a person works. Every method may be called with anything that a client sends."""

    def keysym(self, keysym: int, pressed: bool) -> None:
        """A key by the character or name that it stands for (X11, keysymdef.h)."""

    def scancode(self, code: int, pressed: bool) -> None:
        """A key by its place: set 1, with 0xe000 for those that have a prefix."""

    def pointer(self, dx: int, dy: int, wheel: int, buttons: int) -> None:
        """The mouse moves right and down, its wheel turns up, these buttons are held: 1 left, 2 right, 4 middle."""
