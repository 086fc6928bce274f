"""What has changed from one picture to the next: rectangles, and whether all of it has moved up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from PIL import ImageChops
from PIL.Image import Image

from bivisor.vnc.contract import Box

BAND = 64
"""The height of a rectangle is at most this."""
WIDTH_MAX = 2048
_STEPS = (16, 8, 14, 32, 48, 64, 80, 96, 112, 128)
_SAMPLE = 16


def changes(old: Image, new: Image, within: Box) -> list[Box]:
    """Rectangles, none of which meet, that cover what differs inside `within`. Both have the same size."""

    if old is new:
        return []
    difference = ImageChops.difference(old, new)
    found = []
    for left, top, right, bottom in bands(within):
        box = difference.crop((left, top, right, bottom)).getbbox()
        if box is not None:
            found.append((left + box[0], top + box[1], left + box[2], top + box[3]))
    return found


def bands(box: Box) -> Iterator[Box]:
    """`box` in pieces of at most WIDTH_MAX by BAND."""
    left, top, right, bottom = box
    for y in range(top, bottom, BAND):
        for x in range(left, right, WIDTH_MAX):
            yield x, y, min(x + WIDTH_MAX, right), min(y + BAND, bottom)


def scroll(old: Image, new: Image) -> tuple[int, int] | None:
    """(lines, height): the first `height` lines of `new` stood `lines` further down in `old`; None if it is not so."""
    width, height = new.size
    stride = 3 * width
    before, now = old.tobytes(), new.tobytes()
    sample = now[: _SAMPLE * stride]
    if before.startswith(sample):
        return None
    for lines in _STEPS:
        kept = height - 3 * lines
        if kept < _SAMPLE or before[lines * stride : (lines + _SAMPLE) * stride] != sample:
            continue
        if before[lines * stride : (lines + kept) * stride] == now[: kept * stride]:
            return lines, kept
    return None


def area(boxes: Iterable[Box]) -> int:
    """How many pixels they cover."""
    return sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)


def meet(first: Box, second: Box) -> Box | None:
    """What both cover, None for nothing."""
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right, bottom = min(first[2], second[2]), min(first[3], second[3])
    return (left, top, right, bottom) if left < right and top < bottom else None


def around(first: Box, second: Box) -> Box:
    """The smallest that covers both."""
    return min(first[0], second[0]), min(first[1], second[1]), max(first[2], second[2]), max(first[3], second[3])
