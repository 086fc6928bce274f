"""FramebufferUpdate messages: which rectangles of a new picture a client is sent, and how they are encoded."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image, new

from bivisor.abi import rfb
from bivisor.vnc.changes import area, bands, changes, meet, scroll
from bivisor.vnc.contract import Box
from bivisor.vnc.encodings import ENCODERS, Encoder, Raw
from bivisor.vnc.pixels import NATIVE, Packer


class Updates:
    """What one client has on its screen. `size` is what it believes the screen to have, in pixels."""

    def __init__(self) -> None:
        self.packer = Packer(NATIVE)
        self.size = (0, 0)
        self.pointer_is_relative = False
        self._shown: Image | None = None
        self._encoders: dict[int, Encoder] = {rfb.RAW: Raw()}
        self._encoding = rfb.RAW
        self._extras: frozenset[int] = frozenset()
        self._promised: list[int] = []

    def begin(self, picture: Image) -> None:
        """The client has been told of a screen as large as `picture`, and shows nothing yet."""
        self.size = picture.size

    def set_encodings(self, numbers: Sequence[int]) -> None:
        """What the client understands, best first."""
        self._encoding = next((number for number in numbers if number in ENCODERS), rfb.RAW)
        if self._encoding not in self._encoders:  # a stream of zlib goes on as long as the client is there
            self._encoders[self._encoding] = ENCODERS[self._encoding]()
        extras = frozenset(numbers) & {rfb.COPY_RECT, rfb.DESKTOP_SIZE, rfb.POINTER_CHANGE, rfb.EXTENDED_KEY}
        for extra in (rfb.POINTER_CHANGE, rfb.EXTENDED_KEY):
            if extra in extras - self._extras:
                self._promised.append(extra)
        self._extras = extras
        self.pointer_is_relative = rfb.POINTER_CHANGE in extras

    def make(self, picture: Image, within: Box, incremental: bool) -> bytes:
        """The message that brings the client's picture up to date inside `within`, b"" where it is."""
        rectangles = [_header((0, 0, 0, 0), extra) for extra in self._promised]
        self._promised.clear()
        if picture.size != self.size:
            if rfb.DESKTOP_SIZE in self._extras:
                self.size, self._shown = picture.size, None
                # It forgets its picture, and asks for all of the new one.
                rectangles.append(_header((0, 0, *picture.size), rfb.DESKTOP_SIZE))
                return _message(rectangles)
            picture = picture.crop((0, 0, *self.size))
        rectangles += self._pixels(picture, within, incremental)
        return _message(rectangles) if rectangles else b""

    def _pixels(self, picture: Image, within: Box, incremental: bool) -> list[bytes]:
        shown = self._shown
        everything = (0, 0, *self.size)
        found = meet(within, everything)
        if found is None:
            return []
        rectangles = []
        if shown is None or not incremental:
            boxes = list(bands(found))
        else:
            boxes = changes(shown, picture, found)
            moved = None
            if rfb.COPY_RECT in self._extras and found == everything and 2 * area(boxes) > area([everything]):
                moved = scroll(shown, picture)
            if moved is not None:
                lines, height = moved
                width = self.size[0]
                rectangles.append(_header((0, 0, width, height), rfb.COPY_RECT) + (0).to_bytes(2) + lines.to_bytes(2))
                boxes = changes(shown, picture, (0, height, *self.size))
        encode = self._encoders[self._encoding].encode
        for box in boxes:
            rectangles.append(_header(box, self._encoding) + encode(picture.crop(box), self.packer))
        self._remember(picture, boxes, found == everything)
        return rectangles

    def _remember(self, picture: Image, boxes: Sequence[Box], is_all: bool) -> None:
        """What the client shows now, which is not all of `picture` where it asked for a part."""

        if is_all:
            self._shown = picture
            return
        shown = self._shown.copy() if self._shown is not None else new("RGB", self.size)
        for box in boxes:
            shown.paste(picture.crop(box), box)
        self._shown = shown


def _header(box: Box, encoding: int) -> bytes:
    left, top, right, bottom = box
    return rfb.RECTANGLE.pack(left, top, right - left, bottom - top, encoding)


def _message(rectangles: Sequence[bytes]) -> bytes:
    return rfb.UPDATE_HEADER.pack(rfb.UPDATE, len(rectangles)) + b"".join(rectangles)
