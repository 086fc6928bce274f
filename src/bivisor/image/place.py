"""Where the cache is, and by what a file is recognised without reading it."""

from __future__ import annotations

import os
from pathlib import Path


def default_root() -> Path:
    """$BIVISOR_CACHE, or bivisor under $XDG_CACHE_HOME, or ~/.cache/bivisor."""
    if root := os.environ.get("BIVISOR_CACHE"):
        return Path(root).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "bivisor"


def identity(path: Path) -> list[int]:
    """Size, modification time (ns) and inode of `path`: another content comes with another identity."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def shape(path: Path) -> list[int]:
    """Size and modification time (ns) of `path`, which are the same where a file system is seen through another."""
    return identity(path)[:2]
