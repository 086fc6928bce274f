"""Single keys from a terminal, for a program that shows something and listens meanwhile."""

from __future__ import annotations

import os
import select
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Key = Callable[[float], str]
"""The key that is pressed within so many seconds, "" for none."""


@contextmanager
def keys(fd: int = 0) -> Iterator[Key]:
    """Keys of the terminal `fd`, unechoed and one by one; where it is none there are no keys."""
    if not os.isatty(fd):
        yield no_key
        return
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield lambda seconds: _key(fd, seconds)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _key(fd: int, seconds: float) -> str:
    if not select.select([fd], [], [], seconds)[0]:
        return ""
    return os.read(fd, 1).decode("latin-1") or "q"  # the terminal has gone


def no_key(seconds: float) -> str:
    """A `Key` where there is nobody to press one."""
    time.sleep(seconds)
    return ""
