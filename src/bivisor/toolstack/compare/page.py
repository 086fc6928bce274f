"""A comparison as a page: HTML that needs nothing else, and Markdown for documentation."""

from __future__ import annotations

from html import escape
from textwrap import fill

from bivisor.toolstack.compare.explain import explain
from bivisor.toolstack.compare.picture import svg
from bivisor.toolstack.compare.result import PROCESSOR, Comparison
from bivisor.toolstack.compare.table import Table, as_markdown, figures_table, happenings_tables, row_of, turned

_WIDTH = 120
_STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
svg { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left; font-weight: normal }
h2 { margin-top: 2rem } h3 { margin-bottom: 0 }
"""


def introduction(comparison: Comparison) -> str:
    """What was measured, and how."""
    measured = [row for row in comparison.rows if not row.missing]
    processor = "Seconds are processor time of all threads, because the machine had other work. "
    return (
        f"The same guest (Linux {comparison.kernel}, {comparison.memory} MiB, one processor) and the same small "
        f"workload under {len(measured)} ways of virtualizing it, on the engine {comparison.engine}. "
        f"{processor if comparison.clock == PROCESSOR else ''}"
        "A switch is what takes the processor out of the guest: an exit or a hypercall. Times were taken while nobody "
        f"counted; only the time to user space has counting in it, {comparison.event_us:.1f} µs and more for each "
        "event. Copies are those of this program, the host's kernel and the guest aside."
    )


def html(comparison: Comparison) -> str:
    """The page, with picture, tables and a paragraph for each row."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>KVM and Xen compared</title>',
        f"<style>{_STYLE}</style></head>",
        "<body><h1>One guest, six ways to virtualize it</h1>",
        f"<p>{escape(introduction(comparison))}</p>",
        svg(comparison),
        _table(figures_table(comparison)),
        "<h2>Why</h2>",
    ]
    for result in comparison.rows:
        parts.append(f"<h3>{escape(row_of(result).title)}</h3><p>{escape(explain(comparison, result))}</p>")
    parts.append("<h2>What happened</h2>")
    for table in happenings_tables(comparison):
        parts.append(f"<h3>{escape(table.caption)}</h3>{_table(table)}")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def markdown(comparison: Comparison, picture: str) -> str:
    """The page as Markdown; `picture` is where its picture will be, from there."""
    parts = [
        "# One guest, six ways to virtualize it",
        fill(f"`bivisor compare` measured and wrote this page. {introduction(comparison)}", _WIDTH),
        f"![The figures as bars]({picture})",
        as_markdown(figures_table(comparison)),
        "## Why",
        *(fill(f"**{row_of(result).title}.** {explain(comparison, result)}", _WIDTH) for result in comparison.rows),
        "## What happened",
    ]
    for table in happenings_tables(comparison):
        parts += [f"### {table.caption[0].upper()}{table.caption[1:]}", as_markdown(table)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    head, *lines = turned(table)
    rows = [_line("th", head), *(_line("td", line) for line in lines)]
    return f"<table>{''.join(rows)}</table>"


def _line(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
