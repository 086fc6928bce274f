"""The picture of a comparison: a panel of bars for each figure, as SVG (SVG 1.1, no script, no outside reference).

Bars in panels are all that is wanted, so the drawing is written here: a plotting library would be the largest thing
that this program depends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from bivisor.toolstack.compare.result import Comparison, RowResult
from bivisor.toolstack.compare.table import FIGURES, Figure, row_of

_SHOWN = (
    "boot", "call", "program", "request", "request-switches", "program-switches", "disk", "network", "network-switches",
)  # fmt: skip
_COLUMNS = 3
_PANEL, _NAMES, _GAP = 216, 166, 26
_LINE, _HEAD, _TOP, _FOOT = 21, 40, 52, 40
_COLOURS = {"kvm": "#3b6fb6", "xen": "#3f8f6b"}
_FONT = "font-family=\"system-ui, 'DejaVu Sans', sans-serif\""


def svg(comparison: Comparison) -> str:
    """The picture."""
    rows = comparison.rows
    panels = [figure for key in _SHOWN for figure in FIGURES if figure.key == key]
    deep = -(-len(panels) // _COLUMNS)
    height_each = _HEAD + _LINE * len(rows) + _GAP
    width = _NAMES + _COLUMNS * (_PANEL + _GAP) + _GAP
    height = _TOP + deep * height_each + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" {_FONT} font-size="12">',
        f"<title>{escape(_title(comparison))}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        _text(_GAP, 30, _title(comparison), size=16, weight="600"),
    ]
    for number, figure in enumerate(panels):
        down, across = divmod(number, _COLUMNS)
        top = _TOP + down * height_each
        if across == 0:
            parts += _names(rows, top)
        parts += _panel(figure, rows, _NAMES + across * (_PANEL + _GAP) + _GAP, top)
    parts += [_text(_GAP, height - 16, _foot(comparison), size=11, colour="#666666"), "</svg>"]
    return "\n".join(parts) + "\n"


def _title(comparison: Comparison) -> str:
    return f"One Linux guest ({comparison.kernel}), engine {comparison.engine}"


def _foot(comparison: Comparison) -> str:
    return (
        f"{comparison.memory} MiB, one processor. A switch is an exit or a hypercall. Blue is KVM's architecture, "
        "green Xen's; emulated devices are paler."
    )


def _names(rows: Sequence[RowResult], top: int) -> list[str]:
    return [
        _text(_NAMES, top + _HEAD + _LINE * at + 14, row_of(row).title, anchor="end") for at, row in enumerate(rows)
    ]


def _panel(figure: Figure, rows: Sequence[RowResult], left: int, top: int) -> list[str]:
    """One figure of every row; bars are to the scale of the greatest."""
    values = [figure.value(row) for row in rows]
    greatest = max((value for value in values if value is not None), default=0.0) or 1.0
    unit = f", {figure.unit}" if figure.unit else ""
    better = "less is better" if figure.less else "more is better"
    parts = [
        _text(left, top + 16, figure.title + unit, weight="600"),
        _text(left, top + 31, better, size=10, colour="#888888"),
    ]
    for at, (row, value) in enumerate(zip(rows, values, strict=True)):
        middle = top + _HEAD + _LINE * at
        if value is None:
            parts.append(_text(left, middle + 14, "not here" if row.missing else "none", colour="#999999"))
            continue
        length = max(1.0, value / greatest * (_PANEL - 62))
        colour = _COLOURS[row.key.partition("-")[0]]
        pale = ' fill-opacity="0.55"' if row_of(row).is_emulated else ""
        parts.append(f'<rect x="{left}" y="{middle + 3}" width="{length:.1f}" height="14" fill="{colour}"{pale}/>')
        parts.append(_text(left + length + 5, middle + 14, figure.text(row)))
    return parts


def _text(
    x: float, y: float, words: str, *, size: int = 12, weight: str = "", anchor: str = "", colour: str = "#222222"
) -> str:
    more = (f' font-weight="{weight}"' if weight else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{more}>{escape(words)}</text>'
