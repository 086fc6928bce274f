"""`bivisor web`: the page that shows what runs."""

from __future__ import annotations

import click

_EPILOG = """\b
Examples:
  bivisor web                     prints an address to open
  bivisor web --open              opens it in the browser
  bivisor web --demo --open       with a Xen host of two domains and a KVM guest to look at
  ssh -L 8006:127.0.0.1:8006 me@there bivisor web      from another machine

Exit status: 0 it was ended with Ctrl-C; 2 it could not begin, and a line says why.
"""


@click.command("web", epilog=_EPILOG)
@click.option("--port", type=click.IntRange(0, 65535), default=8006, show_default=True, help="0 takes any free one.")
@click.option("--listen", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Where it can be reached.")
@click.option("--state", metavar="DIR", help="The host's folder, as of `bivisor host`.")
@click.option("--token", envvar="BIVISOR_WEB_TOKEN", metavar="TEXT", help="What to ask for, instead of a new token.")
@click.option(
    "--demo", is_flag=True, help="Start a Xen host with two domains and a KVM guest, and end them at the end."
)
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
def command(port: int, listen: str, state: str | None, token: str | None, demo: bool, opens: bool) -> int:
    """Serve a page with the live picture of what runs: domains, rings, grants, event channels; processes, exits.

    It answers only who has the token that is part of the printed address, and only on this machine unless --listen
    says otherwise.
    """
    from bivisor.web.serve import serve

    return serve(port=port, listen=listen, state=state, token=token, demo=demo, opens=opens)
