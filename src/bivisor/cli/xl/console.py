"""xl console."""

from __future__ import annotations

import click

from bivisor.cli.xl.common import connect

_EPILOG = """\b
Examples:
  bivisor xl console demo
  echo 'uname -a' | timeout 3 bivisor xl console demo
"""


@click.command("console", epilog=_EPILOG)
@click.argument("domain")
@click.option("-n", "number", type=click.IntRange(0, 0), default=0, help="The console's number; there is one: 0.")
@click.option("-t", "kind", type=click.Choice(["pv"]), default="pv", help="pv is the only kind that a domain has.")
def console(domain: str, number: int, kind: str) -> int:
    """Attach to a domain's console; Ctrl-] leaves it. It ends with the domain, and not with the input."""
    from bivisor.toolstack.hostd.attach import attach

    with connect() as host:
        attach(host, domain)
    return 0
