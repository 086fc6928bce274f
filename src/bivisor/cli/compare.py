"""`bivisor compare`: one guest under each way of virtualizing it. See `bivisor.toolstack.compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bivisor.toolstack.compare.result import Comparison

_FILE = click.Path(path_type=Path, dir_okay=False)

_EPILOG = """\b
Examples:
  bivisor compare                                 a table, and why its figures differ
  bivisor compare --only kvm-virtio,xen-pvh       two of the rows
  bivisor compare --html page.html --svg bars.svg
  bivisor compare --json > run.json; bivisor compare --load run.json --html page.html

\b
Rows: kvm-emulated, kvm-virtio, xen-hvm, xen-hvm-pv, xen-pvh, xen-pv. One that cannot be had on this host is shown with
the reason. Two to three minutes on the engine soft.
"""


@click.command("compare", epilog=_EPILOG)
@click.option("--only", metavar="ROW,...", default="", help="These rows, and no others.")
@click.option("--engine", metavar="auto|kvm|soft", default="auto", show_default=True, help="What runs the guests.")
@click.option("--json", "as_json", is_flag=True, help="All that was measured, as JSON, in place of the tables.")
@click.option("--html", "html_file", type=_FILE, metavar="FILE", help="Write a page with picture, tables and reasons.")
@click.option("--svg", "svg_file", type=_FILE, metavar="FILE", help="Write the picture.")
@click.option("--markdown", "markdown_file", type=_FILE, metavar="FILE", help="Write the page as Markdown.")
@click.option(
    "--cpu-time", is_flag=True, help="Show processor time instead of the clock's: for a machine with other work."
)
@click.option("--load", type=_FILE, metavar="FILE", help="Measure nothing: show what --json has printed before.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def command(
    only: str,
    engine: str,
    as_json: bool,
    html_file: Path | None,
    svg_file: Path | None,
    markdown_file: Path | None,
    cpu_time: bool,
    load: Path | None,
    quiet: bool,
) -> int:
    """Run one guest and one small workload under KVM and Xen, with emulated and paravirtual devices, and compare.

    Time to user space, system calls, programs, disk, network; exits by reason, hypercalls by name; and why.
    """
    from bivisor.toolstack.compare.output import check_places, load_comparison, write
    from bivisor.toolstack.compare.rows import parse_only

    rows = parse_only(only)
    check_places((html_file, svg_file, markdown_file))
    found = load_comparison(load) if load is not None else _measured(engine, rows, quiet)
    shown = found.by_processor() if cpu_time else found
    written = write(shown, html_file=html_file, svg_file=svg_file, markdown_file=markdown_file)
    if as_json:
        import json

        click.echo(json.dumps(found.to_dict(), indent=1))
    elif not written:
        from bivisor.toolstack.compare.output import report

        click.echo(report(shown))
    return 0


def _measured(engine: str, rows: tuple[str, ...], quiet: bool) -> Comparison:
    from bivisor.image import on_stderr
    from bivisor.image import quiet as silent
    from bivisor.toolstack.compare.measure import compare

    def tell(words: str) -> None:
        if not quiet:
            click.echo(f"bivisor: {words}", err=True)

    return compare(engine, only=rows, tell=tell, progress=silent if quiet else on_stderr)
