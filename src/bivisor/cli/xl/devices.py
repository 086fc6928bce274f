"""xl network-attach, network-detach, network-list, and the same of block."""

from __future__ import annotations

import json
from typing import Any

import click

from bivisor.cli.xl.common import connect, say

_DOMAIN = click.argument("domain")
_JSON = click.option("--json", "as_json", is_flag=True, help="As JSON.")
_FORCE = click.option("--force", is_flag=True, help="Even if the guest does not let go of it.")
_NETWORK_HEAD = f"{'Idx':<3} {'BE':<2} {'Mac Addr.':<17} handle state evt-ch   tx-/rx-ring-ref {'BE-path':<30}"

_BLOCK_HEAD = f"{'Vdev':<5} {'BE':<3} handle state evt-ch ring-ref {'BE-path':<30}"

_BLOCK_ATTACH = """\b
Examples:
  bivisor xl block-attach demo disk.img,raw,xvdb,rw
  bivisor xl block-attach demo format=raw vdev=xvdb access=ro target=disk.img
"""


@click.command("block-attach", epilog=_BLOCK_ATTACH)
@_DOMAIN
@click.argument("words", nargs=-1, required=True, metavar="DISKSPEC...")
def block_attach(domain: str, words: tuple[str, ...]) -> int:
    """Give a domain another disk, described as in disk=[...] (xl-disk-configuration(5)). The guest hears of it."""
    from pathlib import Path

    from bivisor.toolstack.xlconfig import DiskSpec

    spec = DiskSpec.parse(",".join(words)).absolute(Path.cwd())
    with connect() as host:
        host.call("block_attach", domain=domain, disk=spec.to_json())
    return 0


@click.command("block-detach", epilog="\b\nExample:\n  bivisor xl block-detach demo xvdb\n")
@_DOMAIN
@click.argument("device", metavar="DEVICE|DEVID")
@_FORCE
def block_detach(domain: str, device: str, force: bool) -> int:
    """Take a disk from a domain. Its guest has to let go of it, so it is not to be mounted any more."""
    with connect() as host:
        host.call("block_detach", domain=domain, device=device, force=force)
    return 0


@click.command("block-list", epilog="\b\nExample:\n  bivisor xl block-list demo\n")
@click.argument("domains", nargs=-1, required=True, metavar="DOMAIN...")
@_JSON
def block_list(domains: tuple[str, ...], as_json: bool) -> int:
    """List the disks of domains."""

    def line(row: dict[str, Any]) -> str:
        who = f"{row['vdev']:<5} {row['be']:<3} {row['handle']:<6} {row['state']:<5}"
        return f"{who} {row['evt_ch']:<6} {row['ring_ref']:<8} {row['be_path']:<30}"

    return _list("block_list", domains, as_json, _BLOCK_HEAD, line)


_NETWORK_ATTACH = """\b
Examples:
  bivisor xl network-attach demo bridge=xenbr0
  bivisor xl network-attach demo type=user
"""


@click.command("network-attach", epilog=_NETWORK_ATTACH)
@_DOMAIN
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
def network_attach(domain: str, words: tuple[str, ...]) -> int:
    """Give a domain another network interface, described as in vif=[...]."""
    from bivisor.toolstack.xlconfig import VifSpec

    spec = VifSpec.parse(",".join(words))
    with connect() as host:
        host.call("network_attach", domain=domain, vif=spec.to_json())
    return 0


@click.command("network-detach", epilog="\b\nExamples:\n  bivisor xl network-detach demo 0\n")
@_DOMAIN
@click.argument("device", metavar="DEVID|MAC")
@_FORCE
def network_detach(domain: str, device: str, force: bool) -> int:
    """Take a network interface from a domain."""
    with connect() as host:
        host.call("network_detach", domain=domain, device=device.lower(), force=force)
    return 0


@click.command("network-list", epilog="\b\nExample:\n  bivisor xl network-list demo\n")
@click.argument("domains", nargs=-1, required=True, metavar="DOMAIN...")
@_JSON
def network_list(domains: tuple[str, ...], as_json: bool) -> int:
    """List the network interfaces of domains."""

    def line(row: dict[str, Any]) -> str:
        who = f"{row['idx']:<3} {row['be']:<2} {row['mac']:<17}"
        refs = f"{row['tx_ring_ref']:>5}/{row['rx_ring_ref']:<11}"
        return f"{who}{row['handle']:>6} {row['state']:>5} {row['evt_ch']:>6} {refs} {row['be_path']:<30}"

    return _list("network_list", domains, as_json, _NETWORK_HEAD, line)


def _list(method: str, domains: tuple[str, ...], as_json: bool, head: str, line: Any) -> int:
    from bivisor.errors import UsageError

    rows: list[dict[str, Any]] = []
    failed = None
    with connect() as host:
        for domain in domains:
            try:
                rows += host.call(method, domain=domain)
            except UsageError as error:
                failed = error
                say(str(error))
    if as_json:
        click.echo(json.dumps(rows, indent=4))
    else:
        click.echo(head)
        for row in rows:
            click.echo(line(row))
    return failed.status if failed is not None else 0
