"""stub.py holds what stub.S assembles to."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bivisor.xen.pv import stub

SOURCE = Path(stub.__file__).with_name("stub.S")


@pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="needs the GNU assembler")
def test_the_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    obj, out = tmp_path / "s.o", tmp_path / "s.bin"
    subprocess.run(["as", SOURCE, "-o", obj], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", obj, out], check=True)
    assert out.read_bytes() == stub.CODE


def test_the_ways_in_are_behind_the_entries_of_the_vectors() -> None:
    assert all(16 * 256 < offset < len(stub.CODE) <= 3 * 4096 for offset in stub.ENTRIES)
