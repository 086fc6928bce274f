"""xl destroy, shutdown, reboot, pause, unpause, rename, sysrq, trigger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bivisor.cli.xl.common import connect, say
from bivisor.errors import BivisorError, UsageError

if TYPE_CHECKING:
    from bivisor.toolstack.hostd.client import HostClient

_DOMAIN = click.argument("domain")
TRIGGERS = ("nmi", "reset", "init", "power", "sleep", "s3resume")


@click.command("destroy", epilog="\b\nExample:\n  bivisor xl destroy demo\n")
@_DOMAIN
def destroy(domain: str) -> int:
    """End a domain at once, as if its power were cut."""
    with connect() as host:
        host.call("destroy", domain=domain)
    return 0


@click.command("shutdown", epilog="\b\nExamples:\n  bivisor xl shutdown -w demo\n  bivisor xl shutdown -a -w\n")
@click.argument("domain", required=False)
@click.option("--all", "-a", "every", is_flag=True, help="Every domain.")
@click.option("--wait", "-w", "waits", count=True, help="Wait until it has shut down; twice: until it is gone.")
@click.option("-F", "fallback", is_flag=True, help="For HVM domains: a PVH domain has no power button to fall back to.")
def shutdown(domain: str | None, every: bool, waits: int, fallback: bool) -> int:
    """Ask a domain's kernel to shut down. What becomes of it then, its on_poweroff says."""
    return _order("poweroff", "Shutting down", domain, every, waits)


@click.command("reboot", epilog="\b\nExample:\n  bivisor xl reboot demo\n")
@click.argument("domain", required=False)
@click.option("--all", "-a", "every", is_flag=True, help="Every domain.")
@click.option("--wait", "-w", "waits", count=True, help="Wait until it has shut down; twice: until it is gone.")
@click.option("-F", "fallback", is_flag=True, help="For HVM domains: a PVH domain has no reset button to fall back to.")
def reboot(domain: str | None, every: bool, waits: int, fallback: bool) -> int:
    """Ask a domain's kernel to reboot. Xen makes a new domain then, of another id, as its on_reboot says."""
    return _order("reboot", "Rebooting", domain, every, waits)


def _order(order: str, doing: str, domain: str | None, every: bool, waits: int) -> int:
    if every == (domain is not None):
        raise UsageError("name a domain, or all of them by -a")
    with connect() as host:
        names = [domain] if domain is not None else [str(row["domid"]) for row in host.call("list") if row["domid"]]
        asked, failed = [], None
        for name in names:
            say(f"{doing} domain {name}")
            try:
                asked.append(str(host.call("order", domain=name, order=order)["domid"]))
            except BivisorError as error:
                if not every:
                    raise
                failed = error
                say(str(error))
        if waits:
            _wait(host, asked, death=waits > 1)
    return failed.status if failed is not None else 0


def _wait(host: HostClient, domids: list[str], *, death: bool) -> None:
    say(f"Waiting for {len(domids)} domains")
    for domid in domids:
        try:
            ended = host.call("wait", domain=domid, death=death)
        except UsageError:  # it was gone before we could ask
            ended = {"reason": None}
        reason = "" if ended["reason"] is None else f", reason code {ended['reason']}"
        say(f"Domain {domid} has been {'destroyed' if death else 'shut down'}{reason}")


@click.command("pause", epilog="\b\nExample:\n  bivisor xl pause demo\n")
@_DOMAIN
def pause(domain: str) -> int:
    """Hold a domain's processors. It keeps its memory and devices."""
    with connect() as host:
        host.call("pause", domain=domain)
    return 0


@click.command("unpause", epilog="\b\nExample:\n  bivisor xl unpause demo\n")
@_DOMAIN
def unpause(domain: str) -> int:
    """Let a paused domain go on; one that was paused twice wants it twice."""
    with connect() as host:
        host.call("unpause", domain=domain)
    return 0


@click.command("rename", epilog="\b\nExample:\n  bivisor xl rename demo web\n")
@_DOMAIN
@click.argument("name")
def rename(domain: str, name: str) -> int:
    """Give a domain another name."""
    with connect() as host:
        host.call("rename", domain=domain, name=name)
    return 0


@click.command("sysrq", epilog="\b\nExample:\n  bivisor xl sysrq demo h\n")
@_DOMAIN
@click.argument("letter")
def sysrq(domain: str, letter: str) -> int:
    """Send a magic SysRq key to a domain's kernel, which answers on its console."""
    with connect() as host:
        host.call("sysrq", domain=domain, letter=letter)
    return 0


@click.command("trigger", epilog="\b\nExample:\n  bivisor xl trigger demo nmi 0\n")
@_DOMAIN
@click.argument("trigger", type=click.Choice(TRIGGERS))
@click.argument("vcpu", type=click.IntRange(0, 127), default=0)
def trigger(domain: str, trigger: str, vcpu: int) -> int:
    """Send an NMI to a domain's processor. What else xl has is for HVM domains."""
    with connect() as host:
        host.call("trigger", domain=domain, trigger=trigger, vcpu=vcpu)
    return 0
