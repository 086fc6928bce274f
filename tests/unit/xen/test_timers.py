"""The one-shot timers of a domain."""

from __future__ import annotations

import threading
import time

from bivisor.xen.timers import Timers


def test_a_deadline_in_the_year_2554_keeps_no_other_from_ringing() -> None:
    timers = Timers(time.monotonic_ns)
    rung = threading.Event()
    timers.set("far", (1 << 64) - 1, lambda: None)
    timers.set("near", time.monotonic_ns() + 1_000_000, rung.set)
    assert rung.wait(30)
    timers.close()
