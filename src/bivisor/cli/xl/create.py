"""xl create and config-update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bivisor.cli.xl.common import connect, say

if TYPE_CHECKING:
    from bivisor.toolstack.xlconfig import DomainConfig

_EPILOG = """\b
Examples:
  bivisor xl create demo.cfg                      see xl.cfg(5), and docs/xen.md for the keys
  bivisor xl create -c name=demo                  no file at all: the default guest, and its console
  bivisor xl create demo.cfg memory=512 'disk=["disk.img,raw,xvda,rw"]'
  bivisor xl create -n demo.cfg                   only say what would be created
"""
_FILE = click.option("-f", "--defconfig", "file", metavar="FILE", help="The configuration file.")
_WORDS = click.argument("words", nargs=-1, metavar="[FILE] [KEY=VALUE]...")


@click.command("create", epilog=_EPILOG)
@_WORDS
@_FILE
@click.option("-c", "attaches", is_flag=True, help="Attach to its console, from its first byte on.")
@click.option("-p", "paused", is_flag=True, help="Leave it paused.")
@click.option("-F", "waits", is_flag=True, help="Stay in the foreground until it is gone.")
@click.option("-n", "--dryrun", "dry", is_flag=True, help="Only print the configuration, as JSON.")
@click.option("-d", "debug", is_flag=True, help="Print the configuration on standard error, and create it.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option(
    "--gdb", metavar="[HOST:]PORT[,wait]", help="Let gdb attach there (the key gdb); ,wait: it runs when gdb says so."
)
@click.option("-e", "stays", is_flag=True, hidden=True)
@click.option("-V", "-A", "viewer", is_flag=True, hidden=True)
def create(
    words: tuple[str, ...],
    file: str | None,
    attaches: bool,
    paused: bool,
    waits: bool,
    dry: bool,
    debug: bool,
    quiet: bool,
    gdb: str | None,
    stays: bool,
    viewer: bool,
) -> int:
    """Create a domain from a configuration file, with KEY=VALUE on top of it.

    The file has xl.cfg(5)'s syntax. Without a kernel the domain boots the default guest, as `bivisor run` does.
    """
    from bivisor.errors import UsageError

    if viewer:
        raise UsageError("-V: a PVH domain has no display to view")
    if stays:
        raise UsageError("-e: the host watches over its domains; nothing waits in the background")
    if gdb is not None:
        words = (*words, f"gdb={gdb}")
    config = _read(words, file, quiet, terminal=attaches)
    if dry or debug:
        click.echo(json.dumps(config.to_json(), indent=4), err=not dry)
        if dry:
            return 0
    with connect(start=True) as host:
        if attaches:
            _create_attached(host, config, paused, quiet)
            return 0
        made = host.call("create", config=config.to_json(), paused=paused)
        if waits:
            host.call("wait", domain=str(made["domid"]), death=True)
    return 0


def _create_attached(host: object, config: DomainConfig, paused: bool, quiet: bool) -> None:
    """Paused until the console is attached, so that its first byte is seen."""
    from bivisor.toolstack.hostd.attach import attach
    from bivisor.toolstack.hostd.client import HostClient

    assert isinstance(host, HostClient)
    made = host.call("create", config=config.to_json(), paused=True)
    if not paused:
        host.call("unpause", domain=str(made["domid"]))
    attach(host, str(made["domid"]), quiet=quiet)


def _read(words: tuple[str, ...], file: str | None, quiet: bool, terminal: bool = False) -> DomainConfig:
    """The configuration that the command line names, with the default guest filled in; for whom there is a `terminal`
    that guest is told of it."""
    from bivisor.errors import UsageError
    from bivisor.image import on_stderr
    from bivisor.image import quiet as silent
    from bivisor.toolstack.hostd.attach import own_terminal
    from bivisor.toolstack.xenhost import with_kernel
    from bivisor.toolstack.xlconfig import read_config

    files = [word for word in words if "=" not in word]
    if file is not None:
        files.append(file)
    if len(files) > 1:
        raise UsageError(f"{files[1]}: one configuration file is enough; KEY=VALUE sets more")
    parsed = read_config(Path(files[0]) if files else None, [word for word in words if "=" in word])
    if not quiet:
        for warning in parsed.warnings:
            say(warning)
    return with_kernel(parsed.config, own_terminal() if terminal else "", silent if quiet else on_stderr)


@click.command("config-update", epilog="\b\nExample:\n  bivisor xl config-update demo demo.cfg memory=512\n")
@click.argument("domain")
@_WORDS
@_FILE
def config_update(domain: str, words: tuple[str, ...], file: str | None) -> int:
    """Change what a domain is made of when it reboots. Its name and UUID stay."""
    if not any(word.startswith("name=") for word in words):
        words = (*words, f"name={domain}")
    config = _read(words, file, quiet=False)
    with connect() as host:
        host.call("config_update", domain=domain, config=config.to_json())
    return 0
