"""What the guest reads of a data port without an exit a word, where the engine has a way (`Machine.feed_port`)."""

from __future__ import annotations

from typing import Protocol

TAIL = 4
"""The end of a block always comes as an access, by which the channel learns that it was read."""


class Feeder(Protocol):
    """What an engine offers; see `bivisor.cpu.contract.Machine`."""

    def feed_port(self, port: int, data: memoryview | None) -> None:
        """Let reads of `port` take `data`."""

    def taken_from_port(self) -> int:
        """How many bytes were taken."""


class _Owner(Protocol):
    def collect(self) -> None: ...


class PortFeed:
    """One buffer for the channels of a machine: who begins takes it from the other, who is told to look first."""

    def __init__(self, feeder: Feeder | None) -> None:
        self._feeder = feeder
        self._owner: _Owner | None = None

    def start(self, owner: _Owner, port: int, data: memoryview) -> None:
        """Feed `port` from `data`, less its tail."""
        if self._feeder is None or len(data) <= TAIL:
            return
        if self._owner is not None:
            self._owner.collect()
        self._feeder.feed_port(port, data[:-TAIL])
        self._owner = owner

    def stop(self, owner: _Owner) -> int:
        """End it; how many bytes `owner` has lost to the guest."""
        if self._feeder is None or self._owner is not owner:
            return 0
        taken = self._feeder.taken_from_port()
        self._feeder.feed_port(0, None)
        self._owner = None
        return taken
