"""`bivisor trace`: what happens in a running host or machine, or what was recorded. See docs/events.md."""

from __future__ import annotations

import sys

import click

from bivisor.cli.seconds import Seconds

_EPILOG = """\b
Examples:
  bivisor trace                                     the host that `bivisor xl` commands, live
  bivisor trace --kind hypercall --domain demo --name 'event_channel_op.*'
  bivisor trace --kind ring,event,interrupt,hypercall --perfetto disk.pftrace --duration 5
  bivisor trace demo --json > demo.jsonl            a machine of `bivisor run --name demo`
  bivisor trace --from demo.jsonl --perfetto demo.pftrace

\b
Kinds: exit, entry, hypercall, event, grant, xenstore, xenbus, ring, interrupt, device, life.
Without --kind it is all but entry and device, which an exit tells of as well.
Exit status: 0 the end, or Ctrl-C; 2 there is nothing to trace, and a line says why.
"""


@click.command("trace", epilog=_EPILOG)
@click.argument("target", required=False, metavar="[HOST|MACHINE]")
@click.option("--kind", "kinds", multiple=True, metavar="KIND,…", help="Only such events.")
@click.option("--domain", "domains", multiple=True, metavar="NAME|ID,…", help="Only of these domains.")
@click.option("--name", "names", multiple=True, metavar="PATTERN,…", help="Only with such a name, device or path.")
@click.option("--duration", metavar="SECONDS", type=Seconds(0, min_open=True), help="End after this time.")
@click.option("--count", metavar="N", type=click.IntRange(1), help="End after so many events.")
@click.option("--from", "source", metavar="FILE", help="Take events from a file of JSON lines.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each event.")
@click.option("--perfetto", metavar="FILE", help="Write a trace for ui.perfetto.dev.")
def command(
    target: str | None,
    kinds: tuple[str, ...],
    domains: tuple[str, ...],
    names: tuple[str, ...],
    duration: float | None,
    count: int | None,
    source: str | None,
    as_json: bool,
    perfetto: str | None,
) -> int:
    """Show what happens: exits, hypercalls, events, grants, the store, requests in rings, interrupts.

    HOST is a host's folder (its usual place, if it is not given), MACHINE the name of a machine of `bivisor run`.
    """
    from pathlib import Path

    from bivisor.errors import UsageError
    from bivisor.toolstack.tracing.show import show
    from bivisor.toolstack.tracing.wanted import Wanted

    if source is not None and (target is not None or duration is not None):
        raise UsageError("--from takes events from a file: there is nothing to attach to, and nothing that lasts")
    if as_json and perfetto is not None:
        raise UsageError("--json and --perfetto are two formats: one at a time (--from makes one of the other)")
    shown = show(
        Wanted.of(kinds, domains, names),
        target=target,
        source=None if source is None else Path(source),
        seconds=duration,
        count=count,
        as_json=as_json,
        perfetto=None if perfetto is None else Path(perfetto),
        colour=sys.stdout.isatty(),
    )
    if shown.lost:
        click.echo(f"bivisor: {shown.lost} events were lost: they came faster than they could be taken", err=True)
    if perfetto is not None:
        click.echo(f"{perfetto}: {shown.events} events", err=True)
    return 0
