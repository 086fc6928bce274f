"""`bivisor check`: the host report. See `bivisor.cpu.hostcheck`."""

from __future__ import annotations

import click

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("check")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with every figure.")
def command(as_json: bool) -> int:
    """Say what this host can do for guests, and how fast.

    It opens /dev/kvm, asks for every capability and measures both engines. Exit status 0: some engine works; 1: none.
    """
    from bivisor.cpu.hostcheck import check_host

    report = check_host()
    if as_json:
        import json

        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        rows = report.lines()
        width = max(len(row.title) for row in rows)
        for row in rows:
            status = click.style(f"{row.status.value:<4}", fg=_COLOURS[row.status.value])
            click.echo(f"{status}  {row.title:<{width}}  {row.detail}")  # click leaves colours out where none are shown
    return 0 if report.verdict.engine else 1
