"""What the README and the other documents show is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.cpu.measure import cpl0_speed
from bivisor.cpu.select import INTERPRETING_BELOW, open_kvm
from bivisor.errors import HostError
from bivisor.image import Guest

from .documents import DOCUMENTS, ROOT, Block, Command, blocks, commands, missing, printed_by

PATIENCE = 120.0
NEEDS_MAKE = re.compile(r"^make\b")


def require_fast_kvm() -> None:
    try:
        with open_kvm() as opened:
            if cpl0_speed(opened) < INTERPRETING_BELOW:
                pytest.skip("/dev/kvm interprets kernel code")
    except HostError as error:
        pytest.skip(str(error))


def parameters(language: str) -> list[object]:
    marks = {"kvm": (pytest.mark.kvm, pytest.mark.rig)}
    return [
        pytest.param(block, id=str(block), marks=[mark for need in block.needs for mark in marks.get(need, ())])
        for block in blocks(language)
    ]


@pytest.fixture
def environment(tmp_path: Path, guest: Guest) -> Iterator[dict[str, str]]:
    """An environment whose `bivisor` is the one under test, on whose path nothing else has to be, with a host of its
    own for `bivisor xl`."""
    script = tmp_path / "bin" / "bivisor"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bivisor "$@"\n')
    script.chmod(0o755)
    path = [str(script.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    found = os.environ | {"PATH": os.pathsep.join(path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found |= {"BIVISOR_HOST": str(tmp_path / "host")}
    yield found
    if (tmp_path / "host").exists():
        subprocess.run(["bivisor", "host", "stop", "--force"], env=found, check=True, timeout=PATIENCE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where examples may leave files."""
    made = tmp_path / "work"
    made.mkdir()
    return made


def session(each: list[Command], mark: str) -> str:
    """A shell script that runs the commands, with `mark` after what each of them printed and $? kept."""
    return "\n".join(f"(exit $status)\n{command.words}\nstatus=$?\necho; echo {mark}" for command in each)


@pytest.mark.guest
@pytest.mark.parametrize("block", parameters("console"))
def test_a_session_prints_what_is_shown(block: Block, environment: dict[str, str], folder: Path) -> None:
    if "kvm" in block.needs:
        require_fast_kvm()
    each = commands(block)
    if any(NEEDS_MAKE.match(command.words) for command in each):
        if Path(sys.prefix) != ROOT / ".venv":
            pytest.skip("make would make an environment of its own")
        folder = ROOT
    mark = "-- end of one command --"
    done = subprocess.run(
        ["bash", "-c", "status=0\n" + session(each, mark)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    printed = done.stdout.split(mark)[:-1]
    assert len(printed) == len(each), done.stdout
    assert "Traceback" not in done.stdout
    if "host" in block.needs:
        return
    for command, output in zip(each, printed, strict=True):
        assert not missing(command.shown, output), f"$ {command.words}\n{output}"


@pytest.mark.guest
@pytest.mark.parametrize("block", parameters("python"))
def test_a_program_prints_what_its_comments_say(block: Block, environment: dict[str, str], folder: Path) -> None:
    if "kvm" in block.needs:
        require_fast_kvm()
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert not missing(printed_by(block), done.stdout), done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert "://" in target or (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    for name in re.findall(r"`((?:src|tests|bench|tools|docs)/[\w./]+)`", document.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


def test_every_option_of_run_is_told(environment: dict[str, str]) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    usage = subprocess.run(["bivisor", "run", "--help"], env=environment, capture_output=True, text=True, check=True)
    told = set(re.findall(r"--[a-z]+", text))
    assert set(re.findall(r"^ +(?:-\w, )?(--[a-z]+)", usage.stdout, re.MULTILINE)) - {"--help"} <= told
