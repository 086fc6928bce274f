"""xl vcpu-set."""

from __future__ import annotations

import click

from bivisor.cli.xl.common import connect


@click.command("vcpu-set", epilog="\b\nExample:\n  bivisor xl vcpu-set demo 2\n")
@click.argument("domain")
@click.argument("count", type=int)
def vcpu_set(domain: str, count: int) -> int:
    """Set how many of a domain's processors its kernel is to use, of the maxvcpus that it was created with.

    A kernel brings up those that it is told of, if it is made for that: Linux in a PV domain is.
    """
    with connect() as host:
        host.call("vcpu_set", domain=domain, count=count)
    return 0
