"""Tables, paragraphs, picture and pages of a comparison that was recorded from a real run."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bivisor.cli.main import status_of
from bivisor.errors import HostError, UsageError
from bivisor.toolstack.compare.explain import explain
from bivisor.toolstack.compare.output import load_comparison, report, write
from bivisor.toolstack.compare.page import html, markdown
from bivisor.toolstack.compare.picture import svg
from bivisor.toolstack.compare.result import BOOT, Comparison, RowResult
from bivisor.toolstack.compare.rows import ROWS, parse_only
from bivisor.toolstack.compare.table import FIGURES, NONE, figures_table, happenings_tables

RECORDED = Path(__file__).with_name("recorded.json")
TITLES = {row.key: row.title for row in ROWS}
REASON = "nobody has <built> it & more"


@pytest.fixture
def comparison() -> Comparison:
    return load_comparison(RECORDED)


@pytest.fixture
def lacking(comparison: Comparison) -> Comparison:
    """As if one row could not be had, and another had no network."""
    *others, last = comparison.rows
    without = replace(others[-1], notes={"send": "no driver"}, phases={BOOT: others[-1].phases[BOOT]})
    return replace(comparison, rows=(*others[:-1], without, RowResult(last.key, missing=REASON)))


def test_a_comparison_comes_back_from_json_as_it_was(comparison: Comparison) -> None:
    assert Comparison.from_dict(json.loads(json.dumps(comparison.to_dict()))) == comparison


def test_every_row_has_every_figure(comparison: Comparison) -> None:
    lines = figures_table(comparison).lines
    assert [line[0] for line in lines] == [TITLES[row.key] for row in comparison.rows]
    measured = [line for line, row in zip(lines, comparison.rows, strict=True) if not row.missing and not row.notes]
    assert measured and all(NONE not in line for line in measured)


def test_processor_time_can_be_shown_instead_of_the_clock_s(comparison: Comparison) -> None:
    other = comparison.by_processor()
    for row, turned in zip(comparison.rows, other.rows, strict=True):
        assert {name: part.cpu for name, part in row.phases.items()} == {
            name: part.seconds for name, part in turned.phases.items()
        }
    assert "processor time" in report(other) and "processor time" not in report(comparison)


def test_a_row_that_could_not_be_is_there_with_its_reason(lacking: Comparison) -> None:
    *_, line = figures_table(lacking).lines
    assert set(line[1:]) == {NONE}
    assert REASON in explain(lacking, lacking.rows[-1])
    assert "not here" in svg(lacking)


def test_a_phase_that_could_not_be_is_there_with_its_reason(lacking: Comparison) -> None:
    assert "No figure for its network throughput: no driver." in explain(lacking, lacking.rows[-2])


def test_a_paragraph_says_what_was_counted(comparison: Comparison) -> None:
    for row in comparison.rows:
        counts = row.counts(BOOT)
        if counts is not None:
            counted = (counts.all_exits, counts.all_hypercalls, *counts.exits.values(), *counts.hypercalls.values())
            numbers = {f"{number:,}" for number in counted if number > 9}
            said = set(re.findall(r"\d[\d,]*\d", explain(comparison, row)))
            assert numbers & said, row.key


def test_paragraphs_need_no_other_row(comparison: Comparison) -> None:
    for row in comparison.rows:
        alone = replace(comparison, rows=(row,))
        words = explain(alone, row)
        assert "{" not in words and "  " not in words and words.endswith(".")


@pytest.mark.parametrize("key", [row.key for row in ROWS])
def test_every_row_can_be_explained_with_nothing_counted(comparison: Comparison, key: str) -> None:
    phases = {name: replace(part, counts=None) for name, part in comparison.rows[-1].phases.items()}
    assert explain(comparison, RowResult(key, phases)).endswith(".")


def test_what_happened_is_there_by_name_and_adds_up(comparison: Comparison) -> None:
    table = happenings_tables(comparison)[0]
    for at, row in enumerate((row for row in comparison.rows if not row.missing), 1):
        counts = row.counts(BOOT)
        assert counts is not None
        shown = [int(line[at].replace(",", "")) for line in table.lines if line[0][:4] == "exit" and line[at] != NONE]
        assert sum(shown) == counts.all_exits


def test_the_picture_has_a_bar_for_each_figure_of_each_row_and_refers_to_nothing(comparison: Comparison) -> None:
    root = ET.fromstring(svg(comparison))
    space = "{http://www.w3.org/2000/svg}"
    bars = [each for each in root.iter(f"{space}rect") if each.get("height") == "14"]
    rows = [row for row in comparison.rows if not row.missing]
    panels = [each for each in root.iter(f"{space}text") if each.get("font-weight") == "600"][1:]
    values = [figure.value(row) for row in rows for figure in FIGURES if figure.key != "boot-switches"]
    assert len(panels) == len(FIGURES) - 1
    assert len(bars) == sum(value is not None for value in values)
    width = float(root.get("width", "0"))
    assert all(float(bar.get("x", "0")) + float(bar.get("width", "0")) < width for bar in bars)
    assert "href" not in svg(comparison) and "script" not in svg(comparison)


class _Tags(HTMLParser):
    """Opens and closes what a page does; void elements aside."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}, "a page that needs nothing else"
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag


def test_the_page_is_whole_and_escapes_what_it_was_told(lacking: Comparison) -> None:
    page = html(lacking)
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert "nobody has &lt;built&gt; it &amp; more" in page and "<built>" not in page


def test_the_files_that_are_asked_for_are_written(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    place = tmp_path / "docs/page.md"
    written = write(comparison, html_file=tmp_path / "page.html", svg_file=None, markdown_file=place)
    assert [path.name for path in written] == ["page.html", "page.svg", "page.md"]
    assert "(page.svg)" in place.read_text() and place.read_text() == markdown(comparison, "page.svg")


def test_the_command_shows_a_recorded_run(
    comparison: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["compare", "--load", str(RECORDED)]) == 0
    assert capsys.readouterr().out == report(comparison) + "\n"
    assert status_of(["compare", "--load", str(RECORDED), "--json"]) == 0
    assert Comparison.from_dict(json.loads(capsys.readouterr().out)) == comparison
    assert status_of(["compare", "--load", str(RECORDED), "--svg", str(tmp_path / "no/such")]) == HostError.status
    assert "cannot write" in capsys.readouterr().err


def test_places_that_cannot_be_written_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bivisor.toolstack.compare.measure.compare", lambda *_, **__: pytest.fail("measured"))
    assert status_of(["compare", "--html", str(tmp_path / "no/such")]) == HostError.status
    assert capsys.readouterr().err == f"bivisor: cannot write {tmp_path}/no/such: there is no folder {tmp_path}/no\n"


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"rows": 7}', '{"rows": [{"key": "x"}]}', "\0"])
def test_a_file_that_is_no_recorded_run_is_refused_in_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    assert status_of(["compare", "--load", str(path)]) == 2
    assert "is not what `bivisor compare --json` prints" in capsys.readouterr().err


def test_a_row_that_there_is_not_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["compare", "--only", "xen-pv,vmware"]) == 2
    assert "--only vmware: the rows are kvm-emulated, kvm-virtio," in capsys.readouterr().err
    assert parse_only(" xen-pv, kvm-virtio,") == ("xen-pv", "kvm-virtio")
    with pytest.raises(UsageError):
        parse_only("xen")
