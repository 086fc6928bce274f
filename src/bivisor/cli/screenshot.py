"""`bivisor screenshot` and `bivisor keys`: screen and keyboard of a running PC. See `bivisor.toolstack.control`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("screenshot")
@click.argument("socket", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
def command(socket: Path, file: Path) -> int:
    """Write a picture of a PC's screen to FILE (PNG). SOCKET is what `bivisor run --control` was given."""
    from bivisor.errors import HostError
    from bivisor.toolstack.control import ask

    picture = ask(socket, "screenshot")
    try:
        file.write_bytes(picture)
    except OSError as error:
        raise HostError(f"{file}: {error.strerror}") from error
    return 0


@click.command("keys")
@click.option("--text", is_flag=True, help="Type the words as text, and Return.")
@click.argument("socket", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, required=True)
def keys(socket: Path, words: tuple[str, ...], text: bool) -> int:
    """Press keys of a PC: chords such as a, ret, f12, ctrl-alt-delete; or with --text type a line."""
    from bivisor.toolstack.control import ask, check_keys

    if not text:
        check_keys(words)
    ask(socket, f"{'type' if text else 'keys'} {' '.join(words)}")
    return 0
