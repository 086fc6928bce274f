"""The tables of a comparison: a row's figures, and what happened by name; as text, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bivisor.toolstack.compare import workload
from bivisor.toolstack.compare.result import BOOT, Comparison, Counts, RowResult
from bivisor.toolstack.compare.rows import ROWS, Row

NONE = "-"
_SHOWN = 9
_TITLES = {row.key: row for row in ROWS}


@dataclass(frozen=True, slots=True)
class Table:
    """`caption` says what is in it; the first cell of a line is its name."""

    caption: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A column: `value` of a row, None where it has none, shown with `places` decimals. `less` is better."""

    key: str
    title: str
    unit: str
    value: Callable[[RowResult], float | None]
    places: int
    less: bool = True

    def text(self, result: RowResult) -> str:
        """As it is shown."""
        value = self.value(result)
        return NONE if value is None else f"{value:,.{self.places}f}"


def each(phase: str, scale: float) -> Callable[[RowResult], float | None]:
    """The seconds that one unit of a phase takes, times `scale`."""

    def value(result: RowResult) -> float | None:
        measured = result.phases.get(phase)
        return None if measured is None else measured.seconds / measured.units * scale

    return value


def rate(phase: str) -> Callable[[RowResult], float | None]:
    """The units of a phase that get done in a second."""

    def value(result: RowResult) -> float | None:
        measured = result.phases.get(phase)
        return None if measured is None else measured.rate

    return value


def per_unit(
    phase: str, number: Callable[[Counts], int] = lambda counts: counts.switches
) -> Callable[..., float | None]:
    """How many of something a unit of a phase takes."""

    def value(result: RowResult) -> float | None:
        measured = result.phases.get(phase)
        return None if measured is None or measured.counts is None else number(measured.counts) / measured.units

    return value


FIGURES = (
    Figure("boot", "time to user space", "s", each(BOOT, 1), 1),
    Figure("boot-switches", "switches until then", "", per_unit(BOOT), 0),
    Figure("call", "system call", "µs", each("calls", 1e6), 2),
    Figure("program", "fork, exec, exit", "ms", each("programs", 1e3), 1),
    Figure("program-switches", "switches for a program", "", per_unit("programs"), 1),
    Figure("request", "4 KiB disk read", "µs", each("requests", 1e6), 0),
    Figure("request-switches", "switches for a read", "", per_unit("requests"), 1),
    Figure("disk", "disk, in order", "MiB/s", rate("read"), 0, less=False),
    Figure("network", "network, sending", "MiB/s", rate(workload.SEND), 0, less=False),
    Figure("network-switches", "switches for a MiB sent", "", per_unit(workload.SEND), 0),
)
"""What is shown of each row, in this order."""


def row_of(result: RowResult) -> Row:
    """What the row is."""
    return _TITLES[result.key]


def figures_table(comparison: Comparison) -> Table:
    """The figures of every row; one that could not be has its reason behind its name."""
    head = ("", *(f"{figure.title}, {figure.unit}" if figure.unit else figure.title for figure in FIGURES))
    copies = ("copies of a byte read", "copies of a byte sent")
    lines = []
    for result in comparison.rows:
        row = row_of(result)
        made = (row.disk_copies, row.network_copies) if not result.missing else (NONE, NONE)
        lines.append((row.title, *(figure.text(result) for figure in FIGURES), *made))
    return Table("figures", (*head, *copies), tuple(lines))


def happenings_tables(comparison: Comparison) -> list[Table]:
    """Exits by reason and hypercalls by name: until user space, and while disk and network work."""
    titles = {
        BOOT: "until user space",
        "programs": f"while {workload.PROGRAMS} programs start",
        "requests": f"while {workload.REQUESTS} times 4 KiB are read",
        workload.SEND: f"while {workload.SENT} MiB are sent",
    }
    return [_happenings(comparison, phase, title) for phase, title in titles.items()]


def _happenings(comparison: Comparison, phase: str, title: str) -> Table:
    results = [result for result in comparison.rows if result.counts(phase) is not None]
    lines: list[tuple[str, ...]] = []
    for word, field in _FIELDS:
        columns = [_numbers(result.counts(phase), field) for result in results]
        lines += _most(word, columns)
    return Table(title, ("", *(row_of(result).title for result in results)), tuple(lines))


_FIELDS = (
    ("exit", "exits"),
    ("hypercall", "hypercalls"),
    ("in a multicall", "batched"),
    ("event", "events"),
    ("interrupt", "interrupts"),
    ("grant", "grants"),
    ("request", "requests"),
)


def _numbers(counts: Counts | None, field: str) -> dict[str, int]:
    return {} if counts is None else dict(getattr(counts, field))


def _most(word: str, columns: list[dict[str, int]]) -> Iterable[tuple[str, ...]]:
    """A line for each of the most frequent names, and one for the rest."""
    total: dict[str, int] = {}
    for column in columns:
        for name, number in column.items():
            total[name] = max(total.get(name, 0), number)
    names = sorted(total, key=lambda name: (-total[name], name))
    shown = len(names) if len(names) <= _SHOWN + 1 else _SHOWN
    for name in names[:shown]:
        yield (f"{word} {name}", *(_count(column.get(name, 0)) for column in columns))
    rest = names[shown:]
    if rest:
        sums = (sum(column.get(name, 0) for name in rest) for column in columns)
        yield (f"{word}, {len(rest)} others", *map(_count, sums))


def _count(number: int) -> str:
    return f"{number:,}" if number else NONE


def turned(table: Table) -> list[tuple[str, ...]]:
    """Its lines, the head first, with rows and columns exchanged where that is narrower."""
    grid = [table.head, *table.lines]
    return list(zip(*grid, strict=True)) if len(table.head) > len(grid) else grid


def as_text(table: Table) -> str:
    """For a terminal."""
    grid = turned(table)
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = (
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in grid
    )
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(table: Table) -> str:
    """For a page of documentation."""
    head, *lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in turned(table)]
    return "\n".join([head, "|---" + "|---:" * (len(turned(table)[0]) - 1) + "|", *lines])
