"""Fuzz the device models one after the other: `python -m fuzz [--minutes 10] [TARGET…]`.

The minutes are shared out evenly. What breaks a device is left in fuzz/corpus/TARGET/, where the unit tests find it,
and makes the exit status 1. Needs atheris: pip install 'bivisor[fuzz]'.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
_DONE = re.compile(rb"stat::number_of_executed_units:\s*(\d+)")
_COVERAGE = re.compile(rb"cov: (\d+)")


def fuzz(name: str, seconds: int) -> bool:
    """Fuzz the target `name`; whether it stood."""
    known = CORPUS / name
    known.mkdir(parents=True, exist_ok=True)
    before = set(known.iterdir())
    with TemporaryDirectory() as found:
        command = [
            *(sys.executable, "-m", "fuzz.one", name, f"-max_total_time={seconds}", "-print_final_stats=1"),
            *(f"-artifact_prefix={known}/", found, str(known)),
        ]
        done = subprocess.run(
            command, cwd=CORPUS.parent.parent, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    said = done.stdout + done.stderr
    inputs, coverage = _DONE.findall(said), _COVERAGE.findall(said)
    new = sorted(path.name for path in set(known.iterdir()) - before)
    print(
        f"{name:16}{int(inputs[-1]) if inputs else 0:>9} inputs, coverage {int(coverage[-1]) if coverage else 0:>5}",
        end="",
    )
    print(f"  BROKEN: {', '.join(new)}" if done.returncode else "", flush=True)
    if done.returncode:
        print(said[-3000:].decode(errors="replace"), flush=True)
    return not done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", choices=[*TARGETS, []], help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("fuzzing needs atheris: pip install 'bivisor[fuzz]'")
    targets = options.targets or list(TARGETS)
    seconds = max(1, round(options.minutes * 60 / len(targets)))
    stood = [fuzz(name, seconds) for name in targets]
    sys.exit(0 if all(stood) else 1)


if __name__ == "__main__":
    main()
