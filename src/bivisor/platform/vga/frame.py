"""A picture of the screen, as a toolkit for images takes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """`pixels` are `height` rows of `stride` bytes. `depth` 8: indices into `palette` (768 bytes of RGB); 15, 16, 24
    and 32: little-endian blue, green, red."""

    width: int
    height: int
    depth: int
    stride: int
    pixels: bytes
    palette: bytes = b""
