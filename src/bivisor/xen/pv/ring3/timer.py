"""The one-shot timer of a PV domain's processor on engine `kvm`, whose own thread it takes out of the guest.

A kernel that ticks sets it anew at each tick, for as much later as the tick before. So the host's timer repeats itself
(`cpu/kvm/alarm.py`): a deadline near to when it comes next, or later, is only noted by the stub (stub.S, EARLIEST), and
no hypercall leaves the guest. Like Xen's own timers it may be late by `SLACK_NS`, so that it need not be set for each.

All of this is for the processor's thread alone.
"""

from __future__ import annotations

from typing import Final

from bivisor.cpu.kvm.alarm import Alarm
from bivisor.xen.pv.ring3.block import NEVER, Block

SLACK_NS: Final = 50_000
_SECOND: Final = 1_000_000_000
_TICKS: Final = range(50, 2001)
"""How often a second a kernel may tick."""
_AGAIN_NS: Final = 2_000_000
_TICK_TAKES_NS: Final = 200_000
"""How long it is until a kernel that was interrupted sets its timer: it leaves out ticks that would be before."""
_LONGEST_NS: Final = 3_600_000_000_000


class OneShot:
    """That of the processor whose `block` is given. Times are system time, in nanoseconds."""

    def __init__(self, block: Block) -> None:
        self._times = block.times
        self._alarm: Alarm | None = None
        self._next: int = NEVER
        """When the host's timer comes next."""
        self._again = self._interval = _AGAIN_NS
        """How long a tick lasts, and after how long the host's timer comes once more."""
        self._last = self._hz = 0
        self.outside = False
        """Whether each hypercall has to leave the guest."""

    def listen(self, anybody: bool) -> None:
        """Have all hypercalls leave the guest if there is anybody to hear of them. From any thread."""
        self.outside = anybody
        if anybody:
            self._times[0] = NEVER

    @property
    def is_set(self) -> bool:
        """Whether there is a deadline."""
        return self._times[1] != NEVER

    def set(self, deadline: int, now: int) -> None:
        """Ring at `deadline`, which is signed, as Xen has it."""
        self._times[1] = deadline = deadline if deadline <= NEVER else deadline - (1 << 64)
        self._wind(deadline, now)

    def stop(self) -> None:
        """Ring no more."""
        self._times[0] = self._times[1] = self._next = NEVER

    def is_due(self, now: int) -> bool:
        """Whether it rings: once for a deadline."""
        deadline = self._times[1]
        if now < deadline:
            return False
        self._times[1] = NEVER
        between = deadline - self._last
        if not -SLACK_NS < between - self._again < SLACK_NS:
            self._learn(between)
        self._last = deadline
        return True

    def _learn(self, between: int) -> None:
        """Two deadlines were so far apart. It takes two like that to make a tick: some are left out."""
        hz = round(_SECOND / between) if between > 0 else 0
        if hz == self._hz and hz in _TICKS and abs(between - _SECOND // hz) < SLACK_NS:
            self._again = _SECOND // hz
        self._hz = hz

    def alarmed(self, now: int) -> bool:
        """The host's timer has come: whether it rings. Makes it come for what is set, or will be."""
        due = self.is_due(now)
        wanted = self._times[1]
        if due:
            late = now + _TICK_TAKES_NS - self._last
            wanted = self._last + self._again * (late // self._again + 1)
        if wanted == NEVER:
            if self._alarm is not None:
                self._alarm.off()
            self.stop()
            return due
        self._next += self._interval
        if not wanted <= self._next <= wanted + 2 * SLACK_NS or self._next <= now:
            self._wind(max(wanted, now) + SLACK_NS, now)
        else:
            self._times[0] = NEVER if self.outside else self._next - 2 * SLACK_NS
        return due

    def take(self) -> int | None:
        """Its deadline, which it does not ring at any more."""
        deadline = self._times[1]
        if self._alarm is not None and self._next != NEVER:
            self._alarm.off()
        self.stop()
        return None if deadline == NEVER else deadline

    def _wind(self, at: int, now: int) -> None:
        if self._alarm is None:
            self._alarm = Alarm()
        after = min(max(at - now, 1), _LONGEST_NS)
        self._alarm.set(after, self._again)
        self._interval = self._again
        self._next = now + after
        self._times[0] = NEVER if self.outside else self._next - 2 * SLACK_NS

    def close(self) -> None:
        """Give the host's timer back."""
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None
