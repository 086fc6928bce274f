"""`bivisor host`: a Xen host in the background, for `bivisor xl`. See `bivisor.toolstack.hostd`."""

from __future__ import annotations

import threading

import click

from bivisor.cli.seconds import Seconds

STATE = click.option(
    "--state", metavar="DIR", help="The host's folder, instead of $BIVISOR_HOST or bivisor in $XDG_RUNTIME_DIR."
)
_PATIENCE_S = 3.0
_EPILOG = """\b
Examples:
  bivisor host start                     in the background
  bivisor host status --json
  bivisor host stop                      shuts its domains down first
  eval "$(bivisor host env)"; xenstore-ls     Debian's own tools on this host's store
"""


@click.group("host", epilog=_EPILOG)
def command() -> None:
    """Start, stop and look at the Xen host that `bivisor xl` commands.

    A host is a process with a hypervisor, Dom0 and its store. Its sockets and logs are in one folder of mode 0700, and
    only the user who started it reaches it.
    """


@command.command("start", epilog="Exit status: 0 it runs; 2 it cannot, and a line says why.")
@STATE
@click.option("--engine", metavar="auto|kvm|soft", default="auto", show_default=True, help="What runs the domains.")
@click.option("--foreground", is_flag=True, help="Do not go into the background: for service managers.")
@click.option("--detach", is_flag=True, hidden=True)
@click.option("--ready", type=int, default=-1, hidden=True)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but errors.")
def start(state: str | None, engine: str, foreground: bool, detach: bool, ready: int, quiet: bool) -> int:
    """Start a host, if none runs in this folder."""
    from bivisor.toolstack.hostd.place import place_of

    place = place_of(state)
    if foreground:
        from bivisor.toolstack.hostd.process import run

        run(place, engine, ready=ready, detach=detach)
        return 0
    from bivisor.errors import HostError
    from bivisor.toolstack.hostd.client import HostClient, runs
    from bivisor.toolstack.hostd.spawn import spawn

    if runs(place):
        raise HostError(f"a host runs in {place.folder} already")
    spawn(place, engine)
    if not quiet:
        with HostClient(place) as host:
            status = host.call("status")
        click.echo(f"host {status['pid']} runs in {place.folder}: {status['engine']}")
    return 0


@command.command("stop", epilog="Exit status: 0 no host runs any more, or none did.")
@STATE
@click.option("--timeout", metavar="SECONDS", type=Seconds(0), default=30.0, show_default=True,
              help="How long domains have to shut down; then they are destroyed.")  # fmt: skip
@click.option("--force", "-f", is_flag=True, help="Destroy the domains at once.")
def stop(state: str | None, timeout: float, force: bool) -> int:
    """Shut the domains down, and then the host."""
    from bivisor.toolstack.hostd.client import stop_host
    from bivisor.toolstack.hostd.place import place_of

    place = place_of(state)
    waits = threading.Timer(_PATIENCE_S, click.echo, ("bivisor: waiting for domains to shut down",), {"err": True})
    waits.daemon = True
    waits.start()
    destroyed = stop_host(place, timeout, force)
    waits.cancel()
    if destroyed is None:
        click.echo(f"no host runs in {place.folder}", err=True)
    elif destroyed and not force:
        click.echo(
            f"destroyed, for they were paused or did not shut down in {timeout:g} s: {', '.join(destroyed)}", err=True
        )
    return 0


@command.command("status", epilog="Exit status: 0 it runs; 1 it does not.")
@STATE
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(state: str | None, as_json: bool) -> int:
    """Say whether a host runs, where, and on what."""
    import json
    import time

    from bivisor.toolstack.hostd.client import HostClient, runs
    from bivisor.toolstack.hostd.place import place_of

    place = place_of(state)
    if not runs(place):
        click.echo(json.dumps({"running": False, "state": str(place.folder)}, indent=2) if as_json else "not running")
        return 1
    with HostClient(place) as host:
        found = host.call("status")
    if as_json:
        click.echo(json.dumps({"running": True, **found}, indent=2))
        return 0
    minutes = int(time.time() - found["since"]) // 60
    click.echo(f"running: process {found['pid']}, for {minutes // 60}:{minutes % 60:02}, domains {found['domains']}")
    for name in ("engine", "state", "xenstored"):
        click.echo(f"{name:<9} {found[name]}")
    return 0


@command.command("env")
@STATE
def env(state: str | None) -> int:
    """Print what a shell has to set for xenstore-ls and other tools to reach this host's store."""
    from shlex import quote

    from bivisor.toolstack.hostd.place import VARIABLE, place_of

    place = place_of(state)
    click.echo(f"export {VARIABLE}={quote(str(place.folder))}")
    click.echo(f"export XENSTORED_PATH={quote(str(place.xenstored))}")
    return 0
