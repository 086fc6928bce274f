"""What went one way through an interface."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """`errors` are frames that the front-end got wrong, `dropped` those that it had no place for."""

    frames: int = 0
    bytes: int = 0
    errors: int = 0
    dropped: int = 0
