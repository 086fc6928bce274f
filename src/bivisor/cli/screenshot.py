"""`bivisor screenshot` and `bivisor keys`: screen and keyboard of a running PC, or of an HVM domain of a Xen host.

See `bivisor.toolstack.control` and `bivisor.toolstack.domscreen`.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("screenshot")
@click.argument("machine")
@click.argument("file", type=click.Path(path_type=Path))
def command(machine: str, file: Path) -> int:
    """Write a picture of a screen to FILE (PNG). MACHINE is the socket that `bivisor run --control` was given, or the
    name of an HVM domain."""
    import base64

    from bivisor.errors import HostError
    from bivisor.toolstack.control import ask

    if Path(machine).is_socket():
        picture = ask(Path(machine), "screenshot")
    else:
        picture = base64.b64decode(_host(machine, "screenshot"))
    try:
        file.write_bytes(picture)
    except OSError as error:
        raise HostError(f"{file}: {error.strerror}") from error
    return 0


@click.command("keys")
@click.option("--text", is_flag=True, help="Type the words as text, and Return.")
@click.argument("machine")
@click.argument("words", nargs=-1, required=True)
def keys(machine: str, words: tuple[str, ...], text: bool) -> int:
    """Press keys: chords such as a, ret, f12, ctrl-alt-delete; or with --text type a line. MACHINE is the socket that
    `bivisor run --control` was given, or the name of an HVM domain."""
    from bivisor.toolstack.control import ask, check_keys

    if not text:
        check_keys(words)
    if Path(machine).is_socket():
        ask(Path(machine), f"{'type' if text else 'keys'} {' '.join(words)}")
    else:
        _host(machine, "keys", words=list(words), text=text)
    return 0


def _host(domain: str, method: str, **params: object) -> str:
    """Have the Xen host do something with `domain`. HostError where there is neither such a socket nor a host."""
    from bivisor.errors import HostError
    from bivisor.toolstack.hostd.client import HostClient, runs
    from bivisor.toolstack.hostd.place import place_of

    place = place_of(None)
    if "/" in domain or not runs(place):
        raise HostError(f"{domain}: no machine listens there (bivisor run --machine pc --control {domain})")
    with HostClient(place) as host:
        return str(host.call(method, domain=domain, **params))
