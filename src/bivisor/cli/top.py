"""`bivisor top`: see `bivisor.toolstack.top`."""

from __future__ import annotations

import click

from bivisor.cli.seconds import Seconds

_EPILOG = """\b
Examples:
  bivisor top                       the host that `bivisor xl` commands; q quits
  bivisor top demo                  a machine of `bivisor run --name demo`
  bivisor top --batch -n 1          one picture, as text
  bivisor top --json -n 10 -d 0.5   ten pictures, a line of JSON each
"""


@click.command("top", epilog=_EPILOG)
@click.argument("target", required=False, metavar="[HOST|MACHINE]")
@click.option("--delay", "-d", metavar="SECONDS", type=Seconds(0.05), default=2.0, show_default=True,
              help="Time between two pictures.")  # fmt: skip
@click.option("--iterations", "-n", "times", metavar="N", type=click.IntRange(1), help="End after so many pictures.")
@click.option("--batch", "-b", is_flag=True, help="Pictures one after the other, as text.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each picture.")
def command(target: str | None, delay: float, times: int | None, batch: bool, as_json: bool) -> int:
    """Show domains, their exits, hypercalls and requests a second, and where the time goes.

    HOST is a host's folder (its usual place, if it is not given), MACHINE the name of a machine of `bivisor run`.
    """
    from bivisor.toolstack.top import top

    try:
        top(target, delay=delay, times=times, batch=batch, as_json=as_json)
    except KeyboardInterrupt:
        pass
    return 0
