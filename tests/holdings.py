"""What this process holds of its host, so that a test can tell whether something was not given back."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path

MAPPINGS_SLACK = 5  # the allocators' own come and go; what is left behind in each of many cycles is many more


@dataclass(frozen=True, eq=False, slots=True)
class Holdings:
    """Open descriptors, mappings, Python threads and kernel threads. Equal: the same but for `MAPPINGS_SLACK`."""

    descriptors: int
    mappings: int
    threads: int
    tasks: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Holdings):
            return NotImplemented
        return self._exact == other._exact and abs(self.mappings - other.mappings) <= MAPPINGS_SLACK

    __hash__ = None  # type: ignore[assignment]

    @property
    def _exact(self) -> tuple[int, int, int]:
        return self.descriptors, self.threads, self.tasks


def holdings() -> Holdings:
    """What is held now, after a collection of garbage."""
    gc.collect()
    with os.scandir("/proc/self/fd") as listing:
        descriptors = sum(1 for _ in listing) - 1  # without the one that reads this directory
    mappings = Path("/proc/self/maps").read_text().count("\n")
    tasks = sum(1 for _ in Path("/proc/self/task").iterdir())
    return Holdings(descriptors, mappings, threading.active_count(), tasks)
