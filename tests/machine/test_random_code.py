"""Random code, in every mode, stops at most itself."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 60
PATIENCE = 120.0


FOUND = [(32, 11), (64, 20), (32, 1026), (64, 5147)]
"""What was found: a delivery through memory that is not there never ended; a null task register ended the process."""


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_random_code_stops_at_most_its_guest(engine: str, bits: int) -> None:
    play(engine, bits, random.SystemRandom().randrange(1 << 32), COUNT)


@pytest.mark.parametrize(("bits", "seed"), FOUND)
def test_what_was_found_stays_mended(engine: str, bits: int, seed: int) -> None:
    play(engine, bits, seed, 1)


def play(engine: str, bits: int, first: int, count: int) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "machine.random_code", engine, str(bits), str(first), str(count)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, (
        f"{bits} bits, {done.stdout.splitlines()[-1]}: {done.returncode}\n{done.stderr[-3000:]}"
    )
