"""xl list, vcpu-list, uptime, domid, domname."""

from __future__ import annotations

import json
from typing import Any

import click

from bivisor.cli.xl.common import connect
from bivisor.errors import UsageError

_LIST_HEAD = f"{'Name':<40} {'ID':>5} {'Mem':>5} VCPUs\tState\tTime(s)"
_VCPU_HEAD = f"{'Name':<32} {'ID':>5} {'VCPU':>5} {'CPU':>5} {'State':>5} {'Time(s)':>9} Affinity (Hard / Soft)"
_NO_REASON = "-"


def select(rows: list[dict[str, Any]], wanted: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of these domains, of all where none is named. UsageError for one that is not there."""
    if not wanted:
        return rows
    found = []
    for words in wanted:
        matches = [row for row in rows if words in (row["name"], str(row["domid"]))]
        if not matches:
            raise UsageError(f"there is no domain {words}")
        found += matches
    return found


@click.command("list", epilog="\b\nExamples:\n  bivisor xl list\n  bivisor xl list -l demo | jq '.[0].config.memory'\n")
@click.argument("domains", nargs=-1, metavar="[DOMAIN]...")
@click.option("--long", "-l", "--json", "long", is_flag=True, help="As JSON, with each domain's configuration.")
@click.option("--verbose", "-v", is_flag=True, help="UUIDs and why domains have shut down, too.")
def list_(domains: tuple[str, ...], long: bool, verbose: bool) -> int:
    """List domains.

    State: r it runs, b it waits, p it is paused, s it has shut down, c it crashed, d it is going.
    """
    with connect() as host:
        rows = select(host.call("list"), domains)
    if long:
        click.echo(json.dumps(rows, indent=4))
        return 0
    click.echo(_LIST_HEAD + (f"   {'UUID':<31} Reason-Code\tSecurity Label" if verbose else ""))
    for row in rows:
        line = (
            f"{row['name']:<40} {row['domid']:>5} {row['memory_kib'] // 1024:>5} {row['vcpus']:>5}     {row['state']}"
            f"  {row['cpu_time_s']:>8.1f}"
        )
        if verbose:
            reason = _NO_REASON if row["reason"] is None else str(row["reason"])
            line += f" {row['uuid']} {reason:>8} {_NO_REASON:>16}"
        click.echo(line)
    return 0


@click.command("vcpu-list", epilog="\b\nExample:\n  bivisor xl vcpu-list demo\n")
@click.argument("domains", nargs=-1, metavar="[DOMAIN]...")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def vcpu_list(domains: tuple[str, ...], as_json: bool) -> int:
    """List virtual processors: of all domains, or of those that are named."""
    with connect() as host:
        rows = host.call("vcpu_list", domains=list(domains))
    if as_json:
        click.echo(json.dumps(rows, indent=4))
        return 0
    click.echo(_VCPU_HEAD)
    for row in rows:
        cpu = "-" if row["cpu"] is None else str(row["cpu"])
        state = row["state"] if row["online"] else "--p"
        who = f"{row['name']:<32} {row['domid']:>5} {row['vcpu']:>5}"
        click.echo(f"{who} {cpu:>4}   {state} {row['cpu_time_s']:>9.1f}  all / all")
    return 0


@click.command("uptime", epilog="\b\nExample:\n  bivisor xl uptime demo\n")
@click.argument("domains", nargs=-1, metavar="[DOMAIN]...")
def uptime(domains: tuple[str, ...]) -> int:
    """Print for how long domains have run."""
    with connect() as host:
        rows = select(host.call("list"), domains)
    click.echo(f"{'Name':<33} {'ID':>4} Uptime")
    for row in rows:
        minutes, seconds = divmod(int(row["uptime_s"]), 60)
        click.echo(f"{row['name']:<33} {row['domid']:>4}  {minutes // 60}:{minutes % 60:02}:{seconds:02}")
    return 0


@click.command("domid", epilog="\b\nExample:\n  bivisor xl domid demo\n")
@click.argument("name")
def domid(name: str) -> int:
    """Convert a domain name to its id."""
    with connect() as host:
        _one(name, [row["domid"] for row in host.call("list") if row["name"] == name])
    return 0


@click.command("domname", epilog="\b\nExample:\n  bivisor xl domname 1\n")
@click.argument("domid", type=int)
def domname(domid: int) -> int:
    """Convert a domain id to its name."""
    with connect() as host:
        _one(domid, [row["name"] for row in host.call("list") if row["domid"] == domid])
    return 0


def _one(asked: object, found: list[Any]) -> None:
    if not found:
        raise UsageError(f"there is no domain {asked}")
    click.echo(found[0])
