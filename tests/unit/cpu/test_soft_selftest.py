"""A library that is not the one we know is refused with one line, before a guest runs on it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# The start-up test runs a guest on a library whose inside is not what is expected: in a process of its own.
_OPEN = """
import sys
from bivisor.cpu.soft import library, private
from bivisor.cpu.soft.engine import SoftEngine
from bivisor.errors import HostError
{change}
try:
    SoftEngine()
except HostError as error:
    print(error)
    sys.exit(3)
"""


def _open(change: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _OPEN.format(change=change)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_library_that_is_installed_passes() -> None:
    done = _open("")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("library.VERSION = '2.2.0'", "needs Unicorn 2.2.0, and 2.1.4 is installed"),
        ("sys.modules['unicorn'] = None", "pip install unicorn=="),
        ("private.CPU_ENV += 8", "lays out its processor differently"),
        ("private.ENV_IN_CPU += 16", "lays out its processor differently"),
        ("library._HELPERS += ('helper_of_another_release',)", "lacks helper_of_another_release"),
        ("private.ENV_EIP += 8", "start-up test"),
        ("private.ENV_TSC_OFFSET += 8", "start-up test"),
        ("private.ENV_CR += 8", "start-up test"),
        ("private.ENV_IDT += 24", "start-up test"),
        ("private.ENV_EFER += 8", "start-up test"),
    ],
)
def test_another_library_is_refused_with_one_line(change: str, said: str) -> None:
    done = _open(change)
    assert done.returncode == 3, done.stderr[-2000:]
    assert said in done.stdout
    assert done.stdout.count("\n") == 1
    assert "unicorn==" in done.stdout
