"""What is shown of a comparison, and the files that it is written to and read from."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path

from bivisor.errors import HostError, UsageError
from bivisor.toolstack.compare.explain import explain
from bivisor.toolstack.compare.page import html, introduction, markdown
from bivisor.toolstack.compare.picture import svg
from bivisor.toolstack.compare.result import Comparison
from bivisor.toolstack.compare.table import as_text, figures_table, happenings_tables, row_of

_WIDTH = 100


def report(comparison: Comparison) -> str:
    """Tables and paragraphs for a terminal."""
    parts = [textwrap.fill(introduction(comparison), _WIDTH), as_text(figures_table(comparison))]
    for result in comparison.rows:
        words = f"{row_of(result).title}: {explain(comparison, result)}"
        parts.append(textwrap.fill(words, _WIDTH, subsequent_indent="  "))
    parts += [f"{table.caption}:\n{as_text(table)}" for table in happenings_tables(comparison)]
    return "\n\n".join(parts)


def load_comparison(path: Path) -> Comparison:
    """What `--json` printed into a file. UsageError where it is something else."""
    try:
        return Comparison.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path}: this is not what `bivisor compare --json` prints") from None


def check_places(paths: Iterable[Path | None]) -> None:
    """HostError where a file could not be written: minutes of measuring come first."""
    for path in filter(None, paths):
        place = path if path.exists() else path.absolute().parent
        if not place.exists():
            raise HostError(f"cannot write {path}: there is no folder {place}")
        if not os.access(place, os.W_OK):
            raise HostError(f"cannot write {path}: Permission denied")


def write(
    comparison: Comparison, *, html_file: Path | None, svg_file: Path | None, markdown_file: Path | None
) -> list[Path]:
    """Write the files that are asked for; which they were. HostError where one cannot be written."""
    written = []
    if html_file is not None:
        written.append(_put(html_file, html(comparison)))
    if svg_file is not None:
        written.append(_put(svg_file, svg(comparison)))
    if markdown_file is not None:
        picture = svg_file or markdown_file.with_suffix(".svg")
        if svg_file is None:
            written.append(_put(picture, svg(comparison)))
        written.append(_put(markdown_file, markdown(comparison, os.path.relpath(picture, markdown_file.parent))))
    return written


def _put(path: Path, text: str) -> Path:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error
    return path
