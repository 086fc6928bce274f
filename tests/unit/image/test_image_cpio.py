"""The cpio writer against a reader that knows only the format."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.image import cpio
from bivisor.image.cpio import Entry


def read(data: bytes) -> tuple[list[Entry], int]:
    """The entries of the first archive in `data`, and where it ends."""
    entries: list[Entry] = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        body = at + 110 + name_size
        body += -body % 4
        at = body + size
        at += -at % 4
        if name == b"TRAILER!!!\0":
            return entries, at
        entries.append(Entry(name[:-1].decode(), fields[1], data[body : body + size], (fields[9], fields[10])))


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
modes = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR]).flatmap(
    lambda kind: st.integers(0, 0o7777).map(lambda bits: kind | bits)
)
devices = st.tuples(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
entries = st.builds(Entry, names.filter(lambda name: name != "TRAILER!!!"), modes, st.binary(max_size=100), devices)


@given(st.lists(entries, max_size=8))
def test_an_archive_reads_back_as_what_went_in(wanted: list[Entry]) -> None:
    data = cpio.archive(wanted)
    found, end = read(data)
    assert found == wanted
    assert end == len(data)


@given(st.lists(entries, max_size=3), st.lists(entries, max_size=3))
def test_archives_can_stand_one_after_the_other(first: list[Entry], second: list[Entry]) -> None:
    data = cpio.archive(first) + cpio.archive(second)
    found, end = read(data)
    assert found == first
    assert end % 4 == 0
    assert read(data[end:])[0] == second


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_another_program_reads_the_archive(tmp_path: Path) -> None:
    data = cpio.archive(
        [cpio.directory("d", 0o700), cpio.file("d/f", b"hello", 0o640), cpio.symlink("d/l", "f"), cpio.file("e", b"")]
    )
    subprocess.run(["cpio", "--extract", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "d/l").read_bytes() == b"hello"
    assert stat.S_IMODE((tmp_path / "d/f").stat().st_mode) == 0o640
    assert (tmp_path / "e").stat().st_size == 0
