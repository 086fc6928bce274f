"""How a virtual machine ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class End(Enum):
    """What ended it. The value is the exit status of `bivisor run`, but for EXIT_STATUS, whose own status counts."""

    POWER_OFF = 0
    EXIT_STATUS = -1
    RESET = 80
    PANIC = 81
    SHUTDOWN = 82
    DEAD = 83
    ENGINE = 84
    STOPPED = 130


_WORDS = {
    End.POWER_OFF: "the guest powered off",
    End.EXIT_STATUS: "the guest ended with status {status}",
    End.RESET: "the guest asked for a reset",
    End.PANIC: "the guest's kernel panicked",
    End.SHUTDOWN: "triple fault",
    End.DEAD: "the guest halted with interrupts off, and nothing can wake it",
    End.ENGINE: "the engine stopped",
    End.STOPPED: "stopped",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a machine ended: the `end`, the guest's own `status` where it gave one, and whatever else is known."""

    end: End
    status: int = 0
    detail: str = ""

    @property
    def exit_status(self) -> int:
        """The exit status that a program running the guest should end with."""
        return self.status if self.end is End.EXIT_STATUS else self.end.value

    def __str__(self) -> str:
        words = _WORDS[self.end].format(status=self.status)
        return f"{words}: {self.detail}" if self.detail else words
