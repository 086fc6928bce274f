"""The file that a new disk image goes to: locked as a machine locks its disks, and never left half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bivisor.errors import HostError
from bivisor.host import filelock


@contextmanager
def to_write(path: Path) -> Iterator[BinaryIO]:
    """`path` for a new image, made if it is not there, and taken away again where nothing comes of it. What is there
    stays as it is until something is written. HostError where it cannot be written, or a machine has it."""
    is_new = not path.exists()
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as out:
            try:
                if not filelock.lock(out.fileno(), writing=True):
                    raise filelock.in_use(path)
                yield out
            except BaseException:
                if is_new:
                    path.unlink()
                raise
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error
