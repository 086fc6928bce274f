"""What a comparison found out, as frozen records, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

BOOT = "boot"
WALL, PROCESSOR = "wall", "processor"


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened in a phase. `exits` by reason and device, `hypercalls` by name, `batched` those inside of a
    multicall, `events` through event channels by "to the back-end" or "to the guest", `interrupts` by their way,
    `grants` by operation, `requests` that disks and networks took out of rings, and how many `bytes` they moved."""

    exits: Mapping[str, int] = field(default_factory=dict)
    hypercalls: Mapping[str, int] = field(default_factory=dict)
    batched: Mapping[str, int] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)
    interrupts: Mapping[str, int] = field(default_factory=dict)
    grants: Mapping[str, int] = field(default_factory=dict)
    requests: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0

    @property
    def all_exits(self) -> int:
        """Exits that were no hypercalls."""
        return sum(self.exits.values())

    @property
    def all_hypercalls(self) -> int:
        """Hypercalls, those of a multicall as one."""
        return sum(self.hypercalls.values())

    @property
    def switches(self) -> int:
        """How often the processor left the guest for the hypervisor."""
        return self.all_exits + self.all_hypercalls

    def minus(self, before: Counts) -> Counts:
        """What happened beyond `before`; nothing is less than zero."""
        maps = {}
        for name in MAPS:
            less = getattr(before, name)
            left = {key: number - less.get(key, 0) for key, number in getattr(self, name).items()}
            maps[name] = {key: number for key, number in left.items() if number > 0}
        return Counts(**maps, bytes=max(0, self.bytes - before.bytes))


MAPS = ("exits", "hypercalls", "batched", "events", "interrupts", "grants", "requests")
"""The fields of `Counts` that are numbers by name."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One phase: so many `units` were done in so many `seconds`, `cpu` of them processor time of this program; and
    `counts` of another run of it."""

    seconds: float
    units: float
    counts: Counts | None = None
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class RowResult:
    """What came of one row: its phases by name, or `missing`, why there are none. `notes` are what one of them lacks,
    by its name."""

    key: str
    phases: Mapping[str, Measured] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""
    seconds: float = 0.0

    def counts(self, phase: str) -> Counts | None:
        """What was counted in a phase."""
        measured = self.phases.get(phase)
        return None if measured is None else measured.counts


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows. `engine` ran them, `kernel` was the guest's, `memory` its MiB."""

    engine: str
    kernel: str
    memory: int
    rows: tuple[RowResult, ...]
    seconds: float
    event_us: float = 0.0
    """What counting one event costs, in µs: part of the time to user space, of no other figure."""
    clock: str = WALL
    """Which clock the seconds of the phases are of: the wall's, or the processor's."""

    def by_processor(self) -> Comparison:
        """The same with processor time for all seconds, which other work on the machine spoils less."""

        def turned(row: RowResult) -> RowResult:
            return replace(row, phases={name: replace(part, seconds=part.cpu) for name, part in row.phases.items()})

        return replace(self, rows=tuple(map(turned, self.rows)), clock=PROCESSOR)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Comparison:
        """What `to_dict` made. KeyError, TypeError where it did not."""
        rows = tuple(_row(row) for row in said["rows"])
        return cls(**{**said, "rows": rows})


def _row(said: Mapping[str, Any]) -> RowResult:
    phases = {
        name: Measured(
            part["seconds"],
            part["units"],
            None if part["counts"] is None else Counts(**part["counts"]),
            part.get("cpu", 0.0),
        )
        for name, part in said["phases"].items()
    }
    return RowResult(**{**said, "phases": phases})
