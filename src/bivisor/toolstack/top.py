"""`bivisor top`: the domains of a host or a machine, what they come out for, and where the time goes.

A sample is what the host or machine has counted so far (request `top`); two of them make rates.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bivisor.host.keys import Key, keys, no_key
from bivisor.toolstack.tracing.source import Asker, socket_of
from bivisor.toolstack.tracing.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

_ROWS = 15


@dataclass(slots=True)
class DomainRates:
    """One domain since the last look. Shares are of the time that passed: `cpu` of one processor, `outside` of that in
    which exits were handled; the others are per second, `bytes` those that requests move."""

    domid: int
    name: str
    state: str
    vcpus: int
    cpu: float = 0.0
    outside: float = 0.0
    exits: float = 0.0
    hypercalls: float = 0.0
    events: float = 0.0
    interrupts: float = 0.0
    requests: float = 0.0
    bytes: float = 0.0


@dataclass(slots=True)
class Place:
    """Where time goes: `rate` times a second, `each` µs, which is this `share` of the time that passed."""

    domain: str
    kind: str
    name: str
    rate: float
    each: float
    share: float


@dataclass(slots=True)
class Picture:
    """What happened in `seconds`."""

    seconds: float
    engine: str
    domains: list[DomainRates] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "seconds": round(self.seconds, 3),
            "engine": self.engine,
            "domains": [_rounded(asdict(row)) for row in self.domains],
            "where_time_goes": [_rounded(asdict(row)) for row in self.places],
        }


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}


_COLUMNS = {
    "exit": "exits",
    "hypercall": "hypercalls",
    "event": "events",
    "interrupt": "interrupts",
    "ring": "requests",
}


def picture(before: dict[str, Any], after: dict[str, Any]) -> Picture:
    """What happened between two samples."""
    seconds = max(1e-9, (after["time"] - before["time"]) / 1e9)
    cpu = {row["domid"]: row["cpu_time_s"] for row in before["domains"]}
    rates = {
        row["domid"]: DomainRates(
            row["domid"],
            row["name"],
            row["state"],
            row["vcpus"],
            cpu=max(0.0, row["cpu_time_s"] - cpu.get(row["domid"], 0.0)) / seconds,
        )
        for row in after["domains"]
    }
    found = Picture(seconds, str(after["engine"]), list(rates.values()))
    counted = {(row["domain"], row["kind"], row["name"]): row for row in before["counts"]}
    for row in after["counts"]:
        old = counted.get((row["domain"], row["kind"], row["name"]), {"count": 0, "ns": 0, "bytes": 0})
        count, spent = row["count"] - old["count"], row["ns"] - old["ns"]
        rate = rates.get(row["domain"])
        if count < 0:  # it began to count anew
            continue
        if rate is not None and row["kind"] in _COLUMNS:
            column = _COLUMNS[row["kind"]]
            setattr(rate, column, getattr(rate, column) + count / seconds)
            rate.bytes += (row["bytes"] - old["bytes"]) / seconds
            if row["kind"] == "exit":
                rate.outside += spent / 1e9 / seconds
        if count and spent:
            name = rate.name if rate is not None else str(row["domain"])
            place = Place(name, row["kind"], row["name"], count / seconds, spent / count / 1e3, spent / 1e9 / seconds)
            found.places.append(place)
    found.places.sort(key=lambda place: place.share, reverse=True)
    del found.places[_ROWS:]
    return found


# -------------------------------------------------------------------- showing


def top(target: str | None, *, delay: float, times: int | None, batch: bool, as_json: bool) -> None:
    """Show a picture every `delay` seconds, `times` of them or until `q`. HostError, UsageError."""
    with Asker(socket_of(target)) as asker:
        if as_json or batch or not sys.stdout.isatty():
            for number, each in enumerate(_pictures(asker, delay, times, no_key)):
                if as_json:
                    print(json.dumps(each.to_dict()), flush=True)
                else:
                    _print(each, blank=number > 0)
            return
        _live(asker, delay, times)


def _pictures(asker: Asker, delay: float, times: int | None, key: Key) -> Iterator[Picture]:
    before = asker.ask("top")
    number = 0
    while times is None or number < times:
        if key(delay) in ("q", "Q", "\x03"):
            return
        after = asker.ask("top")
        yield picture(before, after)
        before = after
        number += 1


def _print(each: Picture, *, blank: bool) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if blank:
        console.print()
    console.print(render(each))


def _live(asker: Asker, delay: float, times: int | None) -> None:
    from rich.live import Live

    with keys() as key, Live(screen=True, auto_refresh=False) as live:
        for each in _pictures(asker, delay, times, key):
            live.update(render(each), refresh=True)


def render(each: Picture) -> RenderableType:
    """The two tables."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    domains = Table(box=None, pad_edge=False, title_justify="left", header_style="bold")
    for name in ("id", "domain", "state", "vcpus", "cpu %", "outside %", "exits/s", "hypercalls/s", "events/s"):
        domains.add_column(name, justify="left" if name in ("domain", "state") else "right", no_wrap=True)
    for name in ("interrupts/s", "requests/s", "KiB/s"):
        domains.add_column(name, justify="right", no_wrap=True)
    for row in each.domains:
        numbers = (row.exits, row.hypercalls, row.events, row.interrupts, row.requests, row.bytes / 1024)
        domains.add_row(
            str(row.domid),
            Text(printable(row.name)),
            row.state,
            str(row.vcpus),
            f"{100 * row.cpu:.1f}",
            f"{100 * row.outside:.1f}",
            *(f"{number:,.0f}" for number in numbers),
        )
    places = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("where time goes", "what", "", "a second", "µs each", "% of the time"):
        places.add_column(name, justify="right" if name[:1] in ("a", "µ", "%") else "left", no_wrap=True)
    for place in each.places:
        rate, took, share = f"{place.rate:,.1f}", f"{place.each:,.1f}", f"{100 * place.share:.2f}"
        names = (Text(printable(name)) for name in (place.domain, place.kind, place.name))
        places.add_row(*names, rate, took, share)
    return Group(f"engine {each.engine}, {each.seconds:.1f} s; q quits", "", domains, "", places)
