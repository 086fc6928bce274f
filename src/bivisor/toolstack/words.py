"""What the default guest is told of the terminal on its console, on the kernel's command line (image/initramfs.py)."""

from __future__ import annotations

import os


def terminal_words(size: tuple[int, int]) -> str:
    """The words for a terminal of `size` (columns, rows), of the kind that $TERM names."""
    columns, rows = size
    term = os.environ.get("TERM", "")
    known = f" bivisor.term={term}" if term.isascii() and term and not term.split()[1:] else ""
    return f"bivisor.size={rows}x{columns}{known}"
