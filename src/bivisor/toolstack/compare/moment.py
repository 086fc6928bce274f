"""Moments by two clocks: the wall's, and that of the processor time of all of this program's threads.

On a machine with other work the second is what a run would take without it, but for what it waits for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """Seconds of `time.perf_counter` and of `time.process_time`; or how many passed between two moments."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Moment:
        """This one."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, before: Moment) -> Moment:
        """What passed."""
        return Moment(self.wall - before.wall, self.cpu - before.cpu)


NEVER = Moment(0.0, 0.0)


def least(spans: list[Moment]) -> Moment:
    """The least of each clock."""
    return Moment(min(span.wall for span in spans), min(span.cpu for span in spans))
