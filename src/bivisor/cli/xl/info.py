"""xl info and dmesg."""

from __future__ import annotations

import json

import click

from bivisor.cli.xl.common import connect


@click.command("info", epilog="\b\nExample:\n  bivisor xl info\n")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(as_json: bool) -> int:
    """Print what is known of the host, memory in MiB."""
    with connect() as host:
        fields = host.call("info")
    if as_json:
        click.echo(json.dumps(fields, indent=4))
        return 0
    for name, value in fields.items():
        click.echo(f"{name:<22} : {value}")
    return 0


@click.command("dmesg", epilog="\b\nExample:\n  bivisor xl dmesg\n")
@click.option("--clear", "-c", is_flag=True, help="And clear them.")
def dmesg(clear: bool) -> int:
    """Print the hypervisor's messages, with what domains wrote to its console."""
    with connect() as host:
        click.echo(host.call("dmesg", clear=clear), nl=False)
    return 0
