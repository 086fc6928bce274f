"""Pictures of a guest's screen, and keys for its keyboard."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bivisor.platform.ps2 import Keyboard
from bivisor.platform.ps2.scancodes import CHARACTERS, keys_of
from bivisor.platform.vga import Frame

if TYPE_CHECKING:
    from PIL.Image import Image

_RAW = {15: "BGR;15", 16: "BGR;16", 24: "BGR", 32: "BGRX"}


def image_of(frame: Frame) -> Image:
    """`frame` as a Pillow image with eight bits a colour."""
    from PIL import Image

    size = (frame.width, frame.height)
    if frame.depth == 8:
        picture = Image.frombuffer("P", size, frame.pixels, "raw", "P", frame.stride, 1)
        picture.putpalette(frame.palette)
        return picture.convert("RGB")
    return Image.frombuffer("RGB", size, frame.pixels, "raw", _RAW[frame.depth], frame.stride, 1)


def png_of(frame: Frame) -> bytes:
    """`frame` as a PNG file, with a palette where that is enough."""
    picture = image_of(frame)
    out = io.BytesIO()
    small = picture.quantize(256) if picture.getcolors(256) is not None else picture
    small.save(out, "PNG", optimize=True)
    return out.getvalue()


def press(keyboard: Keyboard, words: Iterable[str]) -> None:
    """Press and release each chord of `words`, such as `a`, `ret`, `ctrl-alt-delete`. UsageError for no such key."""
    for codes in [keys_of(word) for word in words]:
        for code in codes:
            keyboard.key(code, True)
        for code in reversed(codes):
            keyboard.key(code, False)


def type_text(keyboard: Keyboard, text: str) -> None:
    """Type `text` on an American keyboard; what it has no key for is left out."""
    press(keyboard, [character for character in text if character in CHARACTERS])
