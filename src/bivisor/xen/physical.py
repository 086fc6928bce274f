"""The machine under the hypervisor, as XEN_SYSCTL_physinfo and its relatives tell of it: this host."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from bivisor.memory import PAGE, host_limit


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _khz() -> int:
    return 0


@dataclass
class Physical:
    """Processors that this process may use, pages of memory that the host can back, and the processors' speed."""

    cpus: int = field(default_factory=_cpus)
    pages: int = field(default_factory=lambda: host_limit() // PAGE)
    khz: Callable[[], int] = _khz
    """The frequency of the time-stamp counter; 0 where no engine has been asked."""
