"""The command line: what arrives where, and that every error is one line and a status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

import bivisor
from bivisor.cli.main import cli, status_of
from bivisor.errors import EngineError, HostError, UsageError
from bivisor.image import Guest
from bivisor.toolstack.options import RunOptions
from bivisor.toolstack.run import View

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunOptions, View]]:
    """What `bivisor run` would run; it ends with 7."""
    found: list[tuple[RunOptions, View]] = []

    def run(options: RunOptions, view: View) -> int:
        found.append((options, view))
        return 7

    monkeypatch.setattr("bivisor.toolstack.run.run", run)
    return found


def test_the_version_and_the_help_are_told() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"bivisor {bivisor.__version__}\n"
    helped = CliRunner().invoke(cli, ["run", "--help"]).output
    assert "Exit status" in helped
    assert "Examples" in helped
    assert all(name in CliRunner().invoke(cli, ["--help"]).output for name in ("run", "image", "check"))


def test_run_hands_over_what_was_asked_for_and_ends_as_the_guest_does(runs: list[tuple[RunOptions, View]]) -> None:
    words = "run --memory 1G --cpus 2 --disk a,ro --disk b --net user --engine soft --append x=1 --stats --trace -"
    assert status_of([*words.split(), "--exec", "exit 7"]) == 7
    ((options, view),) = runs
    expected = RunOptions.of(
        memory="1G", cpus=2, disks=["a,ro", "b"], nets=["user"], engine="soft", append="x=1", command="exit 7"
    )
    assert options == expected
    assert view == View(stats=True, trace="-")


def test_trace_alone_goes_to_standard_error(runs: list[tuple[RunOptions, View]]) -> None:
    status_of(["run", "--trace", "--exec", "true"])
    assert runs[0][1].trace == "-"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--bla"],
        ["run", "--cpus", "x"],
        ["nope"],
        ["run", "x"],
        ["run", "--memory", "0"],
        ["image", "x"],
        ["run", "--timeout", "inf"],
        ["top", "--delay", "nan"],
        ["trace", "--duration", "inf"],
        ["host", "stop", "--timeout", "1e300"],
    ],
)
def test_bad_words_are_one_line_and_status_2(words: list[str], capsys: Capture) -> None:
    assert status_of(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("bivisor: ")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("no"), 2),
        (HostError("no"), 2),
        (EngineError("no"), 1),
        (KeyboardInterrupt(), 130),
        (RuntimeError("no\nnever"), 70),
    ],
)
def test_an_error_is_one_line_and_its_status(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def run(*_: object) -> int:
        raise error

    monkeypatch.setattr("bivisor.toolstack.run.run", run)
    monkeypatch.delenv("BIVISOR_DEBUG", raising=False)
    assert status_of(["run"]) == status
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.count("\n") == 1  # after Ctrl-C an empty one, behind the terminal's ^C
    monkeypatch.setenv("BIVISOR_DEBUG", "1")
    status_of(["run"])
    assert ("Traceback" in capsys.readouterr().err) == (status != 130)


def test_no_words_at_all_are_answered_with_help(capsys: Capture) -> None:
    assert status_of([]) == 2
    assert "Usage: bivisor" in capsys.readouterr().err


@pytest.mark.parametrize(("engine", "status"), [("soft", 0), (None, 1)])
def test_check_tells_rows_without_colours_or_json(
    engine: str | None, status: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    rows = [SimpleNamespace(status=SimpleNamespace(value="warn"), title="/dev/kvm", detail="not there")]
    report = SimpleNamespace(
        lines=lambda: rows, to_dict=lambda: {"nested": None}, verdict=SimpleNamespace(engine=engine)
    )
    monkeypatch.setattr("bivisor.cpu.hostcheck.check_host", lambda: report)
    assert status_of(["check"]) == status
    assert capsys.readouterr().out == "warn  /dev/kvm  not there\n"
    assert status_of(["check", "--json"]) == status
    assert json.loads(capsys.readouterr().out) == {"nested": None}


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    found = Guest(Path("/c/vmlinuz"), Path("/c/initrd"), "6.1.0", Path("/c/modules"))
    monkeypatch.setattr("bivisor.image.default_guest", lambda *_, **__: found)
    return found


def test_image_gets_the_default_guest_and_says_where_it_is(guest: Guest, capsys: Capture) -> None:
    for words in (["image"], ["image", "get"]):
        assert status_of(words) == 0
        assert "kernel   /c/vmlinuz\ninitrd   /c/initrd\n" in capsys.readouterr().out
    assert status_of(["image", "path", "initrd"]) == 0
    assert capsys.readouterr().out == "/c/initrd\n"


def test_image_inspect_tells_what_a_file_is(tmp_path: Path, capsys: Capture) -> None:
    sector = tmp_path / "sector"
    sector.write_bytes(bytes(510) + b"\x55\xaa")
    assert status_of(["image", "inspect", str(sector)]) == 0
    assert "kind          raw\n" in capsys.readouterr().out
    assert status_of(["image", "inspect", str(sector), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["protocols"]) == ("raw", ["raw"])
    assert status_of(["image", "inspect", str(tmp_path)]) == 2


def test_the_way_to_a_guest_imports_nothing_heavy() -> None:
    code = (
        "import sys, bivisor; print('bivisor.kvm' in sys.modules); import bivisor.cli.run, bivisor.toolstack.run;"
        "print({'rich', 'elftools', 'asyncio', 'importlib.metadata', 'hashlib', 'subprocess'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nset()\n"


def test_the_package_offers_its_names_when_they_are_used() -> None:
    from bivisor.toolstack.api import run

    assert bivisor.run is run
    assert set(bivisor.__all__) <= set(dir(bivisor))
    assert all(getattr(bivisor, name) is not None for name in bivisor.__all__)
    with pytest.raises(AttributeError):
        _ = bivisor.nothing


def test_every_command_has_help_for_every_option() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.name}"


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ("image list --json >/dev/full", 1, "bivisor: cannot write the output: No space left on device\n"),
        ("--help >/dev/full", 1, "bivisor: cannot write the output: No space left on device\n"),
        ("--help >&-", 0, ""),
        ("--nonsense 2>/dev/full", 2, ""),
        ("--nonsense 2>&-", 2, ""),
    ],
)
def test_an_output_that_is_full_or_closed_is_no_reason_for_a_traceback(words: str, status: int, told: str) -> None:
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -m bivisor {words}'], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", told)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_from_outside_gives_everything_back_as_ctrl_c_does(number: signal.Signals, tmp_path: Path) -> None:
    program = f"""
import os, signal, tempfile
from bivisor.cli import main
def work(**_):
    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):
        os.kill(os.getpid(), {number})
        signal.pause()
main.cli.main = work
main.main([])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_program_is_loaded_is_no_traceback() -> None:
    program = """
import sys
class Late:
    def find_spec(self, name, path, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Late())
from bivisor.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
