"""What the commands of `bivisor xl` share: the way to the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bivisor.toolstack.hostd.client import HostClient


def connect(*, start: bool = False) -> HostClient:
    """The host that the options name. With `start` one is started where none runs, unless --no-start says not to."""
    from bivisor.toolstack.hostd.client import HostClient, runs
    from bivisor.toolstack.hostd.place import place_of

    options = click.get_current_context().obj
    place = place_of(options["state"])
    if start and options["start"] and not runs(place):
        from bivisor.toolstack.hostd.spawn import ensure

        if ensure(place, "auto"):
            say(f"no host was running: started one in {place.folder} (`bivisor host stop` ends it)")
    return HostClient(place)


def say(words: str) -> None:
    """A line on standard error."""
    click.echo(f"bivisor: {words}", err=True)
