"""Fuzz one target with atheris: `python -m fuzz.one TARGET [libFuzzer options] [CORPUS…]`. An input that takes longer
than ten seconds, or more than a gigabyte of memory, is a finding as an exception is."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["bivisor.platform"], enable_loader_override=False):
    from fuzz.targets import TARGETS, play


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"python -m fuzz.one TARGET: one of {', '.join(TARGETS)}")
    options = ["-timeout=10", "-rss_limit_mb=1024", "-max_len=1024", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *options], lambda data: play(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
