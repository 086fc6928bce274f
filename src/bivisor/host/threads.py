"""Threads of this process, as the kernel sees them (proc(5))."""

from __future__ import annotations

_AFTER_NAME = b") "


def sleeps(native_id: int) -> bool:
    """Whether the thread waits for something, and so does not want a processor. One that has ended does not."""
    try:
        with open(f"/proc/self/task/{native_id}/stat", "rb") as file:
            state = file.read(512).rpartition(_AFTER_NAME)[2][:1]
    except OSError:
        return False
    return state in (b"S", b"D")
